"""Every transform of torchvision and some of kornia, as YAML names them, and what they draw from."""

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torchvision import transforms
from torchvision.transforms import v2

import options  # noqa: F401 - sets how the command line parses
from datamodules import ImageDataModule
from datamodules.loader import ImageLoader
from tests.data import Tiny
from tests.trainings import Small, trainer

FLOATS = "torchvision.transforms.v2.ToDtype: {dtype: torch.float32, scale: true}"
INNER = "{class_path: torchvision.transforms.v2.RandomHorizontalFlip, init_args: {p: 0.5}}"
# arguments by class; those of a row that draws nothing end in `fixed`
V2 = """
AugMix
AutoAugment
CenterCrop: {size: 16} fixed
ColorJitter: {brightness: 0.5}
Compose: {transforms: [INNER]}
ConvertImageDtype: {dtype: torch.float32} fixed
ElasticTransform: {alpha: 20.0, sigma: 1.0}
GaussianBlur: {kernel_size: 3}
GaussianNoise: {sigma: 0.1} float
Grayscale: {num_output_channels: 3} fixed
Identity fixed
JPEG: {quality: [5, 90]}
Lambda: {lambd: torchvision.transforms.v2.functional.invert} fixed
Pad: {padding: 0} fixed
RGB fixed
RandAugment
RandomAdjustSharpness: {sharpness_factor: 3}
RandomAffine: {degrees: 20}
RandomApply: {transforms: [INNER]}
RandomAutocontrast
RandomChannelPermutation
RandomChoice: {transforms: [INNER, {class_path: torchvision.transforms.v2.Identity}]}
RandomCrop: {size: 16, padding: 3}
RandomEqualize
RandomErasing
RandomGrayscale: {p: 0.5}
RandomHorizontalFlip
RandomInvert
RandomOrder: {transforms: [INNER]}
RandomPerspective
RandomPhotometricDistort
RandomPosterize: {bits: 2}
RandomResizedCrop: {size: 16}
RandomRotation: {degrees: 20}
RandomSolarize: {threshold: 100}
RandomVerticalFlip
ToDtype: {dtype: torch.float32, scale: true} fixed
ToImage fixed
ToPureTensor fixed
TrivialAugmentWide
"""
OTHERS_OF_V2 = {  # of boxes, points and videos, of another size, several images, or for mix
    "AutoAugmentPolicy", "ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat",
    "CutMix", "FiveCrop", "InterpolationMode", "LinearTransformation", "MixUp", "Normalize",
    "PILToTensor", "RandomIoUCrop", "RandomResize", "RandomShortestSize", "RandomZoomOut", "Resize",
    "SanitizeBoundingBoxes", "SanitizeKeyPoints", "ScaleJitter", "SetClampingMode", "TenCrop",
    "ToPILImage", "ToTensor", "Transform", "UniformTemporalSubsample",
}  # fmt: skip
V1 = """
CenterCrop: {size: 16} fixed
ColorJitter: {brightness: 0.5}
ConvertImageDtype: {dtype: torch.float32} fixed
ElasticTransform: {alpha: 20.0, sigma: 1.0}
GaussianBlur: {kernel_size: 3}
Grayscale: {num_output_channels: 3} fixed
Pad: {padding: 0} fixed
RandomAdjustSharpness: {sharpness_factor: 3}
RandomAffine: {degrees: 20}
RandomAutocontrast
RandomCrop: {size: 16, padding: 3}
RandomEqualize
RandomErasing
RandomGrayscale: {p: 0.5}
RandomHorizontalFlip
RandomInvert
RandomPerspective
RandomPosterize: {bits: 2}
RandomResizedCrop: {size: 16}
RandomRotation: {degrees: 20}
RandomSolarize: {threshold: 100}
RandomVerticalFlip
"""
OTHERS_OF_V1 = {"FiveCrop", "InterpolationMode", "LinearTransformation", "Normalize", "Resize", "TenCrop",
                "Compose", "Lambda", "RandomApply", "RandomChoice", "RandomOrder",  # below
                "ToTensor", "PILToTensor", "ToPILImage"}  # fmt: skip
