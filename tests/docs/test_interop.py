"""Each row of the table in docs/deploy.md: what other libraries do with a swapped network.

Libraries that `pip install '.[dev]'` does not bring are tested where they are installed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

import activations as A

ROOT = Path(__file__).parents[2]
BATCH = {0: torch.export.Dim("batch", min=1)}
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries themselves


def network(kind: Any = A.CosLU, share: Any = "channel") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    A.replace_activations(model, kind, example_input=images(), share=share)
    return model.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))


def close(found: Any, expected: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected.detach(), rtol=1e-4, atol=1e-5)


def test_every_row_names_its_test():
    page = (ROOT / "docs/deploy.md").read_text()
    rows = re.findall(r"^\| .* \| .* \| `(test_\w+)` \|$", page, re.M)
    own = [name for name in globals() if name.startswith("test_")]
    assert sorted([*rows, "test_every_row_names_its_test"]) == sorted(own)


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(strict: bool):
    model = network()
    program = torch.export.export(model, (images(),), dynamic_shapes=(BATCH,), strict=strict)
    close(program.module()(images(3)), model(images(3)))


def test_onnx_runtime(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = network(), tmp_path / "model.onnx"
    torch.onnx.export(
        model, (images(),), file, input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False
    )
    session = onnxruntime.InferenceSession(file)
    close(session.run(None, {"x": images(3).numpy()})[0], model(images(3)))


@pytest.mark.slow
def test_openvino():
    openvino = pytest.importorskip("openvino")
    model = network()
    program = openvino.convert_model(torch.export.export(model, (images(),)))
    compiled = openvino.compile_model(program, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    close(compiled([images().numpy()])[0], model(images()))


@pytest.mark.slow
def test_aotinductor(tmp_path: Path):
    model = network()
    program = torch.export.export(model, (images(),), dynamic_shapes=(BATCH,))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    close(torch._inductor.aoti_load_package(package)(images(3)), model(images(3)))


@pytest.mark.slow
def test_executorch(tmp_path: Path):
    exir = pytest.importorskip("executorch.exir")
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    runtime = pytest.importorskip("executorch.runtime")
    model = network()
    edge = exir.to_edge_transform_and_lower(
        torch.export.export(model, (images(),)), partitioner=[xnnpack.XnnpackPartitioner()]
    )
    (tmp_path / "model.pte").write_bytes(edge.to_executorch().buffer)
    program = runtime.Runtime.get().load_program(tmp_path / "model.pte")
    close(program.load_method("forward").execute([images()])[0], model(images()))


def test_compile_with_a_dynamic_batch():
    torch._dynamo.reset()
    compilations = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    model = network()
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for count in (4, 7, 3):
        close(compiled(images(count)).detach(), model(images(count)))
    assert len(compilations) == 1


def test_functional_transforms():
    model = network().double()
    x, state = images().double(), dict(model.named_parameters())

    def run(state: dict[str, Any], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, state, (x[None],))[0]

    torch.testing.assert_close(torch.vmap(run, (None, 0))(state, x), model(x))
    step = torch.randn(x.shape, dtype=x.dtype) * 1e-6
    change = torch.func.jvp(lambda x: torch.vmap(run, (None, 0))(state, x), (x,), (step,))[1]
    torch.testing.assert_close(change, model(x + step) - model(x), rtol=1e-3, atol=1e-9)
    each = torch.vmap(torch.func.grad(lambda state, x: run(state, x).sum()), (None, 0))(state, x)
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


def test_captum():
    attr = pytest.importorskip("captum.attr")
    from captum.attr._core.deep_lift import (  # pyright: ignore[reportMissingImports]
        SUPPORTED_NON_LINEAR,
        nonlinear,
    )

    model, x = network(), images()
    change = (model(x) - model(0 * x))[:, 1]
    found = attr.IntegratedGradients(model).attribute(x, target=1, n_steps=200)
    torch.testing.assert_close(found.sum((1, 2, 3)).float(), change, rtol=1e-2, atol=1e-3)
    SUPPORTED_NON_LINEAR[A.CosLU] = nonlinear
    found = attr.DeepLift(model).attribute(x, target=1)
    torch.testing.assert_close(found.sum((1, 2, 3)), change, rtol=1e-4, atol=1e-5)


FSDP = """
import sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from tests.docs.test_interop import images, network
from activations import CosLU, parameter_groups

