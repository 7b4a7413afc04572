"""Command lines with a mistake: each gets one sentence and exit code 2, and leaves nothing behind."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule

import train
from datamodules import ImageDataModule
from datamodules.pool import Pool

RUN = (
    "fit --data Digits --model.backbone resnet8 --trainer.max_steps 1 --trainer.limit_val_batches 1"
)
WRONG = ["@wrong", "", "[]", "{a: 1}", "torch.nn.ReLU", "null", "-1000000007", "9" * 30]
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("_one_minute"),
]


@pytest.fixture
def _one_minute():
    """A command that hangs fails."""

    def stop(*_: Any) -> None:
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def slip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """Run a command line with a mistake; return its message."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*args: str, may_run: bool = False) -> str:
        try:
            train.main(list(args))
            code = 0
        except SystemExit as stop:
            code = stop.code
        text = capsys.readouterr().err
        if code == 0 and may_run:
            return ""
        assert code == 2, f"{args[-1]}: exit code {code}"
        message = text[text.index("train.py: error: ") :]
        assert re.match(r"train.py: error: \S", message), message
        assert message.count("\n") <= 5, message
        assert len(message) < 1000, message
        assert "Traceback" not in text
        assert list(here.iterdir()) == []
        return message

    return run


class Untold(LightningDataModule):
    num_classes, in_channels = 3, 1


class Empty(Untold):
    image_size = 8


class Unread(ImageDataModule):
    num_classes, in_channels, image_size, class_names = 2, 1, 8, ("a", "b")
    mean, std = (0.5,), (0.5,)


class UnreadPool(Pool):
    num_classes, in_channels, image_size, class_names = 2, 3, 8, ("a", "b")


