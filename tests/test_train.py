"""The command line, as a user types it."""

import csv
import itertools
import json
import logging
import re
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.loggers import Logger

import activations as A
import train
from callbacks import LastCheckpoint
from options import parsable
from tests.data import Tiny, write_tree

ROOT = Path(train.__file__).parent
CONFIGS = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml"))
# networks are built, from their overlays, in test_models.py
OVERLAYS = [
    path
    for path in CONFIGS
    if path.name != "base.yaml"
    and path.parent.name not in ("study", "search")  # read by their own tests
    and (path.parent.name != "backbone" or path.stem in ("swin_tiny", "resnet34_1d"))
]


def command(line: str) -> None:
    """Run `python train.py LINE` in this process."""
    train.main(line.split())


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch):
    """Parse and instantiate a command without running it."""

    def instantiate(line: str) -> Any:
        clis = []
        monkeypatch.setattr(train.CLI, "_run_subcommand", lambda cli, name: clis.append(cli))
        command(line)
        return clis[0]

    return instantiate


@pytest.mark.parametrize("config", OVERLAYS, ids=str)
def test_every_shipped_yaml_instantiates(parsed, config: Path):
    text = yaml.safe_load((ROOT / config).read_text())
    data = "" if "data" in text else "--data Digits"
    if "backbone" not in text.get("model", {}):
        data += " --model.backbone resnet8"  # quicker than the default
    cli = parsed(f"fit -c {ROOT / config} {data}")
    assert cli.trainer.max_epochs == text.get("trainer", {}).get("max_epochs", 90)
    if cli.model.lr_scheduler:
        assert cli.model.configure_optimizers()[1]


def test_the_everyday_command(parsed):
    cli = parsed(
        "fit --data CIFAR10 --data.root DIR --model.backbone resnet20 --model.activation DSReLU"
    )
    assert type(cli.model.backbone.act1).__name__ == "DSReLU"
    assert Path(cli.datamodule.root) == Path("DIR")
    assert cli.trainer.logger.name == "CIFAR10-resnet20-DSReLU"
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    for name in (
        "BestCheckpoint",
        "LastCheckpoint",
        "ActivationSchedule",
        "ActivationMonitor",
        "Progress",
    ):
        assert name in names


def test_data_decide_classes_channels_and_stem(parsed):
    cli = parsed(
        "fit --data CIFAR100 --model.backbone timm/resnet18 --model.activation torch.nn.GELU"
    )
    assert cli.model.backbone.fc.out_features == 100
    assert cli.model.backbone.conv1.kernel_size == (3, 3)
    assert isinstance(cli.model.backbone.act1, torch.nn.GELU)
    cli = parsed("fit --data Digits --model.activation CosLU --model.activation.alpha 0.25")
    assert cli.model.backbone.conv1.in_channels == 1
    assert cli.model.backbone.layer1[0].act2.alpha.item() == 0.25


def test_a_class_may_be_named_behind_its_options(parsed):
    cli = parsed(
        "fit --data.mix.alpha=0.3 --data.batch_size 64 --model.activation.alpha 0.25 --data Digits "
        "--model.activation=CosLU --data.mix torchvision.transforms.v2.MixUp --data.mix.num_classes 10"
    )
    assert type(cli.datamodule).__name__ == "Digits"
    assert cli.datamodule.batch_size == 64
    assert cli.datamodule.mix.alpha == 0.3
    assert cli.model.backbone.act1.alpha.item() == 0.25
    between = [
        "fit",
        "--data.root",
        "x",
        "-c",
        "configs/data/cifar10_mixup.yaml",
        "--data",
        "MNIST",
    ]
    assert parsable(between) == between  # the file would win over the class


def test_our_names_win_over_those_of_timm(parsed):
    import timm.layers

    assert timm.layers.Swish is not A.Swish
    for words in ("--model.activation Swish", "--model.activation=Swish"):
        cli = parsed(f"fit --data Digits --model.backbone resnet8 {words}")
        assert isinstance(cli.model.backbone.act1, A.Swish)


