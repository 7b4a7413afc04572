"""What the monitor reads, writes and draws in real, small trainings."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from activations import (
    LSLU,
    PELU,
    CosLU,
    DSReLU,
    DynamicReLU,
    Fade,
    LinComb,
    ReLUN,
    replace_activations,
)
from callbacks import ActivationMonitor, run_results, run_summary
from callbacks.figures import grid
from callbacks.record import Record, Row, read, thinned, write_inputs
from callbacks.results import Results
from callbacks.sites import (
    Probe,
    activation_sites,
    compiled_parts,
    curve,
    detached,
    function,
    read_values,
)
from models import Classifier, build_backbone
from tests.data import Tiny
from tests.trainings import Small, trainer
from tests.trainings import classifier as fast_classifier


def classifier(activation: Any) -> Classifier:
    model = fast_classifier(activation)
    model.optimizer = partial(torch.optim.SGD, lr=0.01)
    return model


def rows(folder: str | Path) -> list[Row]:
    return list(read(Path(folder) / "activations.csv"))


def board(logger: TensorBoardLogger) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(logger.log_dir, {"tensors": 0, "images": 0, "scalars": 0}).Reload()


def test_scalars_table_and_pictures(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, "board", default_hp_metric=False)
    model, monitor = classifier(LSLU), ActivationMonitor(every_n_steps=4, figure_every_n_epochs=2)
    run = trainer(tmp_path, monitor, logger=logger)
    run.fit(model, datamodule=Tiny())
    found = board(logger)
    tags = {t for t in found.Tags()["scalars"] if t.startswith(("theta", "omega"))}
    sites = [name for name, module in model.backbone.named_modules() if isinstance(module, LSLU)]
    assert len(sites) == 7
    assert tags == {
        f"{p}_{i}/{site}" for p in ("theta", "omega") for i in (1, 2, 3) for site in sites
    }
    scalars = found.Scalars("theta_2/layer1.0.act1")
    assert [scalar.step for scalar in scalars] == [0, 4, 8, 12, 16, 20, 24]
    assert scalars[0].value == 1
    theta = model.backbone.get_parameter("layer1.0.act1.theta")
    assert scalars[-1].value == pytest.approx(theta[1].item())
    row = next(line for line in monitor.table().splitlines() if line.startswith("layer1.0.act1"))
    assert row.split()[1:] == ["theta"] + ["1.0000"] * 3 + [f"{v:.4f}" for v in theta.tolist()]
    # after the first step, the second of the three epochs, and the end
    assert [image.step for image in found.Images("activations")] == [1, 16, 24]
    assert [image.step for image in found.Images("parameters")] == [24]
    for name in ("activations.png", "parameters.png"):
        pixels = np.asarray(Image.open(Path(logger.log_dir) / name))
        assert pixels.shape[2] == 3
        assert 0.001 < (pixels < 128).any(2).mean() < 0.5  # lines on white
    summary = run_summary(run, [run_results(run, "val")])
    assert "macro-F1" in summary
    assert "activations.png" in summary
    assert f"tensorboard.main --logdir {tmp_path / 'board'}" in summary


def test_boards_and_results_show_the_values_that_the_function_uses(tmp_path: Path):
    logger, results = TensorBoardLogger(tmp_path, "board", default_hp_metric=False), Results()
    model = classifier(PELU)
    act = model.backbone.act1
    assert isinstance(act, PELU)
    with torch.no_grad():
        act.b.fill_(-0.5)
    model.activation_lr_scale = 0.0  # it stays there
    trainer(tmp_path, ActivationMonitor(figure=False), results, logger=logger).fit(
        model, datamodule=Tiny()
    )
    width = 1 / act(torch.ones(1, 1)).item() * act.a.item()  # f(1) = a / b
    assert act.b.item() == -0.5
    assert width == pytest.approx(0.1)
    assert results.learned["act1.b"] == pytest.approx([width])
    for scalar in board(logger).Scalars("b/act1"):
        assert scalar.value == pytest.approx(width)


def test_one_chart_a_parameter_and_one_row_a_run(tmp_path: Path):
    import re

    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    messages: Any = layout_pb2  # protobuf makes the classes at run time
    hparams: Any = plugin_data_pb2

    logger = TensorBoardLogger(tmp_path, "board", default_hp_metric=False)
    run = trainer(tmp_path, ActivationMonitor(8, figure=False), logger=logger, max_epochs=1)
    model = classifier(CosLU)
    # as the command line stores it
    model.hparams["activation"] = {"class_path": "activations.CosLU", "init_args": {"alpha": 0.7}}
    run.fit(model, datamodule=Tiny())
    found = board(logger)
    layout = messages.Layout()
    layout.ParseFromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    [category] = layout.category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert set(charts) == {"alpha", "beta"}
    scalars = found.Tags()["scalars"]
    for name, [expression] in charts.items():
        matching = [tag for tag in scalars if re.match(expression, tag)]
        assert sorted(matching) == sorted(t for t in scalars if t.startswith(f"{name}/"))
        assert len(matching) == 7

    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = hparams.HParamsPluginData.FromString(content).session_start_info
    chosen = {k: v.string_value or v.number_value for k, v in start.hparams.items()}
    assert (chosen["activation"], chosen["activation.alpha"]) == ("CosLU", 0.7)
    assert chosen["backbone"] == "resnet8"
    assert chosen["data"] == "Tiny"
    assert chosen["share"] == "site"
    assert chosen["train.lr"] == pytest.approx(0.01)
    assert "_hparams_/session_end_info" in found.summary_metadata
    content = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    declared = hparams.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {"val/acc", "test/acc"} <= {metric.name.tag for metric in declared}
    assert found.Scalars("val/acc")[0].step > 0  # nothing but real results


def test_per_channel_values_and_prelu(tmp_path: Path):
    logger = CSVLogger(tmp_path)
    model = classifier(None)
    model.backbone.act1 = CosLU(num_parameters=16)
    model.backbone.get_submodule("layer1.0").act1 = nn.PReLU()
    trainer(tmp_path, ActivationMonitor(1, figure=False), logger=logger).fit(
        model, datamodule=Tiny()
    )
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        last = [row for row in csv.DictReader(file) if row["alpha/act1"]][-1]
    alpha = model.backbone.act1.alpha
    assert float(last["alpha/act1"]) == pytest.approx(alpha.mean().item(), rel=1e-4)
    assert float(last["alpha_std/act1"]) == pytest.approx(alpha.std().item(), rel=1e-4)
    weight = model.backbone.get_parameter("layer1.0.act1.weight")
    assert float(last["weight/layer1.0.act1"]) == pytest.approx(weight.item(), rel=1e-4)
    single = [r for r in rows(logger.log_dir) if r.param == "alpha" and r.channel is not None]
    assert [r.step for r in single] == [1] * 16 + [24] * 16
    assert [r.channel for r in single] == [*range(16)] * 2
    assert [r.value for r in single[16:]] == pytest.approx(alpha.tolist())


def test_every_channel_and_histograms_on_request(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, "board", default_hp_metric=False)
    model = classifier(None)
    model.backbone.act1 = CosLU(num_parameters=16)
    monitor = ActivationMonitor(8, channels="all", histograms=True, figure=False)
    trainer(tmp_path, monitor, logger=logger, max_epochs=1).fit(model, datamodule=Tiny())
    found = board(logger)
    beta = model.backbone.act1.beta[13].item()
    assert found.Scalars("beta/act1/13")[-1].value == pytest.approx(beta)
    assert {"inputs/act1", "inputs/layer2.0.act2", "alpha_channels/act1"} <= set(
        found.Tags()["histograms"]
    )
    assert found.Histograms("alpha_channels/act1")[-1].histogram_value.num == 16
    assert not found.Tags()["images"]


def test_pandas_reads_the_record(tmp_path: Path):
    import pandas

    trainer(
        tmp_path, ActivationMonitor(4, figure=False), logger=CSVLogger(tmp_path), max_epochs=2
    ).fit(classifier(partial(DSReLU, a=1.5, b=0.5)), datamodule=Tiny())
    table = pandas.read_csv(next(tmp_path.rglob("activations.csv")))
    assert list(table.columns) == ["step", "epoch", "site", "param", "channel", "value"]
    slope = table[(table.param == "slope") & (table.site == "layer3.0.act2")]
    assert list(slope.step) == [0, 4, 8, 12, 16]
    health = table[(table.param == "out_std") & (table.site == "act1")]
    assert list(health.epoch) == [0, 1]


class Recorder(Callback):
    """Whole inputs, outputs and gradients of one site, read by itself."""

    def __init__(self, site: str) -> None:
        self.site, self.inputs, self.outputs, self.norms = site, [], [], []

    def on_train_start(self, trainer, pl_module: Any):
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if module.training and torch.is_grad_enabled():
                self.inputs.append(inputs[0].detach().clone())
                self.outputs.append(output.detach().clone())

        self.module = pl_module.backbone.get_submodule(self.site)
        self.module.register_forward_hook(hook)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameter = next(self.module.parameters(recurse=False), None)
        if parameter is not None and parameter.grad is not None:
            self.norms.append(parameter.grad.norm().item())


def health(folder: str | Path, site: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows(folder):
        if row.site == site and row.param not in ("n", "alpha", "beta"):
            found.setdefault(row.param, []).append(row.value)
    return found


def test_gradients_that_are_accumulated_are_seen_in_every_epoch(tmp_path: Path):
    monitor, logger = ActivationMonitor(every_n_steps=100, figure=False), CSVLogger(tmp_path)
    run = trainer(tmp_path, monitor, logger=logger, max_epochs=3, accumulate_grad_batches=3)
    run.fit(Small(), datamodule=Tiny())
    rows = [row for row in read(Path(logger.log_dir) / "activations.csv") if row.param == "grad_b"]
    assert sorted({row.epoch for row in rows}) == [0, 1, 2]


def test_health_against_whole_batches(tmp_path: Path):
    # batches of 6 images of 16 x 8 x 8 are looked at whole
    seen, logger = Recorder("act1"), CSVLogger(tmp_path)
    monitor = ActivationMonitor(every_n_steps=1, figure=False)
    model = classifier(partial(ReLUN, n=0.4))
    trainer(tmp_path, monitor, seen, logger=logger, max_epochs=1).fit(model, datamodule=Tiny())
    found = health(logger.log_dir, "act1")
    x, y = (torch.stack(values).double() for values in (seen.inputs, seen.outputs))
    assert len(x) == 8
    assert found["zeros"] == [pytest.approx((y == 0).double().mean().item(), abs=1e-6)]
    full = torch.stack([(b > 0) & (b == b.max()) for b in y])
    assert found["saturated"] == [pytest.approx(full.double().mean().item(), abs=3e-3)]
    assert 0.05 < found["saturated"][0] < 0.9
    for name, values in (("in", x), ("out", y)):
        mean, square = values.mean().item(), values.square().mean().item()
        assert found[f"{name}_mean"] == [pytest.approx(mean, rel=1e-4, abs=1e-5)]
        assert found[f"{name}_std"] == [pytest.approx((square - mean**2) ** 0.5, rel=1e-4)]
    assert found["grad_n"] == [pytest.approx(np.mean(seen.norms), rel=1e-5)]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by Dynamo, of the part's input
@pytest.mark.parametrize("how", ["in place", "wrapped", "a part"])
def test_compiled_networks_are_left_alone(tmp_path: Path, how: str):
    from torch._dynamo.utils import counters

    def graphs(*callbacks: Callback) -> int:
        torch.compiler.reset()
        counters.clear()
        model: Any = Small()
        if how == "in place":
            model.backbone.compile(backend="eager", fullgraph=True)
        elif how == "wrapped":
            model.backbone = torch.compile(model.backbone, backend="eager", fullgraph=True)
        else:
            model.backbone.act2.compile(backend="eager", fullgraph=True)
        run = trainer(tmp_path, *callbacks, max_epochs=1, limit_train_batches=4)
        run.fit(model, datamodule=Tiny())
        return counters["stats"]["unique_graphs"]

    assert graphs(ActivationMonitor(2, figure=how == "in place")) == graphs() > 0
    seen = {}
    for row in rows(tmp_path / "monitor/version_0"):
        seen.setdefault(row.param, set()).add(row.site.removeprefix("_orig_mod."))
    assert seen["a_std"] == seen["grad_a"] == {"act2"}
    assert seen.get("zeros", set()) == ({"act1"} if how == "a part" else set())


def test_a_compiled_function_is_left_alone(tmp_path: Path):
    model: Any = Small()
    model.loss = torch.compile(model.loss, backend="eager", fullgraph=True)
    trainer(tmp_path, ActivationMonitor(1), max_epochs=1).fit(model, datamodule=Tiny())
    found = {row.param for row in rows(tmp_path / "monitor/version_0")}
    assert "grad_a" in found
    assert "zeros" not in found


def test_what_is_compiled():
    inner = nn.Linear(2, 2)
    net: Any = nn.ModuleDict({"plain": nn.ReLU()})
    net["wrapped"] = torch.compile(nn.Sequential(inner))
    net["in place"] = nn.Tanh()
    net["in place"].compile()
    expected = {net["wrapped"], net["wrapped"]._orig_mod, inner, net["in place"]}
    assert compiled_parts(net) == expected


def test_a_copy_shares_what_is_no_state():
    """Hooks may belong to objects of any size, and results of a forward pass cannot be copied."""

    class Owner:
        def __deepcopy__(self, memo: Any) -> None:
            raise AssertionError("copied")

        def hook(self, module: nn.Module, args: Any, output: Any) -> None:
            self.seen = output

    act, owner = CosLU(), Owner()
    act.register_forward_hook(owner.hook)
    kept: Any = act
    kept.cache, kept.owner = {"x": act(torch.ones(2))}, owner
    twin = detached(act)
    assert not twin.training
    assert act.training
    twin.get_parameter("alpha").data.fill_(7.0)
    assert act.alpha.item() == 1


def test_health_knows_functions_of_torch_in_place(tmp_path: Path):
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.Tanh())
    probe = Probe(activation_sites(net))
    probe.watch()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(3)) * 40
    before = net[0](x)
    net(x)
    probe.leave()
    net(x * 2)  # not seen
    found = probe.read()
    assert torch.equal(probe.inputs["1"], before)
    assert found["1"]["zeros"] == pytest.approx((before <= 0).float().mean().item())
    assert found["1"]["saturated"] == 0
    flat = 1 - torch.tanh(net[2](net[1](before.clone()))) ** 2 < 0.01
    assert found["3"]["saturated"] == pytest.approx(flat.float().mean().item(), abs=0.02)
    assert not net[1]._forward_hooks
    assert not net[1]._forward_pre_hooks
    assert probe.read() == {}


def test_large_batches_are_sampled_with_all_channels():
    act = CosLU(num_parameters=24)
    probe = Probe({"act": act})
    probe.watch()
    act(torch.randn(64, 24, 40, 40))
    act(torch.randn(64, 24))
    probe.leave()
    assert probe.inputs["act"].shape == (16, 24)
    probe.watch()
    act(torch.randn(64, 24, 40, 40))
    probe.leave()
    n, c, h, w = probe.inputs["act"].shape
    assert (n, c, h) == (16, 24, w)
    assert 16 * 24 * h * w <= 2**14


def test_the_monitor_changes_nothing(tmp_path: Path):
    """Same bits with and without it, where functions draw random slopes."""

    def trained(*callbacks: Callback) -> dict[str, Tensor]:
        model = classifier(nn.RReLU)
        torch.manual_seed(11)
        trainer(tmp_path, *callbacks, logger=CSVLogger(tmp_path), max_epochs=1).fit(
            model, datamodule=Tiny()
        )
        return model.state_dict()

    monitor = ActivationMonitor(1, figure_every_n_epochs=1, histograms=True)
    watched, alone = trained(monitor), trained()
    assert all(torch.equal(value, watched[name]) for name, value in alone.items())


@pytest.mark.filterwarnings(
    "ignore:.*its (beta|alpha) is nan", "ignore:.*has grown"
)  # everywhere, at once
def test_warnings(tmp_path: Path):
    class Shift(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - 100

    model = classifier(CosLU)
    model.backbone.act1 = nn.Sequential(Shift(), nn.ReLU())
    run = trainer(tmp_path, ActivationMonitor(1, figure=False), max_epochs=2, limit_train_batches=2)
    with pytest.warns(UserWarning, match=r"act1.1: 100.0% of its values were zero in epoch 0") as w:
        run.fit(model, datamodule=Tiny())
    assert len([each for each in w if "were zero" in str(each.message)]) == 1  # not every epoch

    class Jump(Callback):
        def __init__(self, value: float) -> None:
            self.value = value

        def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx):
            if trainer.global_step == 5:
                pl_module.backbone.act1.alpha.data.fill_(self.value)

    with pytest.warns(UserWarning, match="act1: .*its alpha has grown from 1 to 1500 at step 6"):
        trainer(tmp_path, ActivationMonitor(1, figure=False), Jump(1500.0), max_epochs=1).fit(
            classifier(CosLU), datamodule=Tiny()
        )
    with (
        pytest.warns(UserWarning, match="act1: its alpha is nan at step 6"),
        pytest.raises(ArithmeticError, match="diverged"),
    ):
        trainer(tmp_path, ActivationMonitor(1, figure=False), Jump(float("nan")), max_epochs=1).fit(
            classifier(CosLU), datamodule=Tiny()
        )


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_keeps_the_history(tmp_path: Path):
    save = ModelCheckpoint(tmp_path / "ckpt", "{step}", every_n_train_steps=11, save_top_k=-1)
    whole = CSVLogger(tmp_path, "whole")
    watched = ActivationMonitor(1, figure=False)
    run = trainer(tmp_path, watched, save, logger=whole, enable_checkpointing=True)
    run.fit(classifier(CosLU), datamodule=Tiny())
    resumed = CSVLogger(tmp_path, "resumed")
    monitor = ActivationMonitor(1, figure=False)
    save = ModelCheckpoint(tmp_path / "ckpt", "{step}", every_n_train_steps=11, save_top_k=-1)
    trainer(tmp_path, monitor, save, logger=resumed, enable_checkpointing=True).fit(
        classifier(CosLU), datamodule=Tiny(), ckpt_path=str(tmp_path / "ckpt/step=11.ckpt")
    )
    names = ("alpha", "beta")
    expected, found = ([r for r in rows(logger.log_dir) if r.param in names and r.channel is None]
                       for logger in (whole, resumed))  # fmt: skip
    assert found == expected
    assert [label for label, _ in monitor._shapes] == ["at the start", "epoch 3"]
    assert monitor.table() == watched.table()
    files = [Path(logger.log_dir) / "inputs.csv" for logger in (whole, resumed)]
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_network_that_learns_no_shape_keeps_its_history(tmp_path: Path):
    """Such as the baseline, ReLU: its dead units and its inputs are in the file."""
    found = []
    for epochs, path in ((1, None), (2, tmp_path / "1/last.ckpt")):
        logger = CSVLogger(tmp_path, f"log {epochs}")
        last = ModelCheckpoint(tmp_path / f"{epochs}", "last")
        monitor = ActivationMonitor(4, figure=False)
        run = trainer(tmp_path, monitor, last, logger=logger, enable_checkpointing=True,
                      max_epochs=epochs)  # fmt: skip
        run.fit(classifier(nn.ReLU), datamodule=Tiny(), ckpt_path=path)
        found.append(rows(logger.log_dir))
    assert found[0]
    assert found[1][: len(found[0])] == found[0]
    assert len(found[1]) > len(found[0])


def test_quantiles_of_the_inputs(tmp_path: Path):
    """Each of the 101 has the same share of the inputs around it; they stay after a resume."""
    import pandas

    probe = Probe({"act1": CosLU(), "act2": CosLU(), "act3": CosLU()})
    few = torch.tensor([[2.0, -1.0, float("nan")]])
    large = torch.randn(16, 1000)
    probe.inputs = {"act1": large, "act2": few, "act3": torch.full((3,), float("inf"))}
    found = probe.quantiles()
    assert list(found) == ["act1", "act2"]
    expected = np.quantile(large.numpy(), (np.arange(101) + 0.5) / 101, method="inverted_cdf")
    np.testing.assert_allclose(found["act1"], expected, atol=0.02)
    assert found["act2"].tolist() == [-1.0] * 50 + [2.0] * 51
    probe.load_state_dict(probe.state_dict())
    assert all(torch.equal(found[name], again) for name, again in probe.quantiles().items())
    write_inputs(tmp_path / "inputs.csv", found)
    table = pandas.read_csv(tmp_path / "inputs.csv")
    np.testing.assert_allclose(table["act1"], found["act1"], rtol=1e-4)


class Own(LightningModule):
    """Any module: names of its own, activations wherever they are."""

    act: Any

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.backbone = "a name"  # a common attribute, and no network here
        torch.manual_seed(5)
        self.layer = nn.Linear(64, 5)
        for name, part in parts.items():
            setattr(self, name, part)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.layer(x)))

    def training_step(self, batch, batch_idx):
        images, labels, *_ = batch
        loss = nn.functional.cross_entropy(self(images.flatten(1).to(self.layer.weight)), labels)
        return loss + 0.5 * getattr(self.act, "kept", loss).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class KeepingReLU(nn.Module):
    """Its output is used again, and it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = x.relu() * 1
        return self.kept