RUN_LINES = [
    ("fit", "--data is missing"),
    ("fitt", "invalid choice: 'fitt'"),
    ("fit test --data Digits", "unrecognized arguments: test"),
    ("test --data Digits", "test needs trained weights"),
    ("RUN --data ImageDataModule", "'ImageDataModule' is the base of other classes"),
    ("fit --data.batch_size 3", "--data, which names no data set, has no option 'batch_size'"),
    ("RUN --data LightningDataModule", "LightningDataModule has no num_classes"),
    ("RUN --data tests.test_slips.Untold", "Untold has no image_size, by which the network is built"),
    ("RUN --data datamodules.samples.Samples", "Samples' is the base of other classes and lacks source: choose"),
    ("RUN --data tests.test_slips.UnreadPool", "UnreadPool' is the base of other classes and lacks read: "),
    ("RUN --data tests.test_slips.Unread", "Unread' is the base of other classes and lacks load"),
    ("RUN --data tests.test_slips.Empty", "Empty has no train_dataloader"),
    ("RUN --data torch.nn.ReLU", "--data 'torch.nn.ReLU' does not fit"),
    ("RUN --data.augment [torchvision.transforms.Flop]", "augment: module .* no attribute 'Flop'"),
    ("RUN --data FromDataset", "needs the class of a data set: --data.dataset CLASS"),
    ("RUN --data.batch_size null", "batch_size must be an integer, got None"),
    ("RUN --data.batchsize 3", "Digits has no option 'batchsize'; the nearest: batch_size"),
    ("RUN --data.root x", "Digits has no option 'root'"),
    ("RUN --data.val_fraction 1", "val_fraction must be 0 or lie between 0 and 1, got 1"),
    ("RUN --data.balance sampl", "'sampl' does not fit: give sampling, loss or null"),
    ("RUN --data.crop_padding -1", "crop_padding must be an integer >= 0, got -1"),
    ("RUN --model.optimizer LBFGS", "--model.optimizer cannot work here: LBFGS"),
    ("RUN --model.optimizer SparseAdam", "--model.optimizer cannot work here: SparseAdam"),
    ("RUN --model.optimizer torch.optim.Muon", "--model.optimizer cannot work here: Muon"),
    ("RUN --model.optimizer AdmW", "'AdmW' does not fit.*the nearest: torch.optim.AdamW"),
    ("RUN --model.optimizer AdamW --model.optimizer.lr -1", "Invalid learning rate: -1"),
    ("RUN --model.optimizer AdamW --model.optimizer.lrr 1", "the nearest: lr"),
    ("RUN --model.lr_scheduler StepLR", "StepLR needs arguments that are not given: step_size"),
    ("RUN --model.lr_scheduler StepLR --model.lr_scheduler.step_size 0", "--model.lr_scheduler cannot work here"),
    ("RUN --model.lr_scheduler ReduceLROnPlateau --model.lr_scheduler.monitor val/loss "
     "--model.lr_scheduler.factor 3", "cannot work here: Factor should be < 1.0"),
    ("RUN --model.lr_scheduler MultiStepLr", "the nearest: torch.optim.lr_scheduler.MultiStepLR"),
    ("RUN --trainer.callbacks+=Timer --trainer.callbacks.duration abc", r"Timer: `Timer\(duration='abc'\)` is not a valid"),
    ("RUN --trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay 2", "EMAWeightAveraging: Invalid decay value 2.0"),
    ("RUN --trainer.callbacks+=ModelPruning --trainer.callbacks.pruning_fn xx", "ModelPruning: The provided `pruning_fn` xx"),
    ("RUN --trainer.callbacks+=BatchSizeFinder --trainer.callbacks.init_val 0", "BatchSizeFinder: init_val must be an integer >= 1, got 0"),
    ("RUN --trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling {0:2}",
     "scheduling '{0:2}' does not fit: give a mapping {name: value}, with a space behind the colon"),
    ("RUN --trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs -1", "StochasticWeightAveraging: The `swa_lrs` should"),
    ("RUN --model.activation CosLU --model.activation.alhpa 3", "the nearest: alpha"),
    ("RUN --model.activation CosLU --model.activation.alpha x", "'x' does not fit: give a number"),
    ("RUN --model.activation CosLU --model.activation.num_parameters 0", "must be an integer >= 1, got 0"),
    ("RUN --model.activation torch.nn.Linear", "Linear needs arguments that are not given: in_features, out_features"),
    ("RUN --model.activation no.such.Module", "there is no module 'no'"),
    ("RUN --model.activation.nothing 3", "nothing"),
    ("export --ckpt_path x --format onnx --format=pt2", "--format is given twice"),
    ("RUN --data.augment+=torchvision.transforms.v2.RandomRotation --data.augment.degrees x", "degrees 'x' does not fit: give a number or a list"),
    ("RUN --model.activation collections.Counter", "'collections.Counter' does not fit: give a class of the kind Module or null"),
    ("RUN --model.activation_weight_decay -1", "activation_weight_decay must be >= 0"),
    ("RUN --trainer.logger WandbLogger", "wandb is not installed: pip install wandb"),
    ("RUN --trainer.logger NoLogger", "'NoLogger' does not fit: give a class of the kind Logger"),
    ("RUN --trainer.callbacks EarlyStoping", "the nearest: .*EarlyStopping"),
    ("RUN --trainer.callbacks EarlyStopping", "EarlyStopping needs arguments that are not given: monitor"),
    ("RUN --trainer.accelerator quantum", "accelerator='quantum'"),
    ("RUN --trainer.strategy horovod", "strategy='horovod'"),
    ("RUN --trainer.precision 8", "'8' does not fit: give 64, 32"),
    ("RUN --trainer.maxepochs 3", "the nearest: --trainer.max_epochs"),
    ("RUN --trainer.max_epochs end", "'end' does not fit: give [^;]*$"),  # no option is meant
    ("RUN --trainer.max_time soon", "not a valid duration"),
    ("RUN --trainer.max_steps=999999999999999999999", "--trainer.max_steps.*is too large"),
    ("RUN --trainer.accumulate_grad_batches 0", "accumulate_grad_batches must be above 0, got 0"),
    ("RUN --trainer.check_val_every_n_epoch 0", "check_val_every_n_epoch must be above 0, got 0"),
    ("RUN --trainer.val_check_interval 0", "val_check_interval must be above 0, got 0"),
    ("RUN --trainer.val_check_interval 999", "val_check_interval 999 is more than the 20 batches"),
    ("RUN --trainer.limit_val_batches -1", "limit_val_batches"),
    ("RUN --trainer.fast_dev_run.nothing 1", "--trainer.fast_dev_run has no option 'nothing'"),
    ("RUN --trainer.fast_dev_run null", "'None' does not fit: give a whole number or true or false"),
    ("RUN --trainer []", "--trainer is neither a file of options nor"),
    ("RUN --checkpoint.monitor=", "--checkpoint.monitor is empty"),
    ("RUN --checkpoint.mode up", "up"),
    ("RUN --trainer.logger false --checkpoint.monitor val/top1", "monitor 'val/top1' is not measured: choose one of .*val/acc, "),
    ("RUN --trainer.logger false --model.lr_scheduler ReduceLROnPlateau --model.lr_scheduler.monitor val_loss", "monitor 'val_loss' is not measured"),
    ("RUN --trainer.logger false --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/los", "monitor 'val/los' is not measured"),
    ("RUN --schedule.start 2", "the schedule needs 0 <= start < end <= 1"),
    ("RUN --monitor.every_n_steps 0", "every_n_steps must be >= 1, got 0"),
    ("RUN --seed_everything -1", "-1"),
    ("fit --data Digits --model.backbone timm/test_efficientnet --trainer.accelerator cpu --trainer.devices 2 "
     "--trainer.sync_batchnorm true", "sync_batchnorm would drop the activations that are part of bn1 and"),
    ("RUN --ckpt_path=", "--ckpt_path is empty"),
    ("RUN --ckpt_path last", "--ckpt_path last: name the file or the folder of the run that shall go on"),
    ("test --data Digits --ckpt_path last", "--ckpt_path last: name the file or the folder of the run"),
    ("predict --data Digits --ckpt_path best", "--ckpt_path best: name the file or the folder of the run"),
    ("RUN --trainer.strategy ddp_spawn", "such as ddp"),
    ('RUN --trainer.accelerator cpu --trainer.strategy={"class_path":"lightning.pytorch.strategies.ModelParallelStrategy"}',
     "ModelParallelStrategy splits parameters among processes.*choose ddp"),
    ("RUN --checkpoint.filename {epoch}-{val/acc:.2f}", "would be a folder: leave out '/'"),
    ("RUN --model.class_weights [0,0,0,0,0,0,0,0,0,0]", "class_weights must be finite, not below 0"),
    ("RUN --model.class_weights [-1,1,1,1,1,1,1,1,1,1]", "class_weights must be finite, not below 0"),
    ("RUN --trainer.logger false --data.val_fraction 0 --trainer.callbacks EarlyStopping "
     "--trainer.callbacks.monitor val/loss", "EarlyStopping, which waits for val/loss, needs a validation"),
    ("RUN --trainer.logger false --data.val_fraction 0 --model.lr_scheduler ReduceLROnPlateau "
     "--model.lr_scheduler.monitor val/loss", "ReduceLROnPlateau, which waits for val/loss, needs a validation"),
    ("RUN --trainer.logger false --model.lr_scheduler_interval step --model.lr_scheduler ReduceLROnPlateau "
     "--model.lr_scheduler.monitor val/loss", "val/loss is not measured after each step"),
    ("RUN --trainer.logger false --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/acc",
     "EarlyStopping with mode min takes a lower val/acc for the better one: add mode: max"),
    ("RUN --trainer.logger false --model.lr_scheduler ReduceLROnPlateau --model.lr_scheduler.monitor val/acc",
     "ReduceLROnPlateau with mode min takes a lower val/acc for the better one"),
    ("RUN --trainer.logger false --model.lr_scheduler_interval epoch", "no effect on the default cosine"),
    ("RUN --trainer.logger false --checkpoint.monitor acc", "monitor 'acc' is not measured: choose one of"),
    ("RUN --ckpt_path .", "no weights at 'checkpoints/last.ckpt'"),
    ("RUN -c none.yaml", "none.yaml"),
    ("RUN stray", "unrecognized arguments: stray"),
    ("RUN --test_after_fit perhaps", "'perhaps' does not fit: give true or false"),
    ("RUN --model.compile fast", "'fast' does not fit: give auto, off, activations or model"),
    ("RUN --model.compile=false", "activations or model; YAML reads off as false: put it in quotes"),
]  # fmt: skip
YAML = [
    ("model: {a: [1", "cannot be read"),
    ("", "holds no mapping"),
    ("- 1\n- 2\n", "holds no mapping"),
    ("model:\n\tbackbone: resnet8\n", "cannot be read"),
    ("model: {activaton: CosLU}\n", "the nearest: --model.activation"),
    ("model:\n  stem: small\n  stem: auto\n", "'stem' is there twice in the mapping at line 2"),
    ("data: {class_path: Digits, init_args: {batchsize: 3}}\n", "the nearest: batch_size"),
    ("trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: a}}]}\n", "the nearest: monitor"),
    ("model: null\ntrainer: null\n", "null leaves no options"),
    ("model: !!python/object/apply:os.system ['touch x']\n", "cannot be read"),
    ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)),
     "more than 10,000 values"),
    ("model:\n  activation_by_site:\n" + "".join(f"    a{k}: CosLU\n" for k in range(100_000)),
     "more than 10,000 values"),
    ("\x00\x01", "cannot be read|no text"),
    ("model: &m\n  backbone_kwargs: *m\n", "backbone_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), RUN_LINES)
def test_a_slip_gets_one_sentence(slip: Any, line: str, message: str):
    text = slip(*line.replace("RUN", RUN).split())
    assert re.search(message, text, re.MULTILINE), text


@pytest.mark.parametrize(("text", "message"), YAML, ids=range(len(YAML)))
def test_a_wrong_file_of_options_gets_one_sentence(
    slip: Any, tmp_path: Path, text: str, message: str
):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    found = slip(*RUN.split(), "-c", str(file))
    assert re.search(message, found), found


def test_a_pipe_is_not_waited_for(slip: Any, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is a pipe" in slip(*RUN.split(), "-c", str(tmp_path / "pipe.yaml"))
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        os.mkfifo(tmp_path / "images" / name / "1.png")
    assert "no regular file" in slip("fit", "--data=ImageFolder", f"--data.root={tmp_path}/images",
                                     "--model.backbone=resnet8", "--data.image_size=8")  # fmt: skip


def test_a_long_word_is_no_file(slip: Any):
    word = f"x{'y' * 300}"
    assert word[:50] in slip(*RUN.split(), f"--model.activation={word}")


def test_another_class_begins_with_its_own_defaults(capsys: Any, tmp_path: Path):
    """Also a test of jsonargparse's `discard_init_args_on_class_path_change`."""
    file = tmp_path / "mine.yaml"
    file.write_text("""
model:
  activation: {class_path: activations.CosLU, init_args: {alpha: 0.9}}
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, weight_decay: 1.0e-4}}
trainer: {logger: {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: here}}}
""")
    with pytest.raises(SystemExit):
        train.main([*RUN.split(), "-c", str(file), "--model.activation=Snake", "--model.optimizer=AdamW",
                    "--model.optimizer.init_args.weight_decay=0.3", "--trainer.logger=CSVLogger", "--print_config"])  # fmt: skip
    read = yaml.safe_load(capsys.readouterr().out)
    assert read["model"]["activation"]["init_args"] == {"alpha": 0.5}
    adam = read["model"]["optimizer"]["init_args"]
    assert (adam["lr"], adam["weight_decay"]) == (1e-3, 0.3)
    assert read["trainer"]["logger"]["init_args"]["save_dir"] == "here"


def test_the_help_names_the_default_optimizer(capsys: Any):
    with pytest.raises(SystemExit):
        train.main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "default: SGD lr 0.1" in text
    assert "<function" not in text


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_each_wrong_value_of_each_option(slip: Any, capsys: Any, tmp_path: Path, wrong: str):
    """The value is told to be wrong, or the command runs."""
    with pytest.raises(SystemExit):
        train.main(["fit", "--help"])
    found = re.findall(r"^  --([\w.]+)[ +]", capsys.readouterr().out, re.MULTILINE)
    known = [name for name in found if not name.endswith(".help") and name != "print_config"]
    assert len(known) > 80
    for name in known:
        signal.alarm(60)
        try:
            slip(*RUN.split(), f"--{name}={wrong}", may_run=True)
        finally:
            for left in ("runs", "checkpoints", "lightning_logs", wrong):
                if left and (tmp_path / "here" / left).is_dir():
                    shutil.rmtree(tmp_path / "here" / left)
        if wrong == WRONG[0]:
            slip(*RUN.split(), f"--{name[:-2]}{name[-1]}{name[-2]}x=1")
            slip(*RUN.split(), f"--{name}.nothing=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["CIFAR10", "CIFAR100", "MNIST", "MITBIH", "MiniImageNet", "TinyImageNet", "Silkworm",
     "ImageFolder", "ImageList"],
)  # fmt: skip
def test_each_wrong_folder_of_each_data_set(slip: Any, tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "one/a").mkdir(parents=True)
    for root in (
        "/no/such",
        "",
        "null",
        "3",
        "~nobody/x",
        tmp_path / "empty",
        tmp_path / "file",
        tmp_path / "one",
    ):
        slip("fit", "--data", name, f"--data.root={root}", "--model.backbone=resnet8")
