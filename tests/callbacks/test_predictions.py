"""Classifier and predictions in real, small trainings."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from activations import LSLU, CosLU
from callbacks import PredictionWriter
from callbacks.predictions import Row, write_table
from models import Classifier
from tests.data import Tiny
from tests.trainings import classifier, trainer


def test_the_same_seed_gives_the_same_bits(tmp_path: Path):
    models = [classifier(LSLU), classifier(LSLU)]
    for model in models:
        trainer(tmp_path).fit(model, datamodule=Tiny())
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_predictions_are_a_complete_csv(tmp_path: Path):
    path, data = tmp_path / "new" / "p.csv", Tiny()
    run = trainer(tmp_path, PredictionWriter(str(path)))
    run.predict(classifier(), datamodule=data, return_predictions=False)
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(23))
    assert [row["label"] for row in rows] == [data.class_names[i % 3] for i in range(23)]
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    assert {row["predicted"] for row in rows} <= set(data.class_names)
    assert list(path.parent.iterdir()) == [path]


def test_a_label_that_is_no_class_is_not_the_last_one(tmp_path: Path):
    rows = [Row(k, {}, label, [0.25, 0.75]) for k, label in enumerate([1, -1, 2, None])]
    write_table(tmp_path / "p.csv", ["cat", "dog"], rows)
    with open(tmp_path / "p.csv") as file:
        found = [(row["label"], row["predicted"]) for row in csv.DictReader(file)]
    assert found == [("dog", "dog"), ("-1", "dog"), ("2", "dog"), ("", "dog")]


def test_a_match_without_a_data_module_says_what_it_needs(tmp_path: Path):
    model, data = Classifier("resnet8", 3, 1, 8, activation=CosLU, match=True), Tiny()
    data.setup("fit")
    with pytest.raises(ValueError, match="match: true looks at a training batch of a data module"):
        trainer(tmp_path).fit(model, data.train_dataloader(), data.val_dataloader())


def test_metrics_are_right(tmp_path: Path):
    from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

    model, data = classifier(None), Tiny()
    run = trainer(tmp_path)
    [found] = run.test(model, datamodule=data, verbose=False)
    batches: Any = run.predict(model, datamodule=data)
    assert batches
    probability = torch.cat([b["probability"] for b in batches]).double().numpy()
    probability /= probability.sum(1, keepdims=True)
    label = torch.cat([b["label"] for b in batches]).numpy()
    guess = probability.argmax(1)
    assert found["test/acc"] == pytest.approx(accuracy_score(label, guess))
    assert found["test/f1"] == pytest.approx(f1_score(label, guess, average="macro"))
    assert found["test/loss"] == pytest.approx(log_loss(label, probability), rel=1e-4)
    auroc = roc_auc_score(label, probability, multi_class="ovr", average="macro")
    assert found["test/auroc"] == pytest.approx(auroc, rel=1e-4)
    # the mean distance of accuracy and confidence over 15 bins, weighted by their samples
    bins = np.minimum((probability.max(1) * 15).astype(int), 14)
    gaps = [abs((guess == label)[bins == k].mean() - probability.max(1)[bins == k].mean())
            * (bins == k).mean() for k in np.unique(bins)]  # fmt: skip
    assert found["test/ece"] == pytest.approx(sum(gaps), rel=1e-4)
    half = trainer(tmp_path, precision="bf16-true")  # what is summed is not rounded to bfloat16
    [found] = half.test(model, datamodule=data, verbose=False)
    model.eval()
    with torch.no_grad():
        scores = [model(images.bfloat16()).float() for images, *_ in data.test_dataloader()]
    loss = nn.functional.cross_entropy(torch.cat(scores), torch.from_numpy(label))
    assert found["test/loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_a_checkpoint_made_in_python_loads_with_weights_only(tmp_path: Path):
    save = ModelCheckpoint(tmp_path, "x")
    model = classifier(CosLU)
    run = trainer(tmp_path, save, enable_checkpointing=True, max_epochs=1)
    run.fit(model, datamodule=Tiny())
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["backbone"] == "resnet8"
    again = Classifier.load_from_checkpoint(tmp_path / "x.ckpt", activation=CosLU)
    name = "backbone.act1.alpha"
    assert torch.equal(again.get_parameter(name), model.get_parameter(name))


def test_a_diverged_run_stops_and_says_so(tmp_path: Path):
    model = classifier(None)
    model.optimizer = lambda groups: torch.optim.SGD(groups, lr=1e30)
    message = r"training loss is (nan|inf) at the end of epoch 0.*--model.optimizer.lr"
    with pytest.raises(ArithmeticError, match=message):
        trainer(tmp_path).fit(model, datamodule=Tiny())


def test_a_longer_resume_follows_the_new_plan(tmp_path: Path):
    save = ModelCheckpoint(tmp_path, "x")
    first = trainer(tmp_path, save, enable_checkpointing=True, max_epochs=1)
    first.fit(classifier(), datamodule=Tiny())
    model, rates = classifier(), []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    save = ModelCheckpoint(tmp_path / "again", "x")
    longer = trainer(tmp_path, Rates(), save, enable_checkpointing=True, max_epochs=2)
    with pytest.warns(UserWarning, match="dirpath has changed"):
        longer.fit(model, datamodule=Tiny(), ckpt_path=str(tmp_path / "x.ckpt"))
    assert rates[1:] == [
        pytest.approx(0.05 * (1 + math.cos(math.pi * step / 16))) for step in range(9, 16)
    ]
