"""Checkpoints: what they may name, what they know of their network, and damaged files."""

import inspect
import math
import random
import re
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import train
from activations import CosLU, Formula, LinComb
from models import Classifier, load, read_weights
from models.checkpoints import check_given, check_stored
from tests.data import Tiny
from tests.trainings import classifier, trainer

DATA = ["--data", "Digits", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
TOUCH = {"class_path": "os.system", "init_args": {"command": "touch opened"}}


class Own(nn.ReLU):
    """Importable as `tests.models.test_checkpoints.Own`, a package that no file is trusted with."""


def save(file: Path, **options: Any) -> Classifier:
    model = Classifier("resnet8", in_channels=1, **options).eval()
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(file)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    save(file, activation=CosLU)
    return file


def refused(arguments: list[str], capsys: Any) -> str:
    """What a command says that must end with exit code 2 and one sentence."""
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("train.py: error: "))
    assert stopped.value.code == 2, said
    assert "Traceback" not in said
    return line


EVIL: list[Any] = [
    TOUCH,
    "os.system",
    "torch.os.system",
    "torch.nn.functional.relu",
    "torch.nn.modules.module.OrderedDict",
    {"class_path": "torch_evil.Module"},
    {"class_path": "evil.Module"},
    "{class_path: evil.Module}",
    "!!python/object/apply:os.system ['touch opened']",
    {"class_path": "functools.partial", "init_args": {"func": "os.system"}},
    {"class_path": "activations.LinComb", "init_args": {"members": [TOUCH]}},
    {"class_path": "activations.LinComb", "init_args": {"members": "[evil.Module]"}},
    {"class_path": "activations.LinComb", "dict_kwargs": {"members": ["evil.Module"]}},
    {"class_path": "activations.Formula", "init_args": {"formula": "evil.Module(x)"}},
    {"class_path": "activations.Formula", "init_args": {"formula": "{class_path: evil.Module}"}},
    {"class_path": "torch.nn.TripletMarginWithDistanceLoss",
     "init_args": {"distance_function": "builtins.eval"}},
    {"class_path": "activations.__main__.main"},
    {"class_path": "activations.CosLU", "__path__": "/"},
    {"class_path": ["os.system"]},
    {"class_path": {"class_path": "torch.nn.ReLU"}},
    {"class_path": "torch.nn.ReLU", "init_args": [1]},
    {"class_path": "torch.nn.ReLU", "dict_kwargs": 3},
    b"os.system",
]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL, ids=str)
@pytest.mark.parametrize(
    "option", ["activation", "activation_by_site", "optimizer", "lr_scheduler", "backbone_kwargs"]
)
def test_stored_options_name_trusted_classes_alone(
    option: str, evil: Any, tmp_path: Path, monkeypatch: Any
):
    """Whatever an option holds, nothing is imported before its name is known to be trusted."""
    for name in ("evil", "torch_evil"):
        (tmp_path / f"{name}.py").write_text("open('opened', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    value = {"x": evil} if option in ("activation_by_site", "backbone_kwargs") else evil
    if option == "backbone_kwargs" and isinstance(evil, str) and "class_path" not in evil:
        return  # a text there is never imported
    with pytest.raises(ValueError, match=r"^'a.ckpt' (names|has|asks) "):
        check_stored({option: value}, "a.ckpt")
    assert not (tmp_path / "opened").exists()
    assert not {"evil", "torch_evil"} & sys.modules.keys()


def test_no_other_weights_are_read_for_stored_arguments(tmp_path: Path):
    save(file := tmp_path / "a.ckpt")
    known = torch.load(file, weights_only=True)
    for name in ("weights", "weights_backbone", "pretrained", "checkpoint_path"):
        known["hyper_parameters"]["backbone_kwargs"] = {name: "DEFAULT"}
        torch.save(known, file)
        with pytest.raises(ValueError, match=rf"asks for other weights \({name}\)"):
            load(file)
        with pytest.raises(ValueError, match=rf"backbone_kwargs asks for weights \({name}\)"):
            Classifier("resnet8", backbone_kwargs={name: "DEFAULT"})


@pytest.mark.parametrize(
    "given",
    [{"backbone": "timm/resnet10t", "pretrained": True}, {"deep": [{"weights": "DEFAULT"}]}],
    ids=["pretrained", "weights"],
)
def test_no_stored_activation_asks_for_weights(given: dict[str, Any]):
    with pytest.raises(ValueError, match="asks for other weights"):
        check_stored({"activation": {"class_path": "models.Classifier", "init_args": given}}, "a")
    mixture = {"class_path": "activations.LinComb", "init_args": {"weights": [0.5, 0.5]}}
    check_stored({"activation": mixture}, "a")


def test_a_stored_formula_is_a_text(tmp_path: Path):
    formula = "x * sigmoid(beta * x) + abs(-x) ** 2 / 3.5"
    made = partial(Formula, formula=formula, constants={"beta": 0.5})
    x, network = torch.randn(2, 1, 32, 32), save(tmp_path / "x.ckpt", activation=made)
    assert torch.equal(Classifier.load_from_checkpoint(tmp_path / "x.ckpt").eval()(x), network(x))


def test_a_file_of_options_is_no_class(tmp_path: Path, monkeypatch: Any):
    (tmp_path / "options").write_text("class_path: evil.Module")
    monkeypatch.chdir(tmp_path)
    for text in ("options", str(tmp_path / "options")):
        with pytest.raises(ValueError, match="which is no class"):
            check_stored({"activation": text}, "a.ckpt")


def test_train_runs_no_code_of_a_checkpoint(whole: Path, tmp_path: Path, capsys: Any):
    content = torch.load(whole, weights_only=True)
    content["hyper_parameters"]["activation"] = {"class_path": "os.system"}
    torch.save(content, tmp_path / "x.ckpt")
    said = refused(["test", *DATA, "--ckpt_path", str(tmp_path / "x.ckpt")], capsys)
    assert "names 'os.system' as activation" in said
    with pytest.raises(ValueError, match=r"names 'os\.system' as activation"):
        Classifier.load_from_checkpoint(tmp_path / "x.ckpt")


NUMBER, CLASS = [None, "x", True, [1], {"a": 1}], [-3, True, 1.5, [1]]
WRONG: dict[str, list[Any]] = {  # names of options -> values
    "num_classes in_channels image_size dims": [*NUMBER, 1.5, 0, -3],
    "side_size": [*NUMBER, 1.5, -3],
    "label_smoothing activation_lr_scale activation_weight_decay": [*NUMBER, -1, math.nan],
    "pretrained activation_frozen": [None, 1, 0, "x", [True]],
    "match": [None, "x", 1, [True]],
    "share stem init loss compile lr_scheduler_interval": [None, "x", 3, True, ["auto"]],
    "backbone include": [None, 3, False, {"a": 1}, [3]],
    "exclude include_kinds class_weights": [3, {"a": 1}, [None], [True]],
    "checkpoint_path activation_from": [3, True, ["x"]],
    "activation lr_scheduler": CLASS,
    "optimizer": [None, *CLASS],
    "activation_by_site backbone_kwargs data": ["x", 3, [1]],
}


def test_wrong_stored_options_are_told(whole: Path, tmp_path: Path):
    cases = [(option, values) for names, values in WRONG.items() for option in names.split()]
    assert dict(cases).keys() == inspect.signature(Classifier).parameters.keys()
    content, file = torch.load(whole, weights_only=True), tmp_path / "x.ckpt"
    right = dict(content["hyper_parameters"])
    for option, values in cases:
        for value in values:
            content["hyper_parameters"] = right | {option: value}
            torch.save(content, file)
            with pytest.raises(ValueError, match=rf"\b{option}\b"):
                Classifier.load_from_checkpoint(file)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({"num_classes": None}, "stores as num_classes a value of another type, 'None'"),
        ({"image_size": -3}, "stores as image_size -3, not at least 1"),
        ({"lr_scheduler": "StepLr"}, "--model.lr_scheduler 'StepLr' does not fit"),
    ],
)
def test_a_wrong_stored_option_is_one_sentence(
    whole: Path, tmp_path: Path, capsys: Any, stored: dict[str, Any], sentence: str
):
    content = torch.load(whole, weights_only=True)
    content["hyper_parameters"].update(stored)
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(SystemExit) as stopped:
        train.main(["test", *DATA, "--ckpt_path", str(tmp_path / "x.ckpt")])
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert stopped.value.code == 2
    assert len(said) == 1, said  # Lightning adds no line of its own
    assert sentence in said[0]


