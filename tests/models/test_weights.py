"""Weights from files, adapted and refused; initialisation with the activation's gain."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from activations import (
    DELU,
    LSLU,
    BSpline,
    CosLU,
    Formula,
    LinComb,
    Polynomial,
    ReLUN,
    SinLU,
    gain,
    parameter_groups,
)
from activations.groups import shape_parameters
from models import Classifier, build_backbone, kaiming_, load_weights
from models.weights import is_same


@pytest.mark.parametrize("form", ["pth", "safetensors", "wrapped"])
def test_weights_from_a_file(form: str, tmp_path):
    torch.manual_seed(0)
    trained: Any = build_backbone("torchvision/resnet18", 5).eval()
    state, path = trained.state_dict(), tmp_path / f"mödel weights.{form}"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": v for n, v in state.items()}}, path)
    else:
        torch.save(state, path)
    again = build_backbone("torchvision/resnet18", 5, checkpoint_path=path).eval()
    x = torch.randn(2, 3, 65, 65)
    assert torch.equal(trained(x), again(x))
    with pytest.warns(
        UserWarning, match=r"has 5 classes, the data 7: the layer 'fc' starts untrained"
    ):
        other: Any = build_backbone("torchvision/resnet18", 7, 1, checkpoint_path=path).eval()
    assert torch.equal(other.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)
    torch.testing.assert_close(other.conv1.weight, trained.conv1.weight.sum(1, keepdim=True))
    assert other.fc.weight.shape == (7, 512)


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.pth"
    state = build_backbone("resnet8", 10).state_dict()
    torch.save(state, path)
    with pytest.raises(
        ValueError,
        match=r"weights.pth does not fit CifarResNet: layer1.1.conv1.weight: missing.*; and \d+ more",
    ):
        build_backbone("resnet14", 10, checkpoint_path=path)
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), path)
    with pytest.raises(
        ValueError,
        match=r"conv1.weight: \(64, 3, 7, 7\), the network \(64, 3, 3, 3\) \(.*stem: imagenet\)",
    ):
        build_backbone("torchvision/resnet18", 5, image_size=32, checkpoint_path=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights.pth' cannot be read as weights"):
        build_backbone("resnet8", 10, checkpoint_path=path)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match=r"weights.pth' holds no weights by name"):
        build_backbone("resnet8", 10, checkpoint_path=path)
    with pytest.raises(
        FileNotFoundError, match=r"no weights at 'none.pth' \(--model.checkpoint_path\)"
    ):
        build_backbone("resnet8", 10, checkpoint_path="none.pth")
    with pytest.raises(ValueError, match="resnet8 has no pretrained weights"):
        build_backbone("resnet8", 10, pretrained=True)
    with pytest.raises(ValueError, match="give pretrained or checkpoint_path, not both"):
        build_backbone("resnet18", 10, pretrained=True, checkpoint_path=path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc.bias", 3, "holds 'fc.bias', of type int, among its weights: save"),
        (7, torch.zeros(2), "holds 7, of type Tensor, among its weights: save"),
        ("conv1.weight", torch.tensor(1.0), r"conv1.weight: \(\), the network \(16, 3, 3, 3\)"),
        ("conv1.weight", torch.zeros(16, 0, 3, 3), r"\(16, 0, 3, 3\), the network"),
        ("fc.weight", torch.tensor(1.0), r"fc.weight: \(\), the network \(10, 64\)"),
        ("fc.weight", torch.zeros(10, 3), r"fc.weight: \(10, 3\), the network \(10, 64\)"),
    ],
)
def test_weights_of_which_one_is_broken(name: Any, value: Any, message: str, tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save({**build_backbone("resnet8", 10).state_dict(), name: value}, path)
    with pytest.raises(ValueError, match=message):
        build_backbone("resnet8", 10, checkpoint_path=path)


class Distilled(nn.Module):
    """Positions ahead of the first convolution, two heads, and an activation behind them."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.conv = nn.Conv2d(channels, 8, 4)
        self.head, self.head_dist = nn.Linear(8, classes), nn.Linear(8, classes)
        self.act = BSpline()