@pytest.mark.parametrize("act", [KeepingReLU, lambda: LinComb([nn.RReLU, nn.ReLU])])
def test_no_module_notices_the_monitor(tmp_path: Path, act: Any):
    def trained(*callbacks: Callback) -> dict[str, Tensor]:
        model = Own(act=act())
        torch.manual_seed(3)
        trainer(tmp_path, *callbacks, max_epochs=1).fit(model, datamodule=Tiny())
        return model.state_dict()

    alone, watched = trained(), trained(ActivationMonitor(1, figure_every_n_epochs=1))
    assert all(torch.equal(value, watched[name]) for name, value in alone.items())


def test_double_precision_and_odd_choices(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, "board", default_hp_metric=False)
    model = Own(act=CosLU(num_parameters=5, channel_dim=-1))
    model.save_hyperparameters({"backbone": {"a": [1]}, "share": np.float64(0.5)})
    model.hparams["stem"] = [1, 2]
    monitor = ActivationMonitor(1)
    trainer(tmp_path, monitor, logger=logger, max_epochs=1, precision="64-true").fit(
        model, datamodule=Tiny()
    )
    assert list(monitor.last) == ["act"]
    assert (Path(logger.log_dir) / "activations.png").is_file()
    found = health(logger.log_dir, "act")
    assert found["grad_alpha"][0] > 0