def test_trust_adds_a_package(tmp_path: Path):
    model = save(tmp_path / "own.ckpt", activation=Own)
    with pytest.raises(ValueError, match=r"Own' as activation.*add --trust tests"):
        Classifier.load_from_checkpoint(tmp_path / "own.ckpt")
    for again in (
        Classifier.load_from_checkpoint(tmp_path / "own.ckpt", trust=["tests"]),
        Classifier.load_from_checkpoint(tmp_path / "own.ckpt", activation=Own),
    ):
        assert len([m for m in again.modules() if isinstance(m, Own)]) == len(model.swapped)


@pytest.mark.parametrize(
    "option",
    [
        "--model.activation os.system",
        "--model.activation torch.nn.functional.relu",
        "--model.activation functools.partial",
        "--model.optimizer os.system",
        "--model.optimizer torch.nn.ReLU",
        "--model.lr_scheduler torch.optim.lr_scheduler.LambdaLR "
        "--model.lr_scheduler.lr_lambda os.system",
        '--model.activation_by_site {"layer1.*":"os.system"}',
        '--model.activation {"class_path":"activations.LinComb","init_args":'
        '{"members":["os.system"]}}',
        '--data.augment [{"class_path":"torchvision.transforms.v2.Lambda",'
        '"init_args":{"lambd":"os.system"}}]',
    ],
)
def test_functions_are_no_options(option: str, capsys: Any):
    refused(["fit", *DATA, *option.split(" ")], capsys)


