"""Data sets that Hugging Face's `datasets` reads; without that package only one sentence is tested."""

import io
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import datamodules.huggingface
from datamodules import HuggingFace
from datamodules.huggingface import Rows, check_classes
from tests.data import part_of

needs_datasets = pytest.mark.skipif(not find_spec("datasets"), reason="needs the package datasets")
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
NAMES = ["fly", "ant", "bee"]


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(out, "PNG")
    return out.getvalue()


def rows(numbers: range) -> list[dict[str, Any]]:
    return [
        {"picture": {"bytes": png(n), "path": None}, "species": n % 3, "coarse": n % 2}
        for n in numbers
    ]


def write(root: Path, numbers: dict[str, range], *, coarse: bool = False) -> None:
    """Parquet files as the hub has them; `coarse` adds a second column with names of classes."""
    from datasets import ClassLabel, Dataset, Features, Value  # pyright: ignore
    from datasets import Image as Picture  # pyright: ignore

    other = ClassLabel(names=["even", "odd"]) if coarse else Value("int64")
    features = Features({"picture": Picture(), "species": ClassLabel(names=NAMES), "coarse": other})
    (root / "data").mkdir(parents=True)
    for part, some in numbers.items():
        made = Dataset.from_list(rows(some), features=features)
        made.to_parquet(root / "data" / f"{part}-00000-of-00001.parquet")


@pytest.fixture
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets  # pyright: ignore

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def read(path: Path, **options: Any) -> HuggingFace:
    data = HuggingFace(str(path), cache_dir=str(path.parent / "cache"), **options)
    data.setup("fit")
    data.setup("test")
    return data


@needs_datasets
@pytest.mark.usefixtures("_own_home")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_of_parquet_files(tmp_path: Path):
    write(
        tmp_path / "insects",
        {"train": range(18), "validation": range(18, 24), "test": range(24, 30)},
    )
    data = read(tmp_path / "insects")
    images, labels = part_of(data, "train")
    np.testing.assert_array_equal(images, PIXELS.transpose(0, 3, 1, 2))
    assert labels.tolist() == [n % 3 for n in range(30)]
    assert data.class_names == tuple(NAMES)
    assert data.description["name"] == "insects"
    found = [data.train_indices, data.val_indices, data.test_indices]
    assert [each.tolist() for each in found] == [[*range(18)], [*range(18, 24)], [*range(24, 30)]]
    whole = read(tmp_path / "insects", test="validation", val="test", label="coarse")
    assert whole.describe(int(whole.test_indices[0])) == {"sample": "test 0"}
    assert part_of(whole, "test")[1].tolist()[-6:] == [n % 2 for n in range(18, 24)]
    with pytest.raises(ValueError, match="the parts train, validation, test, none is 'exam'"):
        read(tmp_path / "insects", test="exam")
    with pytest.raises(
        ValueError,
        match="columns picture, species, coarse, of images picture: name that of the labels",
    ):
        read(tmp_path / "insects", label="kind")


@needs_datasets
@pytest.mark.usefixtures("_own_home")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_test_part_without_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from datasets import Dataset, load_dataset  # pyright: ignore

    root = tmp_path / "insects"
    write(root, {"train": range(18), "validation": range(18, 24), "test": range(24, 30)})
    whole = load_dataset(str(root))
    hidden = [{**row, "species": -1} for row in rows(range(24, 30))]
    whole["test"] = Dataset.from_list(hidden, features=whole["train"].features)
    whole.save_to_disk(tmp_path / "hidden")
    with caplog.at_level("INFO"):
        data = read(tmp_path / "hidden")
    assert "test is left out, since it has no labels" in caplog.text
    assert data.test_indices.tolist() == [*range(18, 24)]  # the only part besides training
    named = read(tmp_path / "hidden", test="validation")
    assert named.test_indices.tolist() == [*range(18, 24)]
    assert len(named.train_indices) + len(named.val_indices) == 18
    without = read(root, test="none")
    assert without.test_indices.tolist() == [*range(18, 24)]
    with pytest.raises(ValueError, match="has the label -1, which is no class"):
        read(tmp_path / "hidden", test="test")


