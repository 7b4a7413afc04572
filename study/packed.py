"""Finished results, small: what the repository keeps of a study, and what `run` goes on from."""

import gzip
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from activations.files import replacing
from callbacks.machine import ROOT
from callbacks.results import TEST

from .runs import Study, read_about, read_prepared, write_about
from .spec import LOCK, SpecError, file_name, placeless, read_lock, sha256, write_lock
from .words import counted

KEPT = ROOT / "results/studies"
TAKEN = "packed"  # in a study's folder: the packed results with which it began
COSTS = ("ratios.json", "steps.json")
LARGE = 200  # kB
# of each run; the options are in the lock
_FIELDS = (
    "schema", "status", "message", "seed", "commit", "dirty", "code", "start", "end", "fit_s",
    "cpu_s", "images_per_s", "parameters", "threads", "train_samples", "test_labels", "epochs",
    "best", "test", "versions",
)  # fmt: skip


def pack(folder: Path, target: Path | None = None) -> str:
    """Write the lock, the results and the predicted classes of all runs that have ended.

    Test results and the metrics of the last epoch are exact; learned values have nine digits, which
    is all of a float32, other numbers five. There is one file for
    each arm, `<arm>.json.gz`, and one for the predictions of its test runs in a cell,
    `<arm>-<cell>.npz`.

    Raises:
        SpecError: the folder holds no study, or no run of it has ended; or another study has been
            packed under its name.
    """
    study, target = Study.read(folder, read_packed(folder)), target or kept(folder)
    if not study.results:
        raise SpecError(f"{folder}: no run has ended yet")
    _check_same(study.lock, target)
    about = read_prepared(folder)
    arms: dict[str, dict[str, Any]] = {}
    predicted: dict[str, dict[str, np.ndarray]] = {}
    for key, found in study.results.items():
        if key not in about and "arm" not in found:
            continue  # no run of this study
        arm, cell = (about.get(key, found)[name] for name in ("arm", "cell"))
        if Path(place := f"{file_name(arm)}-{cell}").name != place:
            raise SpecError(f"{folder}: the run {key} names the arm {arm!r}: delete its folder")
        content = {name: found[name] for name in _FIELDS if name in found}
        machine = found.get("machine") or found
        place = {name: machine[name] for name in ("processor", "gpu") if name in machine}
        content = _short({**content, "arm": arm, "cell": cell, **place})
        content["learned"] = _short(found.get("learned", {}), 9)
        # exact: by them a setting is chosen, and equal means must stay equal
        exact = {"test": found["test"], "epochs": [*content["epochs"][:-1], *found["epochs"][-1:]]}
        content |= exact
        arms.setdefault(file_name(arm), {})[key] = content
        if (samples := read_samples(study, key)) is not None:
            part = predicted.setdefault(f"{file_name(arm)}-{cell}", {})
            for name in (each for each in ("label", "group") if each in samples):
                known = part.setdefault(name, samples[name])
                if not np.array_equal(known, samples[name]):
                    part[f"{key}.{name}"] = samples[name]
            part[key] = samples["predicted"]
    write_lock(target, placeless(study.lock))
    written_costs = _copy_costs(folder, target)
    written = list(written_costs)
    for name, runs in arms.items():
        file = target / f"{name}.json.gz"
        with replacing(file) as unfinished:
            text = json.dumps(runs, separators=(",", ":"), sort_keys=True)
            unfinished.write_bytes(gzip.compress(text.encode(), mtime=0))
        written.append(file)
    for name, arrays in predicted.items():
        file = target / f"{name}.npz"
        with replacing(file) as unfinished, unfinished.open("wb") as opened:
            np.savez_compressed(opened, **arrays)  # pyright: ignore[reportArgumentType]
        written.append(file)
    sizes = {file: file.stat().st_size / 1e3 for file in written}
    large = [f"; {file.name} has {size:.0f} kB" for file, size in sizes.items() if size > LARGE]
    count = counted(sum(map(len, arms.values())), "run")
    if not written_costs:
        large.append(f"; the cost of the arms is not measured: python -m study cost {folder}")
    return f"{count} packed into {target} ({sum(sizes.values()):.0f} kB){''.join(large)}"