def test_classes_and_transforms_are_options():
    from torchvision import datasets
    from torchvision.transforms.v2 import functional

    check_given({"class_path": "torch.nn.GELU", "init_args": {}}, "model.activation")
    check_given({"init_args": {"lambd": functional.invert}}, "data.augment")
    check_given({"class_path": f"{__name__}.Own"}, "model.activation")
    folder = {"class_path": "torchvision.datasets.ImageFolder", "init_args": {"root": "x"}}
    folder["init_args"]["loader"] = datasets.folder.default_loader  # the default of the class
    check_given(folder, "data.dataset")
    folder["init_args"]["loader"] = datasets.folder.pil_loader
    with pytest.raises(ValueError, match=r"dataset\.loader cannot be torchvision.*pil_loader"):
        check_given(folder, "data.dataset")
    with pytest.raises(ValueError, match=r"backbone_kwargs\.x cannot be subprocess\.Popen"):
        check_given({"x": {"class_path": "subprocess.Popen"}}, "model.backbone_kwargs")


@pytest.mark.parametrize(
    "options",
    [
        {"activation": nn.GELU},
        {"activation": partial(CosLU, alpha=0.5)},
        {"activation": partial(LinComb, members=[nn.ReLU, partial(nn.ELU, alpha=0.5)])},
        {"activation_by_site": {"layer1.*": nn.SiLU}},
        {
            "optimizer": partial(torch.optim.AdamW, lr=1e-3),
            "lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=3),
        },
    ],
    ids=str,
)
def test_a_checkpoint_knows_its_network(options: dict[str, Any], tmp_path: Path):
    """Also a network that was made in Python; and once more after a second round."""
    model = save(tmp_path / "a.ckpt", **options)
    images = torch.randn(2, 1, 32, 32)
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert torch.equal(again(images), model(images))
    assert {name: again.hparams[name] for name in options} == {
        name: model.hparams[name] for name in options
    }
    if "optimizer" in options:
        optimizer = again.optimizer([nn.Parameter(torch.zeros(1))])
        assert isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.param_groups[0]["lr"] == 1e-3


def test_a_checkpoint_says_what_it_could_not_store(tmp_path: Path, capsys: Any):
    model = save(tmp_path / "a.ckpt", activation=lambda: nn.GELU())
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"lacks its activation \(.*<lambda>.*give it, activation"):
        Classifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert "lacks its activation" in refused(
        ["test", *DATA, "--ckpt_path", str(tmp_path / "a.ckpt")], capsys
    )
    images = torch.randn(2, 1, 32, 32)
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", activation=nn.GELU).eval()
    assert torch.equal(again(images), model(images))


class Evil:
    """A pickle that would make a file."""

    def __reduce__(self) -> Any:
        return exec, ("open('opened', 'w')",)