def test_deviations_far_from_zero():
    act = nn.ReLU()
    probe = Probe({"act": act})
    probe.watch()
    generator = torch.Generator().manual_seed(1)
    batches = [mean + 0.1 * torch.randn(16, 500, generator=generator) for mean in (300.0, 300.4)]
    for batch in batches:
        act(input=batch)
    probe.leave()
    whole = torch.stack(batches).double()
    assert probe.read()["act"]["in_std"] == pytest.approx(whole.std(correction=0).item(), rel=1e-3)


def test_a_second_fit_goes_on(tmp_path: Path):
    run = trainer(
        tmp_path, ActivationMonitor(4, figure=False), logger=CSVLogger(tmp_path), max_epochs=1
    )
    model = classifier(CosLU)
    run.fit(model, datamodule=Tiny())
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=Tiny())
    found = [r for r in read(next(tmp_path.rglob("activations.csv"))) if r[2:4] == ("act1", "beta")]
    assert [row.step for row in found] == [0, 4, 8, 12, 16]
    assert [row.epoch for row in found] == [0, 0, 0, 1, 1]


def test_a_record_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*activations.csv: .*another folder"):
        Record(tmp_path / "file" / "activations.csv")


def test_without_a_logger_files_are_kept_apart(tmp_path: Path):
    for _ in range(2):
        run = trainer(tmp_path, ActivationMonitor(8), max_epochs=1, limit_train_batches=2)
        run.fit(Small(), datamodule=Tiny())
    for version in ("version_0", "version_1"):
        folder = tmp_path / "monitor" / version
        assert {path.name for path in folder.iterdir()} == {
            "activations.csv", "activations.png", "inputs.csv", "parameters.png"
        }  # fmt: skip


