"""A trained network as a plain module: what it computes, what it knows, and what it refuses."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import models
from activations import CosLU, DSReLU, Formula, LinComb, fuse
from models import Classifier
from models.build import build_network
from models.network import OPTIONS, TRAINING
from tests.data import Tiny
from tests.models.test_checkpoints import EVIL, KINDS, save
from tests.test_layout import ROOT
from tests.trainings import classifier, trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has a best and a last checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    best = ModelCheckpoint(folder / "checkpoints", "best")
    fit = trainer(folder, best, enable_checkpointing=True, max_epochs=2)
    model = classifier(partial(CosLU, num_parameters=1))
    fit.fit(model, Tiny())
    nn.init.ones_(model.backbone.get_parameter("fc.weight"))
    fit.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


def test_every_option_is_one_of_a_network_or_of_a_training():
    from inspect import signature

    own = set(signature(Classifier).parameters)
    assert {*OPTIONS, "data"} | TRAINING == own
    assert not {*OPTIONS, "data"} & TRAINING
    of_classifier, of_network = (signature(each).parameters for each in (Classifier, build_network))
    for name in OPTIONS:
        assert of_classifier[name].default == of_network[name].default, name
        assert of_classifier[name].annotation == of_network[name].annotation, name


def test_it_is_the_network_that_was_tested(run: Path):
    """To the bit, from a folder or a file; its random numbers are nobody's."""
    state = torch.get_rng_state()
    network, last = models.load(run), models.load(run / "checkpoints" / "last.ckpt")
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert network.class_names == Tiny.class_names
    assert network.input_shape == (1, 8, 8)
    data = Tiny()
    data.setup("test")
    images = next(iter(data.test_dataloader()))[0]
    for made, name in ((network, "best"), (last, "last")):
        path = run / "checkpoints" / f"{name}.ckpt"
        assert torch.equal(made(images), Classifier.load_from_checkpoint(path).eval()(images))
    assert not torch.equal(network(images), last(images))
    assert torch.equal(network.preprocess(data.load("test")[0][3]), images[3:4])
    assert models.load(run / "checkpoints").source == network.source


LIGHT = """
import sys, torch, models
network = models.load(sys.argv[1])
print(network(network.preprocess(torch.zeros(1, 8, 8, dtype=torch.uint8))).shape)
heavy = "lightning lightning_fabric pytorch_lightning torchmetrics jsonargparse timm torchvision"
print({name.partition(".")[0] for name in sys.modules} & {*heavy.split()})
"""


