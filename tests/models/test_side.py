"""Numbers beside each sample: how they reach a network, are standardised, and stay with it."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

import models
from activations import CosLU, set_progress
from callbacks import HeadFirst
from models import Classifier
from models.build import build_network
from models.checkpoints import check_fits
from models.deployed import deployed
from models.side import class_scores, side_of
from tests.data import Tiny
from tests.trainings import classifier, trainer


@dataclass(kw_only=True, eq=False, repr=False)
class Beside(Tiny):
    """Tiny with three numbers beside each image: the last never changes."""

    side_size = 3

    def load_side(self, split: Literal["train", "test"]) -> Tensor:
        labels = self.load(split)[1]
        noise = torch.randn(len(labels), generator=torch.Generator().manual_seed(0))
        return torch.stack([100 + 5 * noise, 0.01 * labels, torch.full_like(noise, 7.0)], 1)


def network(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("resnet8", 3, 1, 8, **{"side_size": 3, **options})[0].eval()


def test_it_is_joined_ahead_of_the_last_layer():
    """In NumPy: the hidden layer stands beside the features, and one linear layer takes both."""
    made, x, side = network(), torch.randn(5, 1, 8, 8), torch.randn(5, 3) * 4 + 2
    part = side_of(made)
    assert part is not None
    part.standardise(torch.tensor([2.0, -1, 7]), torch.tensor([4.0, 0.5, 0]))
    features: list[Tensor] = []
    made.get_submodule("fc").register_forward_pre_hook(lambda _, args: features.append(args[0]))
    found = class_scores(made, x, side).detach()

    state = {name: value.double().numpy() for name, value in made.state_dict().items()}
    z = (side.double().numpy() - [2, -1, 7]) / [4, 0.5, 1]
    hidden = np.maximum(z @ state["side.hidden.weight"].T + state["side.hidden.bias"], 0)
    joined = np.concatenate([features[0].detach().double().numpy(), hidden], 1)
    weight = np.concatenate([state["fc.weight"], state["side.out.weight"]], 1)
    np.testing.assert_allclose(found, joined @ weight.T + state["fc.bias"], atol=1e-5)


def test_the_network_itself_is_the_same_with_and_without():
    """The same draws, names and activations: weights of the one start the other."""
    plain, made = network(side_size=0).state_dict(), network().state_dict()
    assert all(torch.equal(value, made[name]) for name, value in plain.items())
    assert {name.partition(".")[0] for name in made.keys() - plain.keys()} == {"side"}
    assert side_of(network(side_size=0)) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose samples have numbers beside them."""
    folder = tmp_path_factory.mktemp("run")
    kept = ModelCheckpoint(folder / "checkpoints", "best")
    average = EMAWeightAveraging(decay=0.5, use_buffers=False)
    fit = trainer(folder, kept, average, enable_checkpointing=True, max_epochs=2)
    fit.fit(classifier(partial(CosLU, num_parameters=1), side_size=3), Beside())
    fit.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


def test_a_training_standardises_over_its_own_samples(run: Path):
    data = Beside()
    data.setup("fit")
    side = data.load_side("train")[data.train_indices].double()
    model = Classifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    part = side_of(model.backbone)
    assert part is not None
    torch.testing.assert_close(part.mean, side.mean(0).float())
    wanted = [*side.std(0, correction=0).float()[:2], 1]
    torch.testing.assert_close(part.std, torch.tensor(wanted))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # without its callbacks
def test_a_resumed_run_keeps_its_standardisation(run: Path, tmp_path: Path):
    class Other(Beside):
        def load_side(self, split: Literal["train", "test"]) -> Tensor:
            return super().load_side(split) + 50

    model = classifier(partial(CosLU, num_parameters=1), side_size=3)
    path = str(run / "checkpoints" / "last.ckpt")
    trainer(tmp_path, max_epochs=3).fit(model, Other(), ckpt_path=path)
    part, before = side_of(model.backbone), side_of(models.load(path).backbone)
    assert part is not None
    assert before is not None
    assert torch.equal(part.mean, before.mean)
    assert not torch.equal(part.out.weight, before.out.weight)