def test_seed_zero_is_a_seed_and_reaches_the_data(parsed):
    weights = []
    for seed in (0, 0, 3):
        cli = parsed(f"fit --data Digits --model.backbone resnet8 --seed_everything {seed}")
        cli.datamodule.setup("fit")
        assert cli.datamodule.train_dataloader().seed == seed
        weights.append(cli.model.backbone.conv1.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data Digits --model.activation CosLu", "'CosLu' does not fit.*the nearest: activations.CosLU$"),
        ("--data Digits --model.activation PReLU", "the nearest: torch.nn.PReLU"),
        ("--data Digitz", "--data 'Digitz' does not fit.*the nearest: datamodules.Digits$"),
        ("--data CIFAR10 --data.root /no/such", "no CIFAR10 in '/no/such'.*--data.root DIR"),
        ("--data Digits --model.optimizer.lr 0.1", "--model.optimizer has arguments but no class.*--model.optimizer NAME"),
        ("--data Digits --model.activaton CosLU", "--model.activaton CosLU; the nearest: --model.activation, "),
        ("--data Digits --max_epochs 3", "--max_epochs 3; the nearest: --trainer.max_epochs"),
        ("--data Digits --model.lr 3", "--model.lr is no option; the nearest: --model.optimizer.lr"),
        ("--data Digits --model.activation CosLU --model.activation.gamma 3", "CosLU has no option 'gamma'"),
        ("--data Digits --model.backbone resnet21", "unknown backbone 'resnet21'; the nearest:.*resnet20"),
        ("--data Digits --model.backbone resnet8 --model.activation CosLU --model.include layr1.*",
         r"'layr1.\*' fits none of 7 calls; such as layer"),
        ("--data Digits --model.backbone resnet8 --model.activation torch.nn.GELU --model.share channel",
         "share='channel': GELU has no parameters a channel"),
        ("--data Digits --trainer.devices 999", "--trainer.devices 999: no GPU is in use.*at most"),
        ("--data Digits --model.class_weights [1,2]", "class_weights has 2 numbers, the data 10 classes"),
        ("--data Digits -c none.yaml", "none.yaml"),
        ("--data Digits --data.image_size 4", "error: image_size must be an integer from 8 to 4096, got 4"),
        ("--data Digits --ckpt_path none.ckpt", "no weights at 'none.ckpt'"),
        ("--data Digits --data.batch_size 5000", "1295 images do not fill one batch of 5000"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, line: str, message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command(f"fit {line}")
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert re.search(message, text, re.MULTILINE), text
    assert text.count("\n") <= 3
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_diverged_run_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command("fit --data Digits --model.backbone resnet8 --trainer.limit_train_batches 2 "
                "--trainer.logger false --trainer.limit_val_batches 1 "
                "--model.optimizer SGD --model.optimizer.lr 1e30")  # fmt: skip
    assert stop.value.code == 3
    assert "the run has diverged" in capsys.readouterr().err


def test_the_filter_of_leafspec_is_still_needed():
    from lightning.pytorch.utilities import CombinedLoader
    from torch.utils import _pytree

    def warned(call: Any) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        return any("LeafSpec" in str(each.message) for each in caught)

    if not warned(_pytree.LeafSpec):
        pytest.skip("this torch does not deprecate it")
    assert warned(lambda: CombinedLoader([0])), "remove the filter from train.py and pyproject.toml"


def test_the_filter_of_an_advertisement_is_still_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    found = []
    for filters in ([], logging.getLogger("lightning.pytorch.utilities.rank_zero").filters):
        logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        monkeypatch.setattr(logger, "filters", filters)
        caplog.clear()
        with caplog.at_level("INFO"):
            train.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
        found.append("litlogger" in caplog.text)
    assert found == [True, False]


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_untrained_weights_are_not_judged(capsys: Any, name: str):
    with pytest.raises(SystemExit, match="2"):
        command(f"{name} --data Digits --model.backbone resnet8")
    assert f"{name} needs trained weights: --ckpt_path" in capsys.readouterr().err


def test_what_a_library_raises_in_training_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.Classifier, "on_train_epoch_end", lambda model: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):  # a ValueError that is not one of our messages
        command("fit --data Digits --model.backbone resnet8 --trainer.log_every_n_steps 1")


def test_one_setting_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    def bug(cli: Any, name: str) -> None:
        torch.zeros(2).matmul(torch.zeros(3))

    monkeypatch.setattr(train.CLI, "_run_subcommand", bug)
    monkeypatch.setenv("SUPPLE_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        command("fit --data Digits --model.backbone resnet8")


def test_fit_then_test_then_validate_then_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    write_tree(tmp_path / "cifar", per_class=8)
    monkeypatch.chdir(tmp_path)
    data = "--data CIFAR10 --data.root cifar"
    quiet = ("--trainer.enable_progress_bar false --trainer.enable_model_summary false "
             "--trainer.log_every_n_steps 2")  # fmt: skip
    line = (f"fit {data} {quiet} --data.batch_size 10 --trainer.max_epochs 2 --test_after_fit true "
            "--model.backbone resnet8 --model.activation LSLU")  # fmt: skip
    for version in (0, 1):  # a second run does not clash with the first
        command(line)
        printed = capsys.readouterr().out
        run = tmp_path / "runs" / "CIFAR10-resnet8-LSLU" / f"version_{version}"
        for expected in ("layer3.0.act2  theta", "macro-F1", "runs/CIFAR10-resnet8-LSLU/version_",
                         f"version_{version}/activations.csv, activations.png, parameters.png",
                         "-m tensorboard.main --logdir runs/CIFAR10-resnet8-LSLU"):  # fmt: skip
            assert expected in printed
        best = run / "checkpoints" / "best.ckpt"
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 2 * 7  # whether or not the second epoch was better
        for file in (best, run / "checkpoints" / "last.ckpt", run / "config.yaml",
                     run / "activations.png"):  # fmt: skip
            assert file.is_file()
    first, second = (
        torch.load(run.with_name(f"version_{v}") / "checkpoints/last.ckpt", weights_only=True)
        for v in (0, 1)
    )
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    accuracy = re.search(r"test +accuracy ([\d.]+)", printed)
    assert accuracy
    # the checkpoint knows its network: backbone and activation need not be said again
    command(f"test {data} {quiet} --ckpt_path {best} --trainer.logger false")
    assert f"{float(accuracy[1]):.4g}"[:4] in capsys.readouterr().out
    command(f"validate -c {run / 'config.yaml'} --ckpt_path {run} --trainer.logger false")
    assert "val/acc" in capsys.readouterr().out
    command(f"predict {data} {quiet} --ckpt_path {best} --predictions.path out.csv")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 31


def test_one_batch_is_not_all_of_them(tmp_path: Path, capsys: Any):
    file = tmp_path / "limits.yaml"
    file.write_text("trainer: {limit_train_batches: 1, limit_test_batches: 1.0}")
    with pytest.raises(SystemExit):
        command(f"fit --data Digits --model.backbone resnet8 -c {file} "
                "--trainer.limit_val_batches 1 --trainer.overfit_batches 0.5 --print_config")  # fmt: skip
    read = yaml.safe_load(capsys.readouterr().out)["trainer"]
    limits = [
        read[f"{name}_batches"] for name in ("limit_train", "limit_val", "limit_test", "overfit")
    ]
    assert list(map(repr, limits)) == ["1", "1", "1.0", "0.5"]


@pytest.mark.filterwarnings("ignore:.ModelCheckpoint")
@pytest.mark.parametrize(
    "without", ["--trainer.limit_val_batches 0", "--trainer.enable_checkpointing false"]
)
def test_last_weights_are_not_called_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, without: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="no best checkpoint was saved"):
        command("fit --data Digits --model.backbone resnet8 --trainer.max_steps 1 "
                f"--test_after_fit both {without}")  # fmt: skip
    assert len(re.findall(r"^test ", capsys.readouterr().out, re.MULTILINE)) == 1
    [results] = tmp_path.rglob("results.json")
    assert list(json.loads(results.read_text())["test"]) == ["last"]


def test_runs_without_logger_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    command("fit --data Digits --model.backbone resnet8 --model.activation CosLU "
            "--trainer.logger false --trainer.enable_checkpointing false --trainer.max_steps 1 "
            "--trainer.limit_val_batches 1")  # fmt: skip
    command("fit --data Digits --model.backbone resnet8 --trainer.fast_dev_run true "
            "--test_after_fit true")  # fmt: skip
    # what activations learned is kept in any case; a run for development leaves nothing
    assert list(tmp_path.iterdir()) == [tmp_path / "monitor"]
    assert list((tmp_path / "monitor").iterdir()) == [tmp_path / "monitor" / "version_0"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_with_two_loggers_goes_on_in_its_folder_below_the_chosen_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text("""trainer:
  logger:
  - {class_path: TensorBoardLogger, init_args: {save_dir: runs, name: null}}
  - {class_path: CSVLogger, init_args: {save_dir: runs, name: null}}
""")
    line = ("fit -c two.yaml --data Digits --model.backbone resnet8 "
            "--trainer.default_root_dir there/all --trainer.limit_train_batches 1 "
            "--trainer.limit_val_batches 1 --trainer.log_every_n_steps 1")  # fmt: skip
    command(f"{line} --trainer.max_epochs 1")
    run = tmp_path / "there/all/Digits-resnet8-own/version_0"
    last = run / "checkpoints/last.ckpt"
    command(f"{line} --trainer.max_epochs 2 --ckpt_path {run}")
    assert {each.name for each in tmp_path.iterdir()} == {"two.yaml", "there"}
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert (run / "config.yaml").is_file()
    assert all((run.parent / f"version_{n}/metrics.csv").is_file() for n in (1, 2))
    kept = last.read_bytes()
    command(f"{line} --trainer.max_epochs 3 --ckpt_path {last} --trainer.default_root_dir fork")
    assert last.read_bytes() == kept
    fork = tmp_path / "fork/Digits-resnet8-own/version_0/checkpoints/last.ckpt"
    assert torch.load(fork, weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(
    ("changes", "typed", "elsewhere"),
    [
        ({}, {"save_dir", "name", "version"}, False),
        ({"save_dir": "other"}, {"save_dir"}, True),
        ({"save_dir": "other"}, {"default_root_dir"}, True),
        ({"save_dir": "."}, {"save_dir"}, True),  # a folder above
        ({"save_dir": "other"}, set(), False),  # of a configuration
        ({"name": "fork"}, {"name"}, True),
        ({"name": "own"}, {"save_dir"}, False),  # made of other options
        ({"save_dir": "runs/name", "name": ""}, {"save_dir", "name"}, False),
        ({"version": "version_3"}, {"version"}, False),
        ({"version": 4}, {"version"}, True),
    ],
)
def test_a_typed_place_that_is_not_the_runs_own_is_told_apart(
    tmp_path: Path, changes: dict[str, Any], typed: set[str], elsewhere: bool
):
    arguments = {"save_dir": "runs", "name": "name", "version": 3} | changes
    arguments["save_dir"] = tmp_path / str(arguments["save_dir"])
    run = tmp_path / "runs/name/version_3"
    assert train.is_elsewhere(run, SimpleNamespace(**arguments), typed) is elsewhere


def test_a_resumed_run_keeps_what_finders_have_found():
    cli: Any = SimpleNamespace(datamodule=Tiny(), trainer=SimpleNamespace(world_size=2))
    callbacks: list[Any] = [LearningRateFinder(), BatchSizeFinder()]
    train.CLI._leave_out_finders(cli, callbacks, {"Tiny": {"size": (1, 2)}})  # of an own class
    assert [type(each) for each in callbacks] == [BatchSizeFinder]  # is refused later
    train.CLI._leave_out_finders(cli, callbacks, {"Tiny": {"size": 24}})
    assert not callbacks
    assert cli.datamodule.batch_size == 12


def test_two_processes_start_quickly_and_test_every_sample_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    write_tree(tmp_path / "cifar", per_class=8, test_per_class=5)
    (tmp_path / "cifar/test/cat/0.png").unlink()  # 49 images do not divide
    data = "--data CIFAR10 --data.root cifar --data.eval_batch_size 7 --trainer.accelerator cpu"
    line = (f"fit {data} --data.batch_size 10 --test_after_fit true --trainer.devices 2 "
            "--trainer.max_epochs 1 --model.backbone resnet8 --model.activation CosLU "
            "--trainer.logger CSVLogger --trainer.logger.save_dir runs --trainer.logger.name two "
            "--trainer.enable_progress_bar false --trainer.enable_model_summary false")  # fmt: skip
    # what --help imports: none of the packages that only some runs need
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train; "
            "print([m for m in ('timm', 'sklearn', 'wfdb', 'tensorboard') if m in sys.modules]); "
            "train.main(sys.argv[1:])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *line.split()], cwd=tmp_path,
                          capture_output=True, text=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("[]")
    assert done.stdout.count("macro-F1") == 1
    run = tmp_path / "runs/two/version_0"
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("test/loss")]
    names = ("test/acc", "test/acc_top5", "test/auroc", "test/f1", "test/loss")
    two = [float(rows[-1][name]) for name in names]
    # a padded or dropped sample would leave the grid of 1/49
    assert two[0] * 49 == pytest.approx(round(two[0] * 49), abs=0.01)
    # the same weights give the same numbers in one process
    monkeypatch.chdir(tmp_path)
    best = run / "checkpoints/best.ckpt"
    command(f"test {data} --ckpt_path {best} --trainer.logger false --trainer.devices 1")
    printed = dict(re.findall(r"(test/\w+) +([\d.]+)", capsys.readouterr().out))
    assert [float(printed[name]) for name in names] == pytest.approx(two, rel=1e-6)


def test_progress_is_a_line_an_epoch_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    line = ("fit --data Digits --model.backbone resnet8 --trainer.max_epochs 2 --data.batch_size 100 "
            "--trainer.limit_train_batches 5 --trainer.logger false --trainer.enable_checkpointing false "
            "--trainer.enable_model_summary false --trainer.log_every_n_steps 3 "
            "--monitor.figure false")  # fmt: skip
    command(line)
    printed = capsys.readouterr()
    lines = re.findall(r"^epoch .*", printed.out, re.MULTILINE)
    assert [re.sub(r"\d\.\d+|\d", "#", each) for each in lines] == [
        "epoch #: train/loss #, val/acc #, val/acc_majority #, val/acc_top# #, val/auroc #, val/f# #"
    ] * 2
    assert "it/s" not in printed.out + printed.err
    command(line + " --trainer.enable_progress_bar false")
    assert "epoch 0" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command(line + " --progress.refresh_rate 2")
    bars = [each for each in capsys.readouterr().out.split("\r") if each.startswith("Epoch 1")]
    assert {re.findall(r"(\d)/5 ", each)[0] for each in bars} == {"0", "2", "4", "5"}
    assert "train/loss=" in bars[-1]
    assert "epoch" not in "".join(bars)


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_steps_between_two_logs_read_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """On a GPU every number that the host reads makes it wait for all that was asked before."""
    from torch.utils._python_dispatch import TorchDispatchMode

    reads, steps, logs = [0], [], {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            reads[0] += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    def begin(model: Any, batch: Any, batch_idx: int) -> None:
        steps.append(reads[0])

    def log(logger: Any, metrics: dict[str, float], step: int | None = None) -> None:
        logs.setdefault(step, {}).update(metrics)

    monkeypatch.setattr(train.Classifier, "on_train_batch_start", begin, raising=False)
    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.log_metrics", log)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.chdir(tmp_path)
    with Count():
        command("fit --data Digits --model.backbone resnet8 --model.activation CosLU "
                "--data.batch_size 64 --trainer.limit_train_batches 13 --trainer.max_epochs 1 "
                "--trainer.limit_val_batches 0 --trainer.enable_checkpointing false "
                "--trainer.log_every_n_steps 5 --progress.refresh_rate 5 --monitor.figure false")  # fmt: skip
    each = [after - before for before, after in itertools.pairwise(steps)]
    assert [k for k, number in enumerate(each) if number] == [4, 9]
    assert {"train/loss", "lr/weights", "lr/activations"} <= logs[4].keys()
    assert 0 < logs[9]["lr/weights"] < logs[4]["lr/weights"] < 0.1


def test_the_command_line_knows_all_commands(capsys: Any):
    for line in ("--help", "fitt"):
        with pytest.raises(SystemExit):
            command(line)
        text = "".join(capsys.readouterr())
        for name in ("fit", "validate", "test", "predict"):
            assert re.search(rf"\b{name}\b", text), text


@pytest.mark.parametrize("kind", [A.CosLU, A.AGLU, A.Fourier, A.LSLU, A.EvenCubicReLU])
def test_the_help_of_an_option_is_the_text_of_its_argument(kind: type[A.Activation]):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(kind, "a")
    found = " ".join(parser.format_help().split())
    assert "learned, not decayed" not in found  # that is what the attribute of the name is
    assert "initial" in found


def test_beats_that_came_cut_out_are_other_data():
    cut = {"name": "MITBIH", "representation": "signal"}
    whole = {**cut, "window": [1]}
    for known, mine, told in (
        (cut, whole, r"window \(beats came cut out\), now window \[1\]"),
        (whole, cut, r"window \[1\], now window \(beats came cut out\)"),
        (cut, cut, ""), (whole, whole, ""), (whole, {}, ""), ({}, whole, ""),
    ):  # fmt: skip
        here: Any = SimpleNamespace(datamodule=SimpleNamespace(description=mine))
        with pytest.warns(UserWarning, match=told) if told else nullcontext():
            train.CLI._compare_data(here, known)


def test_a_last_checkpoint_is_not_chosen():
    with pytest.raises(ValueError, match=r"last_checkpoint.monitor 'val/loss' has no effect"):
        LastCheckpoint(monitor="val/loss")
    with pytest.raises(ValueError, match=r"last_checkpoint.save_top_k 0 has no effect"):
        LastCheckpoint(save_top_k=0)
    LastCheckpoint(monitor=None, mode="min", save_top_k=1, save_last=False)


class Nowhere(Logger):
    """As of a service: it has no folder."""

    @property
    def name(self) -> str:
        return "service"

    @property
    def version(self) -> str:
        return "a1"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_logger_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    command("fit --data Digits --model.backbone resnet8 --trainer.max_steps 1 "
            "--trainer.limit_val_batches 1 --test_after_fit last "
            f"--trainer.logger {__name__}.Nowhere --trainer.enable_checkpointing false")  # fmt: skip
    written = {file.name for file in (tmp_path / "service/a1").iterdir()}
    assert written >= {"config.yaml", "results.json", "confusion.png"}


def test_paths_may_name_home_and_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "/mnt/x")
    monkeypatch.setenv("HOME", "/home/me")
    assert train.expanded("$SCRATCH/ck") == "/mnt/x/ck"
    assert train.expanded(Path("~/ck")) == "/home/me/ck"


def test_options_of_a_swap_without_an_activation_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    line = "fit --data Digits --model.backbone resnet8 --trainer.fast_dev_run 1 --trainer.accelerator cpu"
    with pytest.warns(UserWarning, match=r"--model.share has no effect without --model.activation"):
        train.main([*line.split(), "--model.share", "channel"])


def test_other_splits_than_those_of_the_training_are_told(tmp_path: Path):
    then = {"protocol": "intra_patient", "split_seed": 0, "val_records": [101], "root": "a"}
    spec = {"class_path": "datamodules.MITBIH", "init_args": then}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": spec}))
    now = {**then, "val_records": (101,), "root": "b"}
    for options, told in (
        (now, []),
        ({**now, "protocol": "inter_patient"}, ["protocol intra_patient, now inter_patient"]),
        ({**now, "split_seed": 3}, ["split_seed 0, now 3"]),
    ):
        data = Namespace(class_path="MITBIH", init_args=Namespace(**options))
        assert train.other_splits(tmp_path, data) == told
    other = Namespace(class_path="datamodules.WFDBBeats", init_args=Namespace(split_seed=3))
    assert train.other_splits(tmp_path, other) == []
    assert train.other_splits(tmp_path / "gone", other) == []