def test_what_a_network_of_other_sizes_takes_over():
    trained, network = Distilled(3, 10), Distilled(1, 5)
    kept = network.head.weight.detach().clone()
    message = "10 classes, the data 5: the layers 'head' and 'head_dist' start untrained"
    with pytest.warns(UserWarning, match=message):
        load_weights(network, trained.state_dict(), source="a file")
    assert torch.equal(network.positions, trained.positions)
    assert torch.equal(network.head.weight, kept)
    torch.testing.assert_close(network.conv.weight, trained.conv.weight.sum(1, keepdim=True))


def test_weights_of_old_files_and_of_other_leads():
    trained: Any = torchvision.models.resnet18(num_classes=3)
    network: Any = torchvision.models.resnet18(num_classes=3)
    old = {n: v for n, v in trained.state_dict().items() if not n.endswith("batches_tracked")}
    load_weights(network, old, source="a file")
    assert torch.equal(network.layer1[0].bn1.weight, trained.layer1[0].bn1.weight)
    one: Any = build_backbone("resnet8", 3, in_channels=1, dims=1)
    two: Any = build_backbone("resnet8", 3, in_channels=2, dims=1)
    load_weights(two, one.state_dict(), source="a file")
    torch.testing.assert_close(two.conv1.weight, one.conv1.weight.expand(-1, 2, -1) / 2)
    load_weights(one, two.state_dict(), source="a file")
    torch.testing.assert_close(one.conv1.weight, two.conv1.weight.sum(1, keepdim=True))


def test_pretrained_inception_takes_inputs_as_its_weights_do(monkeypatch):
    trained: Any = torchvision.models.googlenet(init_weights=False)
    weights = torchvision.models.GoogLeNet_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: trained.state_dict())
    with pytest.warns(UserWarning, match="has 1000 classes, the data 5"):
        network: Any = build_backbone("torchvision/googlenet", 5, image_size=64, pretrained=True)
    assert network.transform_input
    assert torch.equal(network.conv1.conv.weight, trained.conv1.conv.weight)


def test_pretrained_torchvision_weights(monkeypatch):
    trained = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: trained.state_dict())
    with pytest.warns(UserWarning, match="pretrained weights has 1000 classes, the data 5"):
        network: Any = build_backbone("torchvision/resnet18", 5, image_size=32, pretrained=True)
    assert torch.equal(network.conv1.weight, trained.conv1.weight)  # the ImageNet stem

    def offline(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "get_state_dict", offline)
    with pytest.raises(
        ValueError,
        match=r"cannot get pretrained weights of torchvision/resnet18 \(OSError: no route.*--model.checkpoint_path",
    ):
        build_backbone("torchvision/resnet18", 5, pretrained=True)


def test_a_swapped_network_goes_on_from_its_own_and_from_plain_weights(tmp_path):
    first: Any = Classifier("resnet8", 10, activation=CosLU)
    first.backbone.act1.alpha.data.fill_(0.3)
    torch.save({"state_dict": first.state_dict()}, tmp_path / "own.ckpt")
    torch.save(build_backbone("resnet8", 10).state_dict(), tmp_path / "plain.pth")
    own: Any = Classifier(
        "resnet8", 10, activation=CosLU, checkpoint_path=str(tmp_path / "own.ckpt")
    )
    assert own.backbone.act1.alpha.item() == pytest.approx(0.3)
    plain: Any = Classifier(
        "resnet8", 10, activation=CosLU, checkpoint_path=str(tmp_path / "plain.pth")
    )
    assert plain.backbone.act1.alpha.item() == 1.0