@needs_datasets
@pytest.mark.usefixtures("_own_home")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_forms(tmp_path: Path):
    """Several columns of classes; `save_to_disk`; Parquet of another program, with names."""
    import datasets  # pyright: ignore
    import pandas as pd

    write(tmp_path / "two", {"train": range(18), "validation": range(18, 30)}, coarse=True)
    with pytest.raises(ValueError, match=r"name that of the labels with --data\.label"):
        read(tmp_path / "two")
    data = read(tmp_path / "two", label="coarse")
    assert data.class_names == ("even", "odd")
    assert data.test_indices.tolist() == [*range(18, 30)]  # the only part besides training
    datasets.load_dataset(str(tmp_path / "two")).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved", label="species").class_names == tuple(NAMES)
    table = pd.DataFrame(
        {"file": [{"bytes": png(n), "path": None} for n in range(30)],
         "label": [NAMES[n % 3] for n in range(30)]}
    )  # fmt: skip
    (tmp_path / "plain").mkdir()
    table.to_parquet(tmp_path / "plain" / "beetles.parquet")
    data = read(tmp_path / "plain", test_fraction=0.3)
    assert data.class_names == ("ant", "bee", "fly")
    assert part_of(data, "train")[1].tolist()[:3] == [2, 0, 1]
    assert len(data.test_indices) == 9
    table.drop(columns="file").assign(file=[png(n) for n in range(30)]).to_parquet(
        tmp_path / "plain" / "beetles.parquet"
    )
    data = read(tmp_path / "plain")
    np.testing.assert_array_equal(part_of(data, "train")[0], PIXELS.transpose(0, 3, 1, 2))
    with pytest.raises(
        ValueError, match=r"of images file: name that of the images with --data\.im"
    ):
        read(tmp_path / "plain", image="label", label="file")
    table["file"] = [{"bytes": b"%!PS-Adobe-3.0", "path": None}] * 30  # a program, which PIL runs
    table.to_parquet(tmp_path / "plain" / "beetles.parquet")
    with pytest.raises(ValueError, match=r"sample 0 of train cannot be read \(UnidentifiedImage"):
        read(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"datasets cannot read .*none'.*--data\.path"):
        read(tmp_path / "none")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datamodules.huggingface, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package datasets: pip install '\.\[hugging"):
        HuggingFace("x")


def test_parts_that_number_other_classes_are_refused():
    def kind(names: list[str] | None, dtype: str = "int64") -> Any:
        return SimpleNamespace(names=names, dtype=dtype)

    check_classes("set", {"train": kind(["ant", "bee"]), "test": kind(["ant", "bee"])})
    check_classes("set", {"train": kind(None), "test": kind(None, "int32")})
    for other in (kind(["bee", "fly"]), kind(None), kind(None, "string")):
        with pytest.raises(ValueError, match=r"'set': the labels of test .* number other classes"):
            check_classes("set", {"train": kind(["ant", "bee"]), "test": other})
    with pytest.raises(ValueError, match=r"test \(int64\) .* train \(string\)"):
        check_classes("set", {"train": kind(None, "string"), "test": kind(None)})


def test_rows_name_files_of_their_folder_alone(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(3))
    (tmp_path / "b.png").write_bytes(png(4))
    (folder / "link.png").symlink_to(tmp_path / "b.png")

    def read_row(path: str) -> Any:
        row = {"picture": {"bytes": None, "path": path}, "species": 1}
        return Rows([row], "picture", "species", None, folder)[0]

    for name, number in (("a.png", 3), ("link.png", 4)):
        image, label = read_row(str(folder / name))
        np.testing.assert_array_equal(np.asarray(image), PIXELS[number])
        assert label == 1
    for path in (str(tmp_path / "b.png"), str(folder / "../b.png"), "/dev/zero"):
        with pytest.raises(ValueError, match="is no file of the set"):
            read_row(path)