FUNCTIONS = {
    "torchvision.transforms.functional": "autocontrast equalize hflip invert vflip",
    "torchvision.transforms.v2.functional": "autocontrast equalize gaussian_noise hflip "
    "horizontal_flip invert to_image vflip vertical_flip",
}
KORNIA = """
RandomHorizontalFlip
RandomVerticalFlip
RandomAffine: {degrees: 20.0}
RandomRotation: {degrees: 20.0}
RandomPerspective
RandomCrop: {size: [16, 16], padding: 3}
RandomResizedCrop: {size: [16, 16]}
RandomErasing
RandomGrayscale: {p: 0.5}
RandomGaussianNoise: {std: 0.05}
RandomGaussianBlur: {kernel_size: [3, 3], sigma: [0.1, 2.0]}
ColorJiggle: {brightness: 0.3, contrast: 0.3}
RandomSolarize
RandomPosterize
RandomEqualize
RandomInvert
RandomSharpness
"""


def rows(table: str, package: str) -> dict[str, list[Any]]:
    """What stands in YAML under `augment`, by name."""
    found = {}
    for line in table.strip().splitlines():
        line = line.replace("INNER", INNER)
        name, _, given = line.removesuffix(" fixed").removesuffix(" float").partition(": ")
        spec = {"class_path": f"{package}.{name}", "init_args": yaml.safe_load(given or "{}")}
        before, _, arguments = FLOATS.partition(": ")
        floats = {"class_path": before, "init_args": yaml.safe_load(arguments)}
        needs = line.endswith(" float") or package.startswith("kornia")
        found[f"{name} {'fixed' if line.endswith(' fixed') else 'random'}"] = [floats] * needs + [
            spec
        ]
    return found