class Foreign(LightningModule):
    """A module of another program."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 2)


def damage(kind: str, whole: Path, file: Path, draw: random.Random) -> None:
    """Make a `file` of one kind that is no whole checkpoint of this program."""
    data = bytearray(whole.read_bytes())
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncated":
        file.write_bytes(data[: draw.randrange(1, len(data))])
    elif kind == "flipped":
        # a tensor's bytes; elsewhere a flip may change nothing that is read
        start = len(data) // 4
        data[draw.randrange(start, len(data) // 2)] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    elif kind == "noise":
        file.write_bytes(draw.randbytes(1000))
    elif kind == "folder":
        file.mkdir()
    elif kind == "code":
        torch.save({"state_dict": Evil()}, file)
    elif kind == "bare":
        torch.save(torch.load(whole, weights_only=True)["state_dict"], file)
    elif kind == "foreign":
        trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
        trainer.strategy.connect(Foreign())
        trainer.save_checkpoint(file)
    else:
        content = torch.load(whole, weights_only=True)
        if kind == "network":
            content["hyper_parameters"]["backbone"] = "resnet14"
        else:
            content["hyper_parameters"]["num_classes"] = 7
            for name in ("backbone.fc.weight", "backbone.fc.bias"):
                content["state_dict"][name] = content["state_dict"][name][:7].clone()
        torch.save(content, file)


KINDS = {
    "empty": "it is empty",
    "truncated": "cannot be read",
    "flipped": "cannot be read .*checksum",
    "noise": "cannot be read",
    "folder": "holds no checkpoint",
    "code": "names the code '.*exec', which was not run",
    "bare": "is no checkpoint of this program.*--model.checkpoint_path",
    "foreign": "of another program",
    "network": "is of another network",
    "classes": "was trained on 7 classes, the data have 10",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_or_foreign_file_gets_one_sentence(
    kind: str, whole: Path, tmp_path: Path, capsys: Any
):
    file = tmp_path / "other.ckpt"
    damage(kind, whole, file, random.Random(0))
    said = refused(["test", *DATA, "--ckpt_path", str(file)], capsys)
    assert "other.ckpt" in said
    assert re.search(KINDS[kind], said), said


@pytest.mark.slow
def test_many_damaged_files(whole: Path, tmp_path: Path, capsys: Any):
    """97 files at random, by both options that take one."""
    draw = random.Random(0)
    for number in range(97):
        kind = draw.choice(["truncated", "flipped", "noise", *KINDS])
        file = tmp_path / f"{number}.ckpt"
        damage(kind, whole, file, draw)
        said = refused(["predict", *DATA, "--ckpt_path", str(file)], capsys)
        assert file.name in said, (kind, said)
        if kind in ("empty", "truncated", "flipped", "noise", "folder", "code"):
            with pytest.raises((ValueError, FileNotFoundError), match=file.name):
                read_weights(file)
    assert not Path("opened").exists()


def test_a_checkpoint_knows_its_data(tmp_path: Path):
    """As they were, whatever the class names look like to YAML; own modules may tell nothing."""
    names, data = ("null", "1.0", "{a: 1}"), Tiny()
    data.class_names = names
    keep = ModelCheckpoint(tmp_path, "a")
    trainer(tmp_path, keep, enable_checkpointing=True, max_steps=1).fit(classifier(CosLU), data)
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]["data"]
    assert stored == {
        "name": "Tiny", "class_names": list(names), "dims": 2, "channels": 1, "size": 8,
        "mean": [0.5], "std": [0.3],
        "resize": "shorter side to size, bilinear; then the square in the middle",
    }  # fmt: skip
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.hparams["data"] == stored
    plain = Tiny()
    plain.setup("fit")
    trainer(tmp_path, max_steps=1).fit(again, plain.train_dataloader(), plain.val_dataloader())
    assert again.hparams["data"] == stored


def test_no_class_that_fetches_weights_is_trusted():
    teacher = {"class_path": "timm.task.DistillationTeacher", "init_args": {"num_classes": 2}}
    for name in (
        "timm.task.DistillationTeacher",
        "torchvision.models.resnet18",
        "models.Classifier",
    ):
        with pytest.raises(ValueError, match="which is neither torch's nor this project's"):
            check_stored({"activation": teacher | {"class_path": name}}, "a.ckpt")
    for name in ("timm.layers.Swish", "torch.nn.GELU", "activations.CosLU"):
        check_stored({"activation": {"class_path": name}}, "a.ckpt")
    with pytest.raises(ValueError, match=r"asks for other weights \(activation_from\)"):
        check_stored({"activation_from": "/any/file"}, "a.ckpt")


def test_a_bit_that_hides_numbers_from_torch_is_noticed(tmp_path: Path):
    """torch leaves out what the table of contents calls a folder; its memory stays as it was."""
    save(file := tmp_path / "a.ckpt")
    with zipfile.ZipFile(file) as archive:
        parts = {each: archive.read(each) for each in archive.infolist()}
    for attribute, kind in ((0x10, zipfile.ZIP_STORED), (0, zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as archive:
            for number, (about, content) in enumerate(parts.items()):
                info = zipfile.ZipInfo(about.filename)
                if number == 3:
                    info.external_attr, info.compress_type = attribute, kind
                archive.writestr(info, content)
        with pytest.raises(ValueError, match="is no stored file"):
            load(tmp_path / "b.ckpt")
