"""Files that lists name: Tiny ImageNet's annotations, ImageNet-LT's lists, accuracy by shots."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.metrics import recall_score

from datamodules import CIFAR10, ImageList, TinyImageNet
from datamodules.pool import shots
from models import Classifier
from tests.data import write_tree

WNIDS = ("n01443537", "n01629819", "n01641577")


def save(file: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, format="PNG")


def write_tiny(root: Path) -> list[str]:
    """Three classes of the set as it is distributed; the lines of its annotations."""
    lines = []
    for label, name in enumerate(WNIDS):
        for number in range(10):
            save(root / "train" / name / "images" / f"{name}_{number}.JPEG", 100 * label + number)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t7\t7\n")
    for number in range(9):
        save(root / "val" / "images" / f"val_{number}.JPEG", 1000 + number)
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    save(root / "test" / "images" / "test_0.JPEG", 5000)
    return lines


def splits(data: Any) -> dict[str, list[tuple[str, str]]]:
    """File and class of the samples of each split."""
    data.setup("fit")
    data.setup("test")
    index = {"train": data.train_indices, "val": data.val_indices, "test": data.test_indices}
    labels = data._pool[1]
    return {
        name: [(data.describe(int(i))["file"], data.class_names[labels[i]]) for i in positions]
        for name, positions in index.items()
    }


def test_tiny_imagenet_as_it_is_distributed(tmp_path: Path):
    write_tiny(tmp_path)
    data = TinyImageNet(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    found = splits(data)
    assert data.class_names == WNIDS
    assert {name: len(rows) for name, rows in found.items()} == {"train": 27, "val": 3, "test": 9}
    expected = [(f"val/images/val_{n}.JPEG", WNIDS[n % 3]) for n in range(9)]
    assert sorted(found["test"]) == expected
    assert all(Path(file).name.startswith(name) for file, name in found["train"] + found["val"])
    # as many programs rearrange it
    for file, name in expected:
        target = tmp_path / "val" / name / Path(file).name
        target.parent.mkdir(exist_ok=True)
        (tmp_path / file).rename(target)
    shutil.rmtree(tmp_path / "val" / "images")
    for _ in range(2):  # some of them leave the list there
        again = splits(TinyImageNet(str(tmp_path), cache_dir=str(tmp_path / "cache")))
        assert sorted(Path(file).name for file, _ in again["test"]) == [
            Path(file).name for file, _ in expected
        ]
        (tmp_path / "val" / "val_annotations.txt").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_0.JPEG", r"val_annotations.txt' is damaged \(line 9\)"),
        ("../../x.JPEG\tn01443537", r"is damaged \(line 9\)"),
        ("val_0.JPEG\tn09999999", "unexpected n09999999"),
        ("lost.JPEG\tn01641577", "lost.JPEG.*unpack Tiny ImageNet again"),
    ],
)
def test_annotations_that_cannot_be_right(tmp_path: Path, line: str, message: str):
    lines = write_tiny(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join([*lines[:-1], line]))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TinyImageNet(str(tmp_path)).setup("fit")


def write_lists(root: Path, counts: tuple[int, ...] = (120, 30, 5)) -> None:
    """A list of `counts` training images and one of 4 test images for each class."""
    for part, each in (("train", counts), ("test", (4,) * len(counts))):
        lines = []
        for label, count in enumerate(each):
            for number in range(count):
                name = f"{part} set/{label}/{number}.JPEG"
                save(root / name, 1000 * label + number + 10**6 * (part == "test"))
                lines.append(f"{name} {label:02}")
        (root / f"{part}.txt").write_text("\n".join(lines) + "\n\n")


def test_accuracy_by_the_number_of_training_images(tmp_path: Path):
    write_lists(tmp_path)
    data = ImageList(
        str(tmp_path), test="test.txt", image_size=8, val_fraction=0.1,
        cache_dir=str(tmp_path / "cache"), eval_batch_size=5,
    )  # fmt: skip
    found = splits(data)
    assert data.class_names == ("0", "1", "2")
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 139,
        "val": 16,
        "test": 12,
    }
    assert all(file.split("/")[1] == label for rows in found.values() for file, label in rows)
    assert data.acc_over == {"acc_many": [0], "acc_medium": [1], "acc_few": [2]}
    torch.manual_seed(3)
    model = Classifier("resnet8", 3, 3, 8)
    run = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
                  enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    [metrics] = run.test(model, data, verbose=False)
    batches: Any = run.predict(model, datamodule=data)
    label, share = (torch.cat([b[k] for b in batches]).numpy() for k in ("label", "probability"))
    recalls: Any = recall_score(label, share.argmax(1), average=None)  # pyright: ignore
    for number, name in enumerate(("acc_many", "acc_medium", "acc_few")):
        assert metrics[f"test/{name}"] == pytest.approx(recalls[number], abs=1e-6)


def test_the_bounds_of_shots():
    """Above 100 and below 20, as Liu et al. 2019 count; a class without images is of no kind."""
    counts = torch.tensor([101, 100, 20, 19, 1, 0])
    found = {"acc_many": [0], "acc_few": [3, 4], "acc_medium": [1, 2]}
    assert shots(counts) == found
    assert shots(torch.tensor([20, 100, 0])) == {}


def test_long_tailed_cifar_has_shots(tmp_path: Path):
    write_tree(tmp_path, per_class=40)
    assert CIFAR10(str(tmp_path)).acc_over == {}
    assert CIFAR10(str(tmp_path), imbalance_factor=9.0).acc_over == {
        "acc_few": [3, 4, 5, 6, 7, 8, 9],
        "acc_medium": [0, 1, 2],
    }


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a.png cat\nb.png dog", None, r"2 of 2 images of the lists are missing: .*a\.png.*root"),
        ("../a.png 0", None, r"line 1 is '\.\./a\.png 0'\): a line is `path class`"),
        ("/etc/a.png 0", None, "line 1 is"),
        ("a.png 0\nb.png", None, r"line 2 is 'b\.png'"),
        ("a.png -1", None, r"line 1 is 'a\.png -1'"),
        ("", None, "it is empty"),
        ("a.png 7", None, "have a class 7, but fewer images"),
        ("x.png 0\nx.png 1", "x.png 2\nx.png 0", r"no image of 'train\.txt' has the classes 2"),
    ],
)
def test_lists_that_cannot_be_right(tmp_path: Path, train: str, test: str | None, message: str):
    save(tmp_path / "x.png", 0)
    (tmp_path / "train.txt").write_text(train)
    if test:
        (tmp_path / "test.txt").write_text(test)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImageList(str(tmp_path), test="test.txt" if test else None).setup("fit")


def test_a_list_that_is_not_there(tmp_path: Path):
    (tmp_path / "train.txt").write_text("a.png 0")
    with pytest.raises(FileNotFoundError, match=r"no list .*val\.txt'.*--data\.train"):
        ImageList(str(tmp_path), val="val.txt").setup("fit")