def made(specs: list[Any]) -> list[Any]:
    """What the command line makes of it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Tiny, "data", instantiate=False, fail_untyped=False)
    return parser.instantiate_classes(parser.parse_object({"data": {"augment": specs}}))["data"][
        "augment"
    ]


class Noise(ImageDataModule):
    num_classes, in_channels, image_size = 2, 3, 16
    mean, std = (0.0,) * 3, (1 / 255,) * 3

    def load(self, split: Any) -> Any:
        raise AssertionError("the loader is given its images")


def loader(augment: list[Any], batch_size: int = 4, **more: Any) -> ImageLoader:
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    data = Noise(batch_size=batch_size, seed=5, crop_padding=0, flip=False, augment=augment,
                 workers=more.pop("workers", 0))  # fmt: skip
    every = torch.arange(8)
    return ImageLoader(data, images.to(torch.uint8), every % 2, every, training=True, **more)


def drawn(loader: ImageLoader, epoch: int = 0) -> dict[int, torch.Tensor]:
    loader.set_epoch(epoch)
    batches = list(loader)
    return {int(i): x for images, _, index in batches for i, x in zip(index, images, strict=True)}


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def check(specs: list[Any], *, varies: bool) -> None:
    augment = made(specs)
    one = drawn(loader(augment))
    assert same(one, drawn(loader(augment, 2)))
    assert same(one, drawn(loader(augment), epoch=1)) != varies


# JPEG's decoder is to move into a package of its own
@pytest.mark.filterwarnings("ignore:The image decoding and encoding")
@pytest.mark.parametrize(("name", "specs"), rows(V2, "torchvision.transforms.v2").items())
def test_classes_of_v2(name: str, specs: list[Any]):
    check(specs, varies=name.endswith("random"))


@pytest.mark.parametrize(("name", "specs"), rows(V1, "torchvision.transforms").items())
def test_classes_of_v1(name: str, specs: list[Any]):
    check(specs, varies=name.endswith("random"))


def test_no_class_is_left_out():
    known = {name for name in dir(v2) if isinstance(getattr(v2, name), type)}
    assert {name.split()[0] for name in rows(V2, "v2")} == known - OTHERS_OF_V2
    assert {name.split()[0] for name in rows(V1, "v1")} == {
        *transforms.transforms.__all__
    } - OTHERS_OF_V1


@pytest.mark.parametrize("package", FUNCTIONS)
def test_named_functions(package: str):
    for name in FUNCTIONS[package].split():
        check([f"{package}.{name}"], varies=name == "gaussian_noise")


def test_pictures_of_pil_in_between():
    """What takes images of PIL alone."""
    names = ["ToPILImage", "RandomHorizontalFlip", "PILToTensor"]
    check([{"class_path": f"torchvision.transforms.{name}"} for name in names], varies=True)
    names[-1] = "ToTensor"
    check([{"class_path": f"torchvision.transforms.{name}"} for name in names], varies=True)


@pytest.mark.parametrize("name", ["Compose", "RandomApply", "RandomChoice", "RandomOrder"])
def test_untyped_arguments_of_v1_are_refused(name: str):
    spec = {"class_path": f"torchvision.transforms.{name}",
            "init_args": {"transforms": [yaml.safe_load(INNER)]}}  # fmt: skip
    with pytest.raises(ValueError, match=r"was not made.*torchvision\.transforms\.v2"):
        loader(made([spec]))


@pytest.mark.skipif(not find_spec("kornia"), reason="needs the package kornia")
@pytest.mark.parametrize(("name", "specs"), rows(KORNIA, "kornia.augmentation").items())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_kornia(name: str, specs: list[Any]):
    check(specs, varies=True)


class Anywhere:
    """Draws from all three global generators."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        shades = [int(torch.randint(0, 256, ())), random.randrange(256), np.random.randint(256)]  # noqa: NPY002
        return torch.tensor(shades, dtype=torch.uint8).view(3, 1, 1).expand_as(image)


def test_all_global_generators_are_seeded_and_restored():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    one = drawn(loader([Anywhere()]))
    assert random.getstate() == states[0]
    np.testing.assert_equal(np.random.get_state(), states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(len({float(x[c].mean()) for x in one.values()}) > 6 for c in range(3))
    assert same(one, drawn(loader([Anywhere()], 2)))
    assert same(one, drawn(loader([Anywhere()], workers=2)))
    halves = [drawn(loader([Anywhere()], 2, rank=rank, world_size=2)) for rank in (0, 1)]
    assert same(one, halves[0] | halves[1])
    interrupted = loader([Anywhere()])
    first = next(iter(interrupted))
    resumed = loader([Anywhere()])
    resumed.load_state_dict(interrupted.state_dict())
    rest = drawn(resumed)
    assert len(rest) == 4
    assert all(torch.equal(x, one[i]) for i, x in rest.items())
    assert all(torch.equal(x, one[int(i)]) for x, i in zip(first[0], first[2], strict=True))


class Own:
    """Draws from a generator of its own."""

    def __init__(self, kind: str) -> None:
        self.generator: Any = {
            "numpy": np.random.default_rng(0), "python": random.Random(0), "system": random.SystemRandom(),
            "torch": torch.Generator(),
        }[kind]  # fmt: skip

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if isinstance(self.generator, torch.Generator):
            return torch.full_like(image, int(torch.randint(0, 256, (), generator=self.generator)))
        return torch.full_like(image, int(256 * self.generator.random()))


@pytest.mark.parametrize("kind", ["numpy", "python", "system", "torch"])
def test_other_generators_are_refused(tmp_path: Path, kind: str):
    with pytest.raises(
        ValueError, match=r"augment or mix \(Own\) makes another.*global generators"
    ):
        trainer(tmp_path).fit(Small(), datamodule=Tiny(augment=[Own(kind)]))