def test_no_lightning_is_imported(run: Path):
    done = subprocess.run([sys.executable, "-c", LIGHT, str(run)], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.splitlines() == ["torch.Size([1, 3])", "set()"], done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"activation": partial(DSReLU, a=1.5), "share": "stage"},
        {"activation": partial(LinComb, members=[nn.ReLU, partial(nn.ELU, alpha=0.5)])},
        {"activation": partial(Formula, formula="x * sigmoid(b * x)", constants={"b": 2.0})},
        {"activation_by_site": {"layer1.*": nn.SiLU}, "activation": CosLU},
        {"activation": CosLU, "match": "fade", "init": "kaiming"},
        {"optimizer": partial(torch.optim.AdamW, lr=1e-3), "compile": "activations"},
        {"dims": 1, "image_size": 64, "share": "channel", "activation": CosLU},
        {"activation": CosLU, "exclude": ["layer1.*"], "backbone_kwargs": {}},
    ],
    ids=str,
)
def test_stored_options_build_the_same_network(options: dict[str, Any], tmp_path: Path):
    model = save(tmp_path / "a.ckpt", **options)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.01)
    trainer(tmp_path).strategy.connect(model)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    torch.save(content | {"state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    network = models.load(tmp_path / "a.ckpt")
    size = options.get("image_size", 32)
    images = torch.randn(2, 1, *[size] * options.get("dims", 2))
    assert torch.equal(network(images), model(images))
    assert network.class_names == tuple("0123456789")
    fuse(network)


def test_what_was_not_stored_is_asked_for(tmp_path: Path):
    model = save(tmp_path / "a.ckpt", activation=lambda: nn.GELU())
    with pytest.raises(ValueError, match=r"lacks its activation .*give it, activation=\.\.\."):
        models.load(tmp_path / "a.ckpt")
    images = torch.randn(2, 1, 32, 32)
    again = models.load(tmp_path / "a.ckpt", activation=nn.GELU, data=Tiny().description)
    assert again.class_names == ("dark", "grey", "light", *"3456789")
    assert torch.equal(again.backbone(images), model(images))
    with pytest.raises(ValueError, match=r"does not know how its data were prepared"):
        models.load(tmp_path / "a.ckpt", activation=nn.GELU).preprocess(images[0])


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (
            torch.zeros(2, 3, 8, 8),
            r"\(2, 3, 8, 8\) does not fit: this network takes \(N, 1, 8, 8\)",
        ),
        (torch.zeros(2, 1, 9, 9), r"\(2, 1, 9, 9\) does not fit"),
        (torch.zeros(1, 8, 8), r"\(1, 8, 8\) does not fit"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "must be of torch.float32, got torch.uint8"),
    ],
    ids=str,
)
def test_another_batch_gets_one_sentence(run: Path, batch: torch.Tensor, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        models.load(run)(batch)


def change(run: Path, file: Path, **options: Any) -> Path:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["hyper_parameters"].update(options)
    torch.save(content, file)
    return file


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 10**9}, "stores as num_classes 1000000000, more than 64"),
        ({"in_channels": 10**9}, "stores as in_channels 1000000000, more than 64"),
        ({"image_size": 10**6}, "stores as image_size 1000000, more than 8192"),
        ({"backbone": "resnet14"}, "is of another network"),
        ({"backbone": "nothing"}, "describes no network that can be built: unknown backbone"),
        ({"backbone_kwargs": {"depth": 3}}, "describes no network that can be built"),
        ({"activation": {"class_path": "activations.CosLU", "init_args": {"gamma": 1.0}}},
         "describes no network that can be built: .*gamma"),
        ({"activation": "evil"}, "names 'evil' as activation, which is no class"),
        ({"activation_by_site": {"*": "evil"}}, "names 'evil' as activation, which is no class"),
        ({"data": [1]}, "stores as data a value of another type"),
        ({"data": {"name": "x"}}, "stores a description of its data that cannot be right"),
        ({"data": Tiny().description | {"channels": 3, "mean": [0, 0, 0], "std": [1, 1, 1]}},
         "stores data with 2 dimensions, 3 channels and 3 classes for a network of 2, 1 and 3"),
        ({"data": Tiny().description | {"class_names": [*"abcd"]}}, "4 classes for a network"),
        ({"data": Tiny().description | {"size": 10**9}}, "cannot be right .size ?"),
        ({"strange": 1}, "of another program"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_checkpoint_gets_one_sentence(
    run: Path, tmp_path: Path, options: dict[str, Any], sentence: str, monkeypatch: Any
):
    (tmp_path / "evil.py").write_text("open('opened', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = change(run, tmp_path / "x.ckpt", **options)
    with pytest.raises(ValueError, match=sentence) as told:
        models.load(file)
    assert "x.ckpt" in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "opened").exists()


def test_a_tensor_is_as_large_as_it_says(run: Path, tmp_path: Path):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"]["backbone.fc.bias"] = torch.zeros(1).expand(10**12)
    content["hyper_parameters"]["num_classes"] = 10**12
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="of another program"):
        models.load(tmp_path / "x.ckpt")


def test_a_folder_without_a_network(tmp_path: Path):
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"version_0' holds no checkpoint .*finished an epoch"
    ):
        models.load(tmp_path / "version_0")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        models.load(tmp_path / "none.ckpt")