def test_a_fast_development_run_writes_nothing(tmp_path: Path):
    trainer(tmp_path, ActivationMonitor(), fast_dev_run=True).fit(
        classifier(CosLU), datamodule=Tiny()
    )
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_activations_is_no_trouble(tmp_path: Path):
    class Linear(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def validation_step(self, batch, batch_idx):
            pass

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    monitor = ActivationMonitor(1)
    trainer(tmp_path, monitor, max_epochs=1).fit(Linear(), datamodule=Tiny())
    assert monitor.last == {}
    assert not list(tmp_path.rglob("activations.*"))


def test_at_most_300_tags_on_resnet50():
    net = build_backbone("timm/resnet50", 10)
    replace_activations(net, CosLU, share="channel", example_input=torch.zeros(2, 3, 32, 32))
    monitor = ActivationMonitor()
    monitor.last = read_values(activation_sites(net))
    assert len(monitor._choose_tags()) == 49 * 4
    names = [(f"s{i}", f"c_{k}{d}") for i in range(49) for k in range(10) for d in ("", "_std")]
    chosen = thinned(names, 300)
    assert len(chosen) == 250
    assert [site for site, _ in chosen[::10]] == [f"s{i}" for i in range(0, 49, 2)]
    assert thinned(names, 7) == [("s0", f"c_{k}") for k in range(7)]
    assert thinned(names[:20], 20) == names[:20]


def test_sites_and_their_functions():
    net: Any = nn.ModuleDict({
        "fade": Fade(nn.ReLU(), ReLUN(0.5)), "mix": LinComb([nn.ReLU, CosLU]), "own": nn.Mish(),
        "slope": DSReLU(), "dynamic": DynamicReLU(4), "series": LSLU(4, 1.3, 0.2),
        "gate": nn.Sigmoid(), "layer": nn.Linear(2, 2),
    })  # fmt: skip
    net["fade"].set_progress(0.25)
    sites = activation_sites(net)
    assert list(sites) == ["fade", "mix", "own", "slope", "dynamic", "series"]
    values = read_values(sites)
    assert {(site, name) for site, named in values.items() for name in named} == {
        ("fade", "progress"), ("fade.new", "n"), ("mix", "weights"), ("mix.members.1", "alpha"),
        ("mix.members.1", "beta"), ("slope", "slope"), ("series", "theta"), ("series", "omega"),
    }  # fmt: skip
    x = torch.linspace(-2, 2, 9)
    faded = 0.75 * x.relu() + 0.25 * x.clamp(0, 0.5)
    torch.testing.assert_close(function(net["fade"], x), faded)
    y = x
    for _ in range(3):
        y = 1.3 * y.relu() + 0.2
    torch.testing.assert_close(function(net["series"], x), y.relu())
    # an earlier shape is drawn with earlier values, and the network stays as it is
    values["fade"]["progress"].fill_(1.0)
    values["fade.new"]["n"].fill_(0.3)
    drawn = curve("fade", net["fade"], x, values)
    torch.testing.assert_close(drawn[:, 0], x.clamp(0, 0.3))
    torch.testing.assert_close(function(net["fade"], x), faded)


def test_a_class_that_takes_more_than_numbers_is_left_undrawn(tmp_path: Path):
    class PairSwish(nn.Module):  # named like an activation
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * torch.sigmoid(scale * x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = PairSwish()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x, torch.ones(1))

    net = Net()
    probe = Probe(activation_sites(net))
    probe.watch()
    net(torch.ones(2, 3))
    found = probe.read()["act"]
    assert found["in_mean"] == 1
    assert np.isnan(found["saturated"])
    assert probe.drawn == {}


def test_grid_follows_the_inputs():
    x = grid(torch.cat([torch.linspace(2, 7, 5000), torch.tensor([float("nan"), float("inf")])]))
    assert x[0].item() < 0 < 2
    assert x[-1].item() == pytest.approx(7, abs=0.5)
    assert grid(torch.empty(0)).tolist() == pytest.approx(
        np.linspace(-4, 4, 201).tolist(), abs=1e-6
    )
    assert grid(torch.zeros(10)).isfinite().all()


def test_a_cut_off_record_is_read_up_to_there(tmp_path: Path):
    path = tmp_path / "activations.csv"
    record = Record(path)
    record.write([Row(1, 0, 'odd "name", here', "alpha", None, 0.1), Row(2, 0, "b", "c", 3, 1e-9)])
    with path.open("a") as file:
        file.write("3,0,a")
    assert list(read(path)) == [
        Row(1, 0, 'odd "name", here', "alpha", None, 0.1), Row(2, 0, "b", "c", 3, 1e-9)
    ]  # fmt: skip
    Record(path, path, step=1)
    assert [row.step for row in read(path)] == [1]
    assert list(read(tmp_path / "none.csv")) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be >= 1, got 0"),
        ({"figure_every_n_epochs": 0}, "figure_every_n_epochs must be >= 1, got 0"),
        ({"max_tags": -3}, "max_tags must be >= 1, got -3"),
        ({"channels": "some"}, "channels must be 'mean' or 'all', got 'some'"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ActivationMonitor(**wrong)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path):
    from lightning.pytorch import Trainer

    monitor = ActivationMonitor(1, histograms=True)
    run = Trainer(accelerator="gpu", devices=1, default_root_dir=tmp_path, max_epochs=1,
                  callbacks=[monitor], logger=CSVLogger(tmp_path), enable_checkpointing=False,
                  enable_progress_bar=False, precision="bf16-mixed",
                  log_every_n_steps=4)  # fmt: skip
    run.fit(classifier(CosLU), datamodule=Tiny())
    assert monitor.last["act1"]["alpha"].device.type == "cpu"
    assert (next(tmp_path.rglob("activations.png"))).stat().st_size > 10_000