def test_kaiming_keeps_the_second_moment():
    torch.manual_seed(0)
    scale = gain(ReLUN())
    layers = [nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular") for _ in range(6)]
    network: Any = nn.Sequential(
        *[part for layer in layers for part in (layer, ReLUN())], nn.Linear(8, 2)
    )
    last = network[-1].weight.clone()
    kaiming_(network, scale)
    x = torch.randn(4, 64, 8, 8)
    with torch.no_grad():
        for layer in layers:
            x = layer(ReLUN()(x))
            assert x.square().mean().item() == pytest.approx(1, rel=0.3)
    assert torch.equal(network[-1].weight, last)
    torch.manual_seed(0)
    grouped = nn.Conv2d(64, 64, 5, groups=64)
    wider = nn.ConvTranspose2d(64, 32, 5)
    kaiming_(nn.Sequential(grouped, nn.ReLU(), wider), 1.5)
    assert grouped.weight.std().item() == pytest.approx(1.5 / 5, rel=0.1)
    assert wider.weight.std().item() == pytest.approx(1.5 / (5 * 32**0.5), rel=0.1)
    with pytest.raises(ValueError, match="init: kaiming would overwrite"):
        Classifier("resnet8", init="kaiming", checkpoint_path="x")


def test_shapes_alone_are_taken_over_and_frozen(tmp_path: Path):
    torch.manual_seed(1)
    trained = Classifier("resnet8", 3, 1, 8, CosLU)
    with torch.no_grad():
        for number, value in enumerate(shape_parameters(trained.backbone).values()):
            value.fill_(number / 7)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "x.ckpt")
    torch.manual_seed(2)
    fresh = Classifier("resnet8", 3, 1, 8, CosLU)
    torch.manual_seed(2)
    model = Classifier("resnet8", 3, 1, 8, CosLU, activation_from=str(tmp_path / "x.ckpt"),
                       activation_frozen=True)  # fmt: skip
    shapes = shape_parameters(trained.backbone)
    for name, value in model.backbone.named_parameters():
        expected = shapes[name] if name in shapes else fresh.backbone.get_parameter(name)
        assert torch.equal(value, expected), name
        assert value.requires_grad == (name not in shapes)
    assert [group["name"] for group in parameter_groups(model.backbone)] == ["weights"]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"activation": DELU}, "has no act1.n"),
        ({"activation": CosLU, "share": "channel"}, r"has no act1.alpha of shape \(16,\)"),
        ({"activation": torch.nn.ReLU}, "has nothing to give"),
        ({"activation": CosLU, "match": True}, "give one"),
    )
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            Classifier("resnet8", 3, 1, 8, activation_from=str(tmp_path / "x.ckpt"), **wrong)
    with pytest.raises(ValueError, match="learn nothing"):
        Classifier("resnet8", 3, 1, 8, torch.nn.ReLU, activation_frozen=True)


def saved(model: Classifier, file: Path) -> str:
    """A checkpoint whose shapes are all 2.5."""
    with torch.no_grad():
        for value in shape_parameters(model.backbone).values():
            value.fill_(2.5)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(content, file)
    return str(file)