def test_validation_prediction_and_a_loaded_network_agree(run: Path, tmp_path: Path):
    data, path = Beside(), run / "checkpoints" / "best.ckpt"
    model = Classifier.load_from_checkpoint(path).eval()
    parts: Any = trainer(tmp_path).predict(model, datamodule=data)
    found = torch.cat([part["probability"] for part in parts])
    made = models.load(run)
    batches = list(data.test_dataloader())
    expected = torch.cat([made(images, side) for images, _, _, side in batches]).softmax(1)
    torch.testing.assert_close(found, expected)
    images, _, index, side = batches[1]
    assert torch.equal(side, data.load_side("test")[index])
    assert not torch.allclose(made(images, side), made(images, side.flip(0)))
    with pytest.raises(ValueError, match=r"takes 3 numbers beside each sample, \(N, 3\), which"):
        made(images)
    with pytest.raises(ValueError, match=r"side input of shape \(7, 2\) does not fit.*\(N, 3\)"):
        made(images, side[:, :2])
    with pytest.raises(ValueError, match="samples need as many rows of side input, got 1"):
        made(images, side[:1])
    with pytest.raises(ValueError, match="this network takes no side input"):
        Classifier("resnet8", 3, 1, 8)(images, side)


def test_training_learns_from_the_numbers(tmp_path: Path):
    """Images without content: all that tells the classes apart is beside them."""

    class Blind(Beside):
        def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
            images, labels = super().load(split)
            return torch.zeros_like(images), labels

    fit = trainer(tmp_path, max_epochs=8)
    fit.fit(classifier(nn.ReLU, side_size=3), Blind())
    assert fit.callback_metrics["val/acc"] == 1


def test_weights_of_a_network_without_start_one_with(tmp_path: Path, run: Path):
    torch.save(network(1, side_size=0).state_dict(), tmp_path / "plain.pth")
    path = str(tmp_path / "plain.pth")
    made = Classifier("resnet8", 3, 1, 8, side_size=3, checkpoint_path=path).backbone.state_dict()
    assert torch.equal(made["conv1.weight"], network(1).state_dict()["conv1.weight"])
    with pytest.warns(UserWarning, match="3 classes, the data 4: the layer 'fc' starts untrained"):
        Classifier("resnet8", 4, 1, 8, partial(CosLU, num_parameters=1), side_size=3,
                   checkpoint_path=str(run / "checkpoints" / "best.ckpt"))  # fmt: skip


def test_a_folded_network_keeps_it():
    """VanillaNet's deployed form is a new network."""
    small = {"width": 8}
    vanilla = build_network("vanillanet5", 3, 1, 32, backbone_kwargs=small, side_size=3)[0].eval()
    set_progress(vanilla, 1.0)
    x, side = torch.randn(4, 1, 32, 32), torch.randn(4, 3)
    found, expected = (class_scores(each, x, side) for each in (deployed(vanilla), vanilla))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_head_first_trains_the_side_too(tmp_path: Path):
    model = classifier(nn.ReLU, side_size=3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer(tmp_path, HeadFirst(2), max_epochs=1).fit(model, Beside())
    after = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        f"backbone.{name}"
        for name in ("fc.weight", "fc.bias", "side.hidden.weight", "side.hidden.bias",
                     "side.out.weight")
    }  # fmt: skip


def test_what_cannot_be_mixed_is_refused():
    from torchvision.transforms import v2

    data = Beside(mix=v2.MixUp(num_classes=3))
    data.setup("fit")
    with pytest.raises(ValueError, match="mix cannot mix the 3 numbers beside each sample"):
        data.train_dataloader()


def test_data_with_other_numbers_are_told(run: Path):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for size, has in ((0, "none"), (4, "4")):
        other = classifier(partial(CosLU, num_parameters=1), side_size=size)
        with pytest.raises(
            ValueError, match=f"on 3 numbers beside each sample, the data have {has}"
        ):
            check_fits(other, content, "x")
    del content["hyper_parameters"]["side_size"]  # of an earlier version
    with pytest.raises(ValueError, match="is of another network"):
        check_fits(classifier(nn.ReLU), content, "x")


def test_a_stored_size_is_checked(run: Path, tmp_path: Path):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert json.loads(json.dumps(content["hyper_parameters"]["side_size"])) == 3
    for size, message in ((10**9, "more than"), (-1, "not at least 0"), ("x", "another type")):
        content["hyper_parameters"]["side_size"] = size
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match=f"stores as side_size .*{message}"):
            models.load(tmp_path / "x.ckpt")
