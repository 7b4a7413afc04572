"""`python train.py export`: files that agree with the checkpoint, or none at all."""

import json
import math
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn

import train
from activations import ACONC, CosLU, DiTAC, DSReLU, Rational, Swish
from datamodules import MITBIH, Digits
from export import Samples, check_target, data_of, every, with_data
from models import Classifier, hub, load, read_weights
from models.deployed import Raw, deployed
from models.export import FILES, compare, tolerance, write
from models.hub import push
from models.program import read
from tests.cases import CASES, Case
from tests.data import Tiny, write_records
from tests.models.test_checkpoints import refused

DATA = ["--data", "tests.data.Tiny"]
PROGRAM = re.search(
    r'```python\n("""Usage: python classify.*?)```',
    (Path(__file__).parents[1] / "docs/deploy.md").read_text(),
    re.DOTALL,
)


def save(file: Path, activation: Any = CosLU, **options: Any) -> Classifier:
    """A checkpoint of an untrained network that knows its data, as after a training."""
    torch.manual_seed(1)
    model = Classifier("resnet8", 3, 1, 8, activation, data=Tiny().description, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean += torch.randn_like(module.running_mean)
            if type(module).__module__.startswith("activations."):
                for parameter in module.parameters(recurse=False):
                    parameter += 0.2 * torch.randn_like(parameter)
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(file)
    return model.eval()


def export(file: Path, output: Path, *more: str) -> None:
    train.main(["export", "--ckpt_path", str(file), "--output", str(output), *more])


def test_the_files_hold_the_network_and_what_it_knows(tmp_path: Path, capsys: Any):
    """All formats and int8 at once, of raw images; a program without torch names the classes."""
    pytest.importorskip("openvino")
    file, output = tmp_path / "best.ckpt", tmp_path / "made"
    model = save(file)
    formats = ["onnx", "pt2", "openvino", "hub"]
    more = ["--include_preprocessing", "true", "--int8", "--license", "mit"]
    export(file, output, *DATA, *more, "--format", *formats)
    said = capsys.readouterr().out
    assert said.count("same class 23 of 23") == 4
    assert "validation samples" in said
    assert sorted(each.name for each in output.iterdir()) == [
        "README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors",
        "model_int8.onnx", "openvino",
    ]  # fmt: skip

    with pytest.raises(ValueError, match=r"takes raw data \(--include_preprocessing\): run it"):
        load(output / "model.onnx")
    pixels, _ = Tiny().load("test")
    expected = model((pixels / 255 - 0.5) / 0.3).detach()
    for name in ("onnx", "pt2", "openvino"):
        torch.testing.assert_close(read(output / FILES[name])(pixels), expected)
    state = read_weights(output / "model.safetensors")
    assert all(torch.equal(state[k], v) for k, v in model.backbone.state_dict().items())

    content = json.loads((output / "config.json").read_text())
    assert content["class_names"] == ["dark", "grey", "light"]
    assert content["data"] == Tiny().description
    assert content["options"]["activation"]["class_path"].endswith("CosLU")
    assert content["learned"]["act1.alpha"] == model.backbone.get_parameter("act1.alpha").tolist()
    import onnx
    import openvino

    kept = {
        each.key: json.loads(each.value) for each in onnx.load(output / "model.onnx").metadata_props
    }
    assert kept == {name: value for name, value in content.items() if name != "int8"}
    extra = {"config.json": ""}
    torch.export.load(output / "model.pt2", extra_files=extra)
    assert json.loads(extra["config.json"]) == kept
    made = openvino.Core().read_model(output / "openvino/model.xml")
    assert json.loads(made.get_rt_info(["supple", "class_names"]).value) == kept["class_names"]

    card = (output / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: supple\nlicense: mit\n")
    assert "# resnet8 with CosLU activations on Tiny" in card
    assert "| `alpha` | 7 |" in card

    assert PROGRAM is not None
    np.save(tmp_path / "samples.npy", pixels.numpy())
    code = PROGRAM[1] + "\nassert not {'torch', 'activations', 'models'} & set(sys.modules)\n"
    (tmp_path / "classify.py").write_text(code)
    call = [sys.executable, "classify.py", "made/model.onnx", "samples.npy"]
    names = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert names.split() == [Tiny.class_names[k] for k in expected.argmax(1).tolist()]


@pytest.mark.parametrize(
    "kind",
    [
        DiTAC,
        pytest.param(Rational, marks=pytest.mark.slow),
        pytest.param(partial(DSReLU, a=1.5, b=0.5), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_three_functions_agree_in_all_formats(kind: Any, tmp_path: Path, capsys: Any):
    """Without data, on random inputs; a schedule in its middle stays there, and this is said."""
    pytest.importorskip("openvino")
    file = tmp_path / "best.ckpt"
    save(file, kind, include=["act1"])  # seven calls would take longer
    export(file, tmp_path / "made", "--format", "onnx", "pt2", "openvino")
    said = capsys.readouterr().out
    assert said.count("same class 128 of 128") == 3
    assert ("middle of a schedule" in said) == isinstance(kind, partial)
    assert "128 random inputs, since no data were given (--data)" in said
    x = torch.rand(3, 1, 8, 8)
    for name in ("onnx", "openvino"):
        network, file = load(tmp_path / "made" / FILES[name]), tmp_path / "made" / FILES[name]
        assert network.class_names == ("dark", "grey", "light")
        y = network(network.preprocess(x[0]))
        torch.testing.assert_close(y, read(file)((x[:1] - 0.5) / 0.3))
        for wrong in (x[:, :, :7], x.expand(3, 2, 8, 8), x[0], x[..., None], x.double(), x.numpy()):
            shape = re.escape(str(tuple(wrong.shape)))
            sentence = rf"a batch of shape {shape} does not fit: this network takes \(N, 1, 8, 8\)"
            if wrong.shape == x.shape:
                sentence = "must be of torch.float32, got torch.float64|a tensor, got ndarray"
            with pytest.raises((ValueError, TypeError), match=sentence):
                network(wrong)
        with pytest.raises(ValueError, match=r"is a program, whose activation cannot be changed"):
            load(file, activation=CosLU)
        file.write_bytes(b"no network")
        with pytest.raises(ValueError, match=r"is damaged, or no network that this program"):
            load(file)
    with pytest.raises(ValueError, match=r"can hold code: if you trust it"):
        load(tmp_path / "made/model.pt2")
    with pytest.raises(FileNotFoundError, match=r"no exported file at"):
        load(tmp_path / "none.onnx")


def test_functions_become_tables(tmp_path: Path, capsys: Any):
    """The programs hold tables, made for validation samples; the weights hold the formulas."""
    file, output = tmp_path / "best.ckpt", tmp_path / "made"
    model = save(file, include=["act1", "layer1.*"])
    data = Tiny()
    data.setup("validate")
    batches = [(model(x).detach(), y) for x, y, *_ in data.val_dataloader()]
    right = torch.cat([y.argmax(1) == labels for y, labels in batches]).double().mean().item()
    (output / "openvino").mkdir(parents=True)  # an earlier export, which is replaced
    (output / "openvino/model.xml").write_text("")
    (output / "config.json").write_text('{"schema": 1, "options": {}, "code": "0.1"}')
    export(file, output, *DATA, "--tabulate", "0.01", "--format", "onnx", "hub")
    assert [each.name for each in tmp_path.iterdir() if each != file] == ["made"]
    assert not (output / "openvino").exists()
    said = capsys.readouterr().out
    assert re.search(r"\nact1 +CosLU .*\nlayer1.0.act1 +CosLU ", said)
    assert "left: ReLU (is not of this package): layer2.0.act1, " in said
    assert "compared with the network that has them: on the test set of Tiny the class" in said
    assert said.count("same class 23 of 23") == 2

    stored = json.loads((output / "config.json").read_text())["tables"]
    assert stored.pop("largest_error") <= 0.01
    sites = ["act1", "layer1.0.act1", "layer1.0.act2"]
    assert stored.pop("val/acc before") == pytest.approx(right)
    assert abs(stored.pop("after") - right) < 0.2
    count = sum(len(labels) for _, labels in batches)
    assert stored == {"tolerance": 0.01, "sites": sites, "samples": count}
    import onnx

    operators = [node.op_type for node in onnx.load(output / "model.onnx").graph.node]
    assert operators.count("GatherElements") == 6
    assert "Cos" not in operators
    x, _ = next(iter(data.val_dataloader()))[:2]
    y, tabled = model(x).detach(), read(output / FILES["onnx"])(x)
    assert 1e-6 < (tabled - y).abs().max() / y.abs().max() < 0.1
    assert torch.equal(load(output).backbone(x), model.backbone(x))
    assert "| Functions in the files | tables" in (output / "README.md").read_text()


class Log1p(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(x)


def test_small_numbers_keep_their_digits(tmp_path: Path):
    """AGLU's exponent is a logarithm of nearly 1, times up to 10,000: log(1 + x) would not do."""
    pytest.importorskip("openvino")
    size = np.geomspace(1e-7, 0.99, 200)
    x = np.concatenate([-size, size, np.geomspace(0.99, 1e6, 200), [0.0]]).astype(np.float32)
    batch = torch.as_tensor(x)[:, None]
    write(Log1p(), (batch[:2],), ["onnx", "openvino"], tmp_path, {})
    for name in ("onnx", "openvino"):
        found = read(tmp_path / FILES[name])(batch).numpy()[:, 0]
        np.testing.assert_allclose(found, np.log1p(x.astype(np.float64)), rtol=2e-6)


def test_a_learned_gate_is_one_kernel_of_onnx_runtime(tmp_path: Path):
    """Swish and ACON-C: it knows x sigmoid(b x), if nothing else is between them."""
    import onnx
    import onnxruntime

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Swish(beta=1.3), nn.Conv2d(4, 4, 3), ACONC())
    write(deployed(network), (torch.randn(2, 3, 8, 8),), ["onnx"], tmp_path, {})
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3  # such a file is for this processor alone
    onnxruntime.InferenceSession(tmp_path / FILES["onnx"], settings)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QuickGelu") == 2
    assert not {"Sigmoid", "Clip"} & set(kinds)


class Tricky(nn.Module):
    """Computes something else when it is exported, as code does that looks at its surroundings."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * (1.001 if torch.compiler.is_compiling() else 1.0)


def test_a_file_that_does_not_agree_is_refused(tmp_path: Path, capsys: Any):
    save(tmp_path / "best.ckpt", Tricky)
    more = ["--trust", "tests", "--output", str(tmp_path / "made"), "--format", "onnx", "hub"]
    said = refused(["export", "--ckpt_path", str(tmp_path / "best.ckpt"), *more], capsys)
    assert "model.onnx does not compute what the checkpoint does" in said
    assert "nothing was written" in said
    assert [each.name for each in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_tie_is_no_other_class():
    want, got = torch.tensor([[1.0, 1.0 - 1e-6]]), torch.tensor([[1.0 - 1e-6, 1.0]])
    assert compare([want], [got]).same == 0
    assert compare([want], [got], 1e-5).same == 1
    assert math.isnan(compare([want], [got * torch.nan], 1e-5).difference)  # which no limit allows
    assert compare([torch.tensor([[1.0, 0.9]])], [got], 1e-5).same == 0


def test_an_export_goes_where_a_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "best.ckpt")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    for _ in range(2):
        export(tmp_path / "best.ckpt", tmp_path / "link", "--format", "safetensors")
    monkeypatch.chdir(tmp_path / "target")
    export(tmp_path / "best.ckpt", Path(), "--format", "safetensors")
    assert (tmp_path / "link").is_symlink()
    assert {each.name for each in (tmp_path / "target").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    assert {each.name for each in tmp_path.iterdir()} == {"best.ckpt", "link", "target"}


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: Any, monkeypatch: Any):
    file, run = tmp_path / "best.ckpt", tmp_path / "run"
    save(file)
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text('{"architectures": ["ResNet"]}')
    (tmp_path / "other.pth").write_bytes(b"")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    made = ["--output", str(tmp_path / "made")]
    for words, sentence in {
        (str(run),): "holds no checkpoint (best.ckpt or last.ckpt)",
        (str(tmp_path / "none.ckpt"),): "no weights at",
        (str(tmp_path / "hub"),): "describes an exported network",
        (str(tmp_path / "other.pth"),): "is no checkpoint of this program",
        (
            str(file),
            "--data",
            "Digits",
        ): "the checkpoint is of data with num_classes 3, Digits has 10",
        (str(file), "--int8"): "--int8 needs validation samples",
        (str(file), "--tabulate", "0.1"): "--tabulate needs validation samples",
        (str(file), "--tabulate", "0"): "--tabulate must be > 0, got 0.0",
        (str(file), "--tabulate", "x"): "--tabulate 'x' does not fit: give a number or null",
        (str(file), "--push", "me/x"): "add hub to --format",
        (
            str(file),
            "--output",
            str(tmp_path / "full"),
        ): "holds 'x', which no export wrote: name another folder",
        (str(file), "--output", str(file)): "is no folder: name another one",
        (str(file), "--output", str(tmp_path / "hub")): "holds 'config.json', which no export",
        (str(file), "--output", str(file / "x")): "cannot write",
        (str(file), "--format", "tflite"): "give onnx, pt2, safetensors, openvino or hub",
    }.items():
        assert sentence in refused(["export", *made, "--ckpt_path", *words], capsys)
    known = torch.load(file, weights_only=True)
    known["state_dict"]["backbone.fc.bias"][0] = torch.nan
    torch.save(known, tmp_path / "nan.ckpt")
    said = refused(["export", *made, "--ckpt_path", str(tmp_path / "nan.ckpt")], capsys)
    assert "the checkpoint's scores are not finite: its weights are damaged" in said
    words = ["--ckpt_path", str(file), *DATA, "--data.val_fraction", "0", "--int8"]
    assert "need validation samples, and the data have none" in refused(
        ["export", *made, *words], capsys
    )
    save(tmp_path / "relu.ckpt", nn.ReLU)
    words = [*made, "--ckpt_path", str(tmp_path / "relu.ckpt"), *DATA, "--tabulate", "0.1"]
    assert "--tabulate finds no function that can become a table" in refused(
        ["export", *words], capsys
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = refused(["export", *made, "--ckpt_path", str(file)], capsys)
    assert "the format onnx needs the package onnxscript: pip install '.[export]'" in said
    assert not (tmp_path / "made").exists()


def test_the_data_of_a_run_are_those_of_its_config(tmp_path: Path):
    """Only if they are this project's: no class of another package is named by a file."""
    file = tmp_path / "config.yaml"
    for text, expected in {
        "data: Digits": {},
        "data: {class_path: datamodules.Digits, init_args: {image_size: 16, mix: {class_path: os.x}}}": {
            "image_size": 16
        },
        "data: {class_path: evil.Digits}": None,
        "data: {class_path: datamodules.FromDataset, init_args: {dataset: evil.Set}}": None,
        "data: {class_path: datamodules.annotations}": None,
        "data: [1]": None,
        "data: {class_path: datamodules.Digits, init_args: [": None,
        f"data: {{class_path: datamodules.Digits, init_args: {{means: [{'1,' * 10_000}]}}}}": None,
    }.items():
        file.write_text(text)
        found = data_of(file)
        wanted = {"class_path": "datamodules.Digits", "init_args": expected}
        assert found == (None if expected is None else wanted)
    assert data_of(tmp_path / "none.yaml") is None


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mit") / "records"
    write_records(folder)
    return folder


@pytest.mark.parametrize("representation", ["signal", "image", "spectrogram"])
@pytest.mark.parametrize("normalize", ["zscore", "minmax", "none"])
def test_raw_beats_become_what_the_data_module_gives(
    representation: Any, normalize: Any, records: Path
):
    leads = 2 if normalize == "minmax" else 1
    data = MITBIH(str(records), representation=representation, normalize=normalize, leads=leads)
    plain = MITBIH(str(records), normalize="none", leads=leads)
    data.setup("test")
    made, (beats, _) = Raw(nn.Identity(), data.description), plain.load("test")
    images, _, index = next(iter(data.test_dataloader()))
    torch.testing.assert_close(made(beats[index]), images, rtol=1e-4, atol=1e-4)


def test_beats_that_their_record_scales_have_no_raw_form(records: Path):
    data = MITBIH(str(records), protocol="kaggle_rebuilt")
    with pytest.raises(
        ValueError, match=r"a beat of MITBIH is scaled over 1.2 RR intervals of its"
    ):
        Raw(nn.Identity(), data.description)


def test_metrics_are_those_of_the_checkpoints_epoch(tmp_path: Path):
    epochs = [{"epoch": k, "val/acc": k / 10} for k in range(4)]
    tests = {"best": {"test/acc": 0.5}, "last": {"test/acc": 0.6}}
    results = {"epochs": epochs, "best": dict(epochs[2]), "test": tests, "machine": {}, "fit_s": 1.0,
               "seed": 0, "commit": "x", "train_samples": 9, "parameters": 8}  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "checkpoints").mkdir()
    for name, epoch, which, test in (
        ("best", 2, "best", 0.5), ("best-v1", 1, "epoch 2", None), ("last", 3, "last", 0.6),
        ("epoch=2", 2, "best", 0.5),
    ):  # fmt: skip
        file = tmp_path / f"checkpoints/{name}.ckpt"
        torch.save({"epoch": epoch}, file)
        found = hub._run(file)
        assert found
        assert found["checkpoint"] == which
        assert found["metrics"]["val/acc"] == epoch / 10
        assert found["metrics"].get("test/acc") == test
        assert f"the weights of its {which.removesuffix(' epoch')}" in hub._training(found, {})
    results["best"]["val/acc"] = 0.25  # in the middle of its epoch
    epochs[2]["val/loss"] = 1.0
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = hub._run(tmp_path / "checkpoints/best.ckpt")
    assert found
    assert found["metrics"] == {"val/acc": 0.25, "test/acc": 0.5}


def test_a_mounted_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)
    check_target(tmp_path / "export")
    with pytest.raises(ValueError, match=r"a disk is mounted.* name a folder in it with --output"):
        check_target(tmp_path)


def test_data_that_are_not_here_are_left_out_or_found_elsewhere(tmp_path: Path, capsys: Any):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save(run / "checkpoints/best.ckpt")
    root, sizes = tmp_path / "gone", {"image_size": 8, "batch_size": 4}
    config = {"data": {"class_path": "datamodules.ImageFolder",
                       "init_args": {"root": str(root), **sizes}}}  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    export(run, tmp_path / "a", "--format", "safetensors")
    said = capsys.readouterr().out
    assert "the data of the run are not here as they were" in said
    assert "128 random inputs" in said
    assert with_data(["--ckpt_path", str(run), "--data.root=x"]) == (
        [
            "--data",
            json.dumps(data_of(run / "config.yaml")),
            "--ckpt_path",
            str(run),
            "--data.root=x",
        ],
        False,
    )
    assert with_data(["--ckpt_path", str(run), "--data=Digits"])[1] is False
    for name in ("one", "two"):  # of other classes and sizes than the checkpoint's
        (root / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "train" / name / "a.png")
    export(run, tmp_path / "b", "--format", "safetensors")
    said = capsys.readouterr().out
    assert "not here as they were, and give no samples: the checkpoint is of data with" in said
    shutil.rmtree(root)
    root.with_name("moved").mkdir()
    for name, at in (
        ("--int8", []),
        ("--format", ["safetensors", f"--data.root={tmp_path}/moved"]),
    ):
        said = refused(["export", "--ckpt_path", str(run), name, *at], capsys)
        assert (
            "moved' holds fewer than two class folders" if at else f"no folder '{root}'"
        ) in said


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--include_preprocessing", "true"], "hold weights alone: add onnx, pt2 or openvino"),
        (["--tabulate", "0.05"], "hold weights alone"),
        (["--license", "mit"], "--license is for the model card: add hub"),
    ],
)
def test_what_only_a_program_or_a_card_can_have(
    more: list[str], told: str, tmp_path: Path, capsys: Any
):
    save(tmp_path / "best.ckpt")
    words = ["export", "--ckpt_path", str(tmp_path / "best.ckpt"), "--format", "safetensors"]
    assert told in refused([*words, *more], capsys)


def test_weights_alone_need_no_program(tmp_path: Path):
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    write(Untraceable(), (torch.ones(2, 3),), ["safetensors", "hub"], tmp_path, {})
    with pytest.raises(ValueError, match=r"torch\.export cannot trace"):
        write(Untraceable(), (torch.ones(2, 3),), ["pt2"], tmp_path, {})


def test_every_fifth_sample_is_taken_over_the_ends_of_batches():
    batches = [(torch.arange(n, n + 3), torch.arange(n, n + 3)) for n in range(0, 21, 3)]
    taken = [each for batch, _ in every(5, batches) for each in batch.tolist()]
    assert taken == [0, 5, 10, 15, 20]


def test_data_of_another_kind_have_no_raw_form():
    class Own(Digits):
        def __init__(self) -> None:
            super().__init__(image_size=8)

    with pytest.raises(ValueError, match="needs the data as they are read, which Own, no data"):
        Samples(Own(), {}, raw=True)


def test_raw_images_become_what_the_data_module_gives():
    data = Digits(image_size=8)
    data.setup("test")
    pixels, _ = data.load("test")
    images, _, index = next(iter(data.test_dataloader()))
    torch.testing.assert_close(Raw(nn.Identity(), data.description)(pixels[index]), images)


def test_a_folder_is_pushed(tmp_path: Path):
    """The hub's interface is given: no network is asked."""
    done: list[Any] = []
    api = SimpleNamespace(
        create_repo=lambda name, **how: done.append((name, how)),
        upload_folder=lambda **how: done.append(how) or "https://hub/me/x",
    )
    assert push(tmp_path, "me/x", api) == "https://hub/me/x"
    assert done == [
        ("me/x", {"private": True, "exist_ok": True}),
        {
            "repo_id": "me/x",
            "folder_path": tmp_path,
            "delete_patterns": [
                "model.onnx",
                "model.pt2",
                "openvino/model.xml",
                "model.safetensors",
                "openvino/*",
                "model_int8.onnx",
            ],
        },
    ]
    with pytest.raises(ValueError, match="cannot push to 'a/b/c'"):
        push(tmp_path, "a/b/c")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "share"),
    [(c, s) for c in CASES for s in ("site", "channel")[: 1 + c.per_channel]],
    ids=str,
)
def test_every_function_agrees_in_every_format(case: Case, share: Any, tmp_path: Path):
    pytest.importorskip("openvino")
    arguments = {k: v for k, v in case.arguments.items() if k not in ("channels", "dims")}
    kind, sites = partial(case.kind, **arguments), ["act1", "layer3.0.act2"]
    model = save(tmp_path / "x.ckpt", kind, share=share, include=sites)
    network, x = model.backbone, torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        write(deployed(network), (x[:2],), ["onnx", "pt2", "openvino"], tmp_path, {})
        limit, row = tolerance(network, x), [case.kind.__name__, str(case), share]
        row.append(f"{limit:.1e}")
        for name in ("onnx", "pt2", "openvino"):
            run = read(tmp_path / FILES[name])
            found = [compare([network(x[:count])], [run(x[:count])]) for count in (1, 7, 64)]
            row.append(f"{max(each.difference for each in found):.1e}")
            assert all(each.same == each.samples and each.difference <= limit for each in found)
    print("parity", *row, sep=",")  # results/parity.csv has the largest for each function


def test_timm_takes_our_functions():
    import timm

    model = timm.create_model("resnet10t", act_layer=CosLU, num_classes=3)
    own = timm.create_model("resnet10t", num_classes=3)
    count = sum(isinstance(each, nn.ReLU) for each in own.modules())
    assert len({each for each in model.modules() if isinstance(each, CosLU)}) == count > 5
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_transformers_take_our_functions(tmp_path: Path):
    pytest.importorskip("transformers")
    text = (Path(__file__).parents[1] / "docs/deploy.md").read_text()
    [code] = re.findall(r"```python\n(from transformers.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    model = names["model"].eval()
    assert sum(isinstance(each, CosLU) for each in model.modules()) == 2
    model.save_pretrained(tmp_path)
    again, x = type(model).from_pretrained(tmp_path).eval(), torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(x).logits, model(x).logits)