def test_learned_terms_that_wait_are_told(tmp_path: Path):
    def made(progressive: bool, **more: Any) -> Classifier:
        function = partial(Polynomial, progressive=progressive)
        return Classifier("resnet8", 3, 1, 8, function, **more)

    source = saved(made(True), tmp_path / "x.ckpt")
    with pytest.warns(UserWarning, match="learned terms to a progressive function.* false it has"):
        made(True, activation_from=source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(False, activation_from=source)


def formula(text: str) -> Any:
    return partial(Formula, formula=text, constants={"beta": 1.0})


@pytest.mark.parametrize(
    ("trained", "other", "names"),
    [
        (CosLU, SinLU, ("CosLU", "SinLU")),
        (formula("x * sigmoid(beta * x)"), formula("x * tanh(beta * x)"), ("x . sig", "x . tanh")),
        (
            partial(LinComb, members=[CosLU]),
            partial(LinComb, members=[SinLU]),
            (r"LinComb\(CosLU\)", r"LinComb\(SinLU\)"),
        ),
    ],
    ids=["class", "formula", "members"],
)
def test_shapes_of_another_function_are_not_taken_for_its_own(
    tmp_path: Path, trained: Any, other: Any, names: tuple[str, str]
):
    """They have parameters of the same names and shapes."""
    model = Classifier("resnet8", 3, 1, 8, trained)
    file = saved(model, tmp_path / "x.ckpt")
    told = f"was trained with .*{names[0]}.*, this network has .*{names[1]}"
    with pytest.raises(ValueError, match=told):
        Classifier("resnet8", 3, 1, 8, other, activation_from=file)
    with pytest.warns(
        UserWarning, match=f"{names[0]}.*: .*{names[1]}.* keeps the values of its own"
    ):
        begun = Classifier("resnet8", 3, 1, 8, other, checkpoint_path=file)
    fresh = Classifier("resnet8", 3, 1, 8, other)
    shapes = shape_parameters(fresh.backbone)
    for name, value in begun.backbone.named_parameters():
        expected = shapes[name] if name in shapes else model.backbone.get_parameter(name)
        assert torch.equal(value, expected), name
    for same in (
        Classifier("resnet8", 3, 1, 8, trained, checkpoint_path=file),
        Classifier("resnet8", 3, 1, 8, trained, activation_from=file),
    ):
        assert all((value == 2.5).all() for value in shape_parameters(same.backbone).values())


@pytest.mark.parametrize("share", ["site", "stage", "model", "channel"])
def test_shared_shapes_of_another_function_are_left_out_by_all_their_names(
    tmp_path: Path, share: Any
):
    file = saved(Classifier("resnet8", 3, 1, 8, CosLU, share=share), tmp_path / "x.ckpt")
    with pytest.warns(UserWarning, match="SinLU keeps the values of its own start"):
        other = Classifier("resnet8", 3, 1, 8, SinLU, share=share, checkpoint_path=file)
    assert all((value == 1).all() for value in shape_parameters(other.backbone).values())


@pytest.mark.parametrize(
    "sites", [{"*": SinLU}, {"layer3*": SinLU, "*": CosLU}], ids=["all", "one"]
)
def test_shapes_of_several_functions_are_compared_by_their_class(tmp_path: Path, sites: Any):
    file = saved(Classifier("resnet8", 3, 1, 8, CosLU), tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="was trained with CosLU, this network has SinLU"):
        Classifier("resnet8", 3, 1, 8, activation_by_site=sites, activation_from=file)
    with pytest.warns(UserWarning, match="trained with CosLU: SinLU keeps the values"):
        other = Classifier("resnet8", 3, 1, 8, activation_by_site=sites, checkpoint_path=file)
    for module in other.backbone.modules():
        if isinstance(module, CosLU | SinLU):  # SinLU is a CosLU
            assert module.alpha.item() == (1 if isinstance(module, SinLU) else 2.5)


def test_descriptions_of_one_function():
    def described(name: str, **given: Any) -> dict[str, Any]:
        return {"class_path": f"activations.{name}", "init_args": given}

    for one, other, same in (
        (described("DiTAC", theta="prior"), described("DiTAC", theta="zero"), True),  # a start
        (described("DiTAC", variant="inf"), described("DiTAC", variant="ge"), False),
        (
            described("Formula", formula="x*(b*x)"),
            described("Formula", formula="x * (b * x)"),
            True,
        ),
        (described("Formula", formula="x*(b*x)"), described("Formula", formula="x*(b+x)"), False),
        (
            described("LinComb", members=None),
            described("LinComb", members=[described("ELU")]),
            True,
        ),
        (described("CosLU", alpha=1.0), described("functions.coslu.CosLU", alpha=2.0), True),
    ):
        assert is_same(one, other) is same


@pytest.mark.parametrize("match", [False, "fade"])
def test_learned_functions_that_a_network_has_of_its_own_are_kept(tmp_path: Path, match: Any):
    """A checkpoint fits the network that has made it, whatever is swapped."""
    options: Any = {"backbone_kwargs": {"act_layer": "prelu"}, "match": match}
    options |= {} if match else {"include": "layer1*"}
    model = Classifier("timm/resnet10t", 3, 1, 32, CosLU, **options)
    file = saved(model, tmp_path / "x.ckpt")
    again = Classifier("timm/resnet10t", 3, 1, 32, CosLU, checkpoint_path=file, **options)
    assert all((value == 2.5).all() for value in shape_parameters(again.backbone).values())
    if not match:
        Classifier("timm/resnet10t", 3, 1, 32, CosLU, activation_from=file, **options)
    with pytest.warns(UserWarning, match="SinLU keeps the values of its own start"):
        other = Classifier("timm/resnet10t", 3, 1, 32, SinLU, checkpoint_path=file, **options)
    of_torch = [m for m in other.backbone.modules() if isinstance(m, torch.nn.PReLU)]
    assert of_torch
    assert all((m.weight == 2.5).all() for m in of_torch)


def test_kaiming_says_what_it_cannot_measure():
    with pytest.raises(ValueError, match="single numbers, and LSLU takes whole images"):
        Classifier("resnet8", 3, 1, 8, LSLU, init="kaiming")
    with pytest.raises(ValueError, match="the gain of one activation: give activation"):
        Classifier("resnet8", 3, 1, 8, activation_by_site={"act1": nn.SiLU}, init="kaiming")
    with pytest.raises(ValueError, match="has no gain"):
        Classifier("resnet8", 3, 1, 8, partial(Formula, formula="x - x"), init="kaiming")
