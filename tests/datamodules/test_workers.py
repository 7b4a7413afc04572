"""Random resized crops, and processes that decode and augment: the same batches without them."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop, v2

from datamodules import ImageFolder, MiniImageNet
from datamodules.augment import random_crop
from datamodules.images import read_image
from datamodules.workers import prepared
from tests.data import Tiny, write_folder, write_mini

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores


def ready(root: Path, **options: Any) -> ImageFolder:
    options = {"image_size": 16, "batch_size": 5, "seed": 3, "cache_limit": 0.0} | options
    data = ImageFolder(str(root), **options)
    data.setup("fit")
    return data


def test_random_crops_are_drawn_as_torchvision_draws_them():
    """Area, ratio and position of 800 crops have one distribution, also where ten draws fail."""
    torch.manual_seed(0)
    for width, height in ((500, 375), (100, 400), (2000, 30)):
        image = torch.empty(3, height, width)
        theirs = [
            RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(800)
        ]
        ours = np.array([random_crop(seed, 0.08, width, height) for seed in range(800)])
        left, top, right, bottom = ours.T
        assert ours.min() >= 0
        assert right.max() <= width
        assert bottom.max() <= height
        for one, other in zip((top, left, bottom - top, right - left), zip(*theirs, strict=True),
                              strict=True):  # fmt: skip
            found: Any = stats.ks_2samp(one, other)
            assert found.pvalue > 1e-3
    assert random_crop(5, 0.08, 500, 375) == random_crop(5, 0.08, 500, 375)


def test_a_crop_is_taken_from_the_whole_photo_at_every_scale(tmp_path: Path):
    """A JPEG decoded at a part of its size gives what all its pixels give, turned ones too."""
    ramp = np.zeros((600, 800, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 800)
    ramp[..., 1] = np.linspace(0, 255, 600)[:, None]
    exif = Image.Exif()
    for orientation in (1, 6):
        exif[0x0112] = orientation
        Image.fromarray(ramp).save(tmp_path / "x.jpg", quality=95, exif=exif)
        upright = np.rot90(ramp, -1) if orientation == 6 else ramp
        height, width = upright.shape[:2]
        for seed in range(8):
            box = random_crop(seed, 0.08, width, height)
            whole = Image.fromarray(np.ascontiguousarray(upright))
            expected = np.asarray(whole.resize((16, 16), Image.Resampling.BILINEAR, box=box))
            found = read_image(tmp_path / "x.jpg", 16, place=lambda *_, box=box: box)
            assert np.abs(found.transpose(1, 2, 0).astype(int) - expected).max() < 8


OPTIONS: dict[str, dict[str, Any]] = {
    "stored": {"augment": [v2.RandAugment(), v2.RandomErasing(0.5)], "cache_limit": 1.0},
    "cropped": {"random_resized_crop": 0.08},
    "all": {"random_resized_crop": 0.2, "augment": [v2.ColorJitter(0.4)], "mix": v2.MixUp()},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_batches_are_the_same_for_any_number_of_workers_and_after_a_resume(
    tmp_path: Path, kind: str
):
    write_folder(tmp_path)
    runs = []
    for workers in (0, 2):
        loader = ready(tmp_path, workers=workers, **OPTIONS[kind]).train_dataloader()
        assert loader.workers == workers
        loader.set_epoch(1)
        runs.append(list(loader))
        for _ in zip(range(2), loader, strict=False):
            pass
        resumed = ready(tmp_path, workers=workers, **OPTIONS[kind]).train_dataloader()
        resumed.load_state_dict(loader.state_dict())
        resumed.set_epoch(1)
        runs.append([*runs[-1][:2], *resumed])
    for run in runs:
        assert len(run) == 4
        for batch, expected in zip(run, runs[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
    other = ready(tmp_path, **OPTIONS[kind]).train_dataloader()
    other.set_epoch(2)
    assert not torch.equal(next(iter(other))[0], runs[0][0][0])


def test_random_resized_crops_store_no_images_and_evaluate_the_middle(tmp_path: Path):
    write_folder(tmp_path)
    plain, cropped = ready(tmp_path, cache_limit=1.0), ready(tmp_path, random_resized_crop=0.08)
    for one, other in zip(plain.val_dataloader(), cropped.val_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match=r"random_resized_crop must be a number from 0\.001 to 1"):
        ready(tmp_path, random_resized_crop=8.0)
    write_mini(tmp_path / "mini", "pickle")
    with pytest.raises(ValueError, match=r"random_resized_crop reads photos, and these pickles"):
        MiniImageNet(str(tmp_path / "mini"), random_resized_crop=0.08).setup("fit")


def test_stored_images_alone_need_no_workers():
    data = Tiny(workers=3)
    data.setup("fit")
    assert data.train_dataloader().workers == data.val_dataloader().workers == 0


def test_an_error_in_a_worker_is_one_sentence_and_a_killed_worker_is_told(tmp_path: Path):
    write_folder(tmp_path)
    data = ready(tmp_path, workers=2)
    (tmp_path / "bee/4.jpg").write_bytes(b"")
    loaders = data.train_dataloader(), data.val_dataloader()
    with pytest.raises(ValueError, match=r"^'.*bee/4.jpg' is damaged \(.*replace or delete it$"):
        [list(loader) for loader in loaders]
    parent = os.getpid()

    def end(part: torch.Tensor) -> torch.Tensor:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)
        return part

    def interrupted(part: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return part

    parts = [torch.arange(3), torch.arange(2)]  # a run that is stopped ends its step first
    assert [len(part) for part in prepared(interrupted, parts, 2)] == [3, 2]
    with pytest.raises(RuntimeError, match=r"process that reads the data has ended .*data.workers"):
        list(prepared(end, [torch.arange(3)], 1))