def exported(run: Path, folder: Path, content: Any) -> Path:
    """As an export with its weights: config.json and the state of the backbone."""
    folder.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text)
    state = models.load(run).backbone.state_dict()
    save_file({n: v.contiguous() for n, v in state.items()}, folder / "model.safetensors")
    return folder


def plain(run: Path) -> dict[str, Any]:
    stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    return {"options": {name: stored[name] for name in OPTIONS}, "data": stored["data"]}


def test_an_exported_folder_is_a_network_too(run: Path, tmp_path: Path):
    folder = exported(run, tmp_path / "export", plain(run))
    network, images = models.load(folder), torch.randn(2, 1, 8, 8)
    assert torch.equal(network(images), models.load(run)(images))
    assert network.class_names == Tiny.class_names
    assert torch.equal(models.load(folder / "model.safetensors")(images), network(images))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors"):
        models.load(folder)


@pytest.mark.parametrize("evil", EVIL, ids=str)
def test_config_json_names_trusted_classes_alone(
    run: Path, tmp_path: Path, evil: Any, monkeypatch: Any
):
    for name in ("evil", "torch_evil"):
        (tmp_path / f"{name}.py").write_text("open('opened', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    content = plain(run)
    content["options"]["activation"] = "b" if isinstance(evil, bytes) else evil
    with pytest.raises(ValueError, match=r"config.json' (names|has|stores)"):
        models.load(exported(run, tmp_path / "export", content))
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "describes no network of this program"),
        ("[1]", "describes no network of this program"),
        ("{}", "describes no network of this program"),
        ('{"options": 3}', "describes no network of this program"),
        ("[" * 200_000, "describes no network of this program"),
        ('{"options": {"strange": 1}}', "has the option 'strange'"),
        ('{"options": {"num_classes": 1e300}}', "stores as num_classes a value of another type"),
        ('{"options": {"pretrained": true}}', "has the option 'pretrained'"),
        ('{"options": {"backbone": ["a"]}}', "stores as backbone a value of another type"),
        ('{"options": {"in_channels": 99999}}', "stores as in_channels 99999, more than 64"),
        ('{"options": {"data": {}}, "data": "x"}', "stores as data a value of another type"),
    ],
    ids=lambda x: x[:40],
)
def test_a_wrong_config_json_gets_one_sentence(
    run: Path, tmp_path: Path, content: str, sentence: str
):
    folder = exported(run, tmp_path / "export", content)
    with pytest.raises(ValueError, match=sentence) as told:
        models.load(folder)
    assert "config.json" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_change_that_is_none_and_a_file_that_may_not_be_read(run: Path, monkeypatch: Any):
    with pytest.raises(TypeError, match=r"takes no 'depth'; what can be changed are backbone, "):
        models.load(run, depth=3)

    def forbidden(*args: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(PermissionError):
        models.load(run)


def test_damaged_files(run: Path, tmp_path: Path):
    import random

    from tests.models.test_checkpoints import damage

    whole = run / "checkpoints" / "best.ckpt"
    for kind in set(KINDS) - {"classes"}:
        file = tmp_path / f"{kind}.ckpt"
        damage(kind, whole, file, random.Random(0))
        with pytest.raises((ValueError, FileNotFoundError), match=kind) as told:
            models.load(file)
        assert "\n" not in str(told.value)
    folder = exported(run, tmp_path / "export", plain(run))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors' cannot be read as weights"):
        models.load(folder)


@pytest.mark.parametrize("page", ["README.md", "docs/deploy.md"])
def test_the_lines_of_the_pages_run(page: str, run: Path, tmp_path: Path, capsys: Any):
    text = (ROOT / page).read_text()
    code = next(c for c in text.split("```python\n")[1:] if "models.load(" in c).partition("```")[0]
    Image.new("RGB", (30, 20), "white").save(tmp_path / "photo.png")
    for written, real in (("runs/.../version_0", run), ("photo.png", tmp_path / "photo.png")):
        assert written in code
        code = code.replace(written, str(real))
    exec(code, {})
    assert capsys.readouterr().out.strip() in Tiny.class_names