def _check_same(lock: dict[str, Any], target: Path) -> None:
    """Refuse to replace another study."""
    if not (target / LOCK).is_file():
        return
    old = read_lock(target)
    if not _same(old, lock):
        raise SpecError(
            f"{target} holds another study, of code {old['code']} (here {lock['code']}), locked at "
            f"{old['time']} (here {lock['time']}) and with "
            f"{counted(len(old['amendments']), 'amendment')}: rename the folder of yours, or "
            "delete the packed one"
        )


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two locks are of one study, of which the new one may have more amendments.

    Two studies that ask the same of the same code were locked at different times.
    """
    later = old["amendments"] == new["amendments"][: len(old["amendments"])]
    same = old["sha256"] == new["sha256"] or new["amendments"] != old["amendments"]
    return all(old[name] == new[name] for name in ("code", "time")) and later and same


def kept(folder: Path) -> Path:
    """Where the results of a study are packed."""
    return KEPT / folder.resolve().name


def offered(folder: Path, spec: dict[str, Any] | None = None) -> bool:
    """Whether a folder has no lock, but a packed study its name, which asks the same as `spec`."""
    source = kept(folder)
    if (folder / LOCK).is_file() or not (source / LOCK).is_file():
        return False
    return spec is None or sha256(spec) == read_lock(source)["sha256"]


def take(folder: Path, spec: dict[str, Any] | None = None) -> str:
    """Give a folder without a lock the packed study of its name, to go on from there.

    Args:
        folder: of the study.
        spec: what is asked; a packed study that asks something else is left alone.

    Returns:
        The line to print; "" if nothing was taken.
    """
    if not offered(folder, spec):
        return ""
    source = kept(folder)
    known = read_lock(source)
    with replacing(folder / TAKEN) as unfinished:
        shutil.copytree(source, unfinished)
    _copy_costs(source, folder)
    write_lock(folder, known)
    code, count = known["code"], counted(len(read_packed(folder)), "run")
    return f"{folder} goes on from {source}: {count}, of code {code}, commit {known['commit']}"


def _sources(folder: Path) -> list[Path]:
    """The folders with packed results of the study in `folder`."""
    mine = read_lock(folder) if (folder / LOCK).is_file() else None
    places = [folder / TAKEN, kept(folder)]
    return [p for p in places if mine and (p / LOCK).is_file() and _same(read_lock(p), mine)]


def _copy_costs(source: Path, target: Path) -> list[Path]:
    """Copy what was measured of the arms' cost; the files written. And add what the code had."""
    if known := read_about(source):
        write_about(target, {**read_about(target), **known})
    found = [each for each in COSTS if (source / each).is_file()]
    for name in found:
        with replacing(target / name) as unfinished:
            unfinished.write_bytes((source / name).read_bytes())
    return [target / name for name in found]


def read_packed(folder: Path) -> dict[str, dict[str, Any]]:
    """Id of a run -> its results, of what is packed of this study, and `packed`, the folder.

    A study that goes on tries anew what has failed.

    Raises:
        SpecError: a packed file is damaged.
    """
    found = dict[str, dict[str, Any]]()
    for source in _sources(folder):
        code = read_lock(source)["code"]
        for file in sorted(source.glob("*.json.gz")):
            try:
                runs = json.loads(gzip.decompress(file.read_bytes()))
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise SpecError(f"{file} is damaged: restore or delete it") from error
            for key, each in runs.items():
                failed = each["status"] == "failed" and source.resolve() != folder.resolve()
                if each.get("code") == code and not failed:
                    found[key] = {**each, "packed": str(source)}
    return found


def read_samples(study: Study, key: str) -> dict[str, np.ndarray] | None:
    """Label, predicted class, and group where there is one, of the test samples of a run.

    The probabilities, too, of a run that is not packed.
    """
    file = study.folder / "runs" / key / TEST
    if file.is_file():
        with np.load(file) as samples:
            at = study.spec["metric"]["at"]
            name = f"probability_{at}" if f"probability_{at}" in samples else "probability"
            known = {n: samples[n] for n in ("label", "group") if n in samples}
            kind = np.uint8 if samples[name].shape[1] < 256 else np.uint16
            known |= {"predicted": samples[name].argmax(1).astype(kind)}
            return {**known, "probability": samples[name]}
    found = study.results[key]
    if "packed" not in found:
        return None
    file = Path(found["packed"]) / f"{file_name(found['arm'])}-{found['cell']}.npz"
    if not file.is_file():
        return None
    with np.load(file) as samples:
        if key not in samples:
            return None
        names = {n: f"{key}.{n}" if f"{key}.{n}" in samples else n for n in ("label", "group")}
        known = {name: samples[place] for name, place in names.items() if place in samples}
        return {**known, "predicted": samples[key]}


def _short(value: Any, digits: int = 5) -> Any:
    """`value` with floats of so many digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: _short(each, digits) for name, each in value.items()}
    return [_short(each, digits) for each in value] if isinstance(value, list) else value