def work(rank, store):
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    model, twin = network(), network()
    for part in (model, twin):
        optimizer = torch.optim.SGD(parameter_groups(part), 0.1)
        if part is model:
            for module in part:
                if isinstance(module, (CosLU, torch.nn.Linear)):
                    fully_shard(module)
            fully_shard(part)
            optimizer = torch.optim.SGD(parameter_groups(part), 0.1)
        x = images(8) if part is twin else images(8)[4 * rank : 4 * rank + 4]
        for _ in range(2):
            optimizer.zero_grad()
            part(x).square().mean().backward()
            optimizer.step()
    for (name, found), expected in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(found.full_tensor(), expected, msg=lambda why: name + why)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
    print("same parameters")
"""


@pytest.mark.slow
def test_fsdp2(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(FSDP)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "same parameters" in done.stdout, done.stderr[-2000:]


def trained_by_hand() -> nn.Module:
    model = network()
    optimizer = torch.optim.SGD(A.parameter_groups(model), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    return model


def same(found: nn.Module, expected: nn.Module) -> None:
    for (name, value), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, msg=lambda why, name=name: name + why)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator, model = accelerate.Accelerator(cpu=True), network()
    optimizer = torch.optim.SGD(A.parameter_groups(model), 0.1)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        accelerator.backward(wrapped(images()).square().mean())
        optimizer.step()
    same(accelerator.unwrap_model(wrapped), trained_by_hand())


def test_fabric():
    fabric, model = Fabric(accelerator="cpu", devices=1), network()
    optimizer = torch.optim.SGD(A.parameter_groups(model), 0.1)
    wrapped, optimizer = fabric.setup(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        fabric.backward(wrapped(images()).square().mean())
        optimizer.step()
    same(model, trained_by_hand())


def test_transformers_trainer(tmp_path: Path):
    transformers = pytest.importorskip("transformers")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = Classifier()
    before = model.net[2].alpha.detach().clone()  # pyright: ignore
    optimizer = torch.optim.SGD(A.parameter_groups(model), 0.1)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=[{"x": x, "labels": 1} for x in images(8)],
        optimizers=(optimizer, None),
    )  # fmt: skip
    assert trainer.train().global_step == 2
    assert not torch.equal(model.net[2].alpha, before)  # pyright: ignore


def test_torchinfo():
    torchinfo = pytest.importorskip("torchinfo")
    model = network()
    summary = torchinfo.summary(model, input_data=images(), verbose=0)
    assert summary.total_params == sum(value.numel() for value in model.parameters())
    assert "CosLU: 1-3" in str(summary)


def test_fvcore():
    counters = pytest.importorskip("fvcore.nn")
    model = network()
    counted = counters.FlopCountAnalysis(model, images()).unsupported_ops_warnings(False)
    plain = counters.FlopCountAnalysis(network(nn.SiLU, "site"), images()).unsupported_ops_warnings(
        False
    )
    assert counted.total() == plain.total()
    assert counted.unsupported_ops()["aten::cos"] == 2
    assert counters.parameter_count(model)[""] == sum(v.numel() for v in model.parameters())


@pytest.mark.slow
def test_quantisation_aware_training():
    pytest.importorskip("torchao")
    from torchao.quantization import pt2e  # pyright: ignore[reportMissingImports]
    from torchao.quantization.pt2e import quantize_pt2e  # pyright: ignore[reportMissingImports]
    from torchao.quantization.pt2e.quantizer import (  # pyright: ignore[reportMissingImports]
        x86_inductor_quantizer as x86,
    )

    model, x = network(), images(32)
    y = model(x).detach()
    program: Any = torch.export.export(model, (x,)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = quantize_pt2e.prepare_qat_pt2e(program, quantizer)
    prepared(x).square().sum().backward()
    for name, value in prepared.named_parameters():
        assert value.grad is not None, name
    pt2e.move_exported_model_to_eval(prepared)
    converted = quantize_pt2e.convert_pt2e(prepared)
    assert (converted(x) - y).abs().max() < 0.05 * y.abs().max()
