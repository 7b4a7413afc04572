"""Finished results, small: what the repository keeps of a study, and what `run` goes on from."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from activations.files import replacing
from callbacks.machine import ROOT
from callbacks.results import TEST

from .runs import RUN, Study
from .spec import LOCK, SpecError, read_lock, write_lock

KEPT = ROOT / "results/studies"
# of each run; the options are in the lock
_FIELDS = ("schema", "status", "message", "seed", "commit", "dirty", "code", "start", "end", "fit_s",
           "cpu_s", "images_per_s", "parameters", "threads", "epochs", "best", "test", "learned")  # fmt: skip


def pack(folder: Path, target: Path | None = None) -> str:
    """Write the lock, the results and the predicted classes of all runs that have ended.

    Numbers have five digits. There is one file for each arm, `<arm>.json.gz`, and one for the
    predictions of its test runs, `<arm>.npz`.

    Raises:
        SpecError: the folder holds no study, or no run of it has ended.
    """
    study, target = Study.read(folder, read_packed(folder)), target or KEPT / folder.resolve().name
    if not study.results:
        raise SpecError(f"{folder}: no run has ended yet")
    about = {file.parent.name: json.loads(file.read_text()) for file in folder.glob(f"runs/*/{RUN}")}
    arms: dict[str, dict[str, Any]] = {}
    predicted: dict[str, dict[str, np.ndarray]] = {}
    for key, found in study.results.items():
        arm = about[key]["arm"] if key in about else found["arm"]
        kept = {name: found[name] for name in _FIELDS if name in found}
        machine = (found.get("machine") or {}).get("processor", found.get("processor"))
        arms.setdefault(arm, {})[key] = _short({**kept, "arm": arm, "processor": machine})
        if (samples := read_samples(study, key)) is not None:
            part = predicted.setdefault(arm, {})
            part |= {name: samples[name] for name in ("label", "group") if name in samples}
            part[key] = samples["predicted"]
    write_lock(target, study.lock)
    sizes = 0
    for arm, runs in arms.items():
        name = _file_name(arm)
        with replacing(target / f"{name}.json.gz") as unfinished:
            text = json.dumps(runs, separators=(",", ":"), sort_keys=True)
            unfinished.write_bytes(gzip.compress(text.encode(), mtime=0))
        sizes += (target / f"{name}.json.gz").stat().st_size
        if arm in predicted:
            with replacing(target / f"{name}.npz") as unfinished, unfinished.open("wb") as file:
                np.savez_compressed(file, **predicted[arm])  # pyright: ignore[reportArgumentType]
            sizes += (target / f"{name}.npz").stat().st_size
    return f"{sum(map(len, arms.values()))} runs packed into {target} ({sizes / 1e3:.0f} kB)"


def read_packed(folder: Path) -> dict[str, dict[str, Any]]:
    """The packed results of the same study, by the id of their runs; none without.

    Raises:
        SpecError: a packed study of this name has another question.
    """
    source = KEPT / folder.resolve().name
    if not (source / LOCK).is_file():
        return {}
    if (folder / LOCK).is_file():
        ours, theirs = read_lock(folder), read_lock(source)
        if ours["code"] != theirs["code"] or ours["sha256"] != theirs["sha256"]:
            return {}
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(source.glob("*.json.gz")):
        found |= json.loads(gzip.decompress(file.read_bytes()))
    return found


def read_samples(study: Study, key: str) -> dict[str, np.ndarray] | None:
    """Label, predicted class, and group where there is one, of the test samples of a run."""
    file = study.folder / "runs" / key / TEST
    if file.is_file():
        with np.load(file) as samples:
            at = study.spec["metric"]["at"]
            name = f"probability_{at}" if f"probability_{at}" in samples else "probability"
            known = {n: samples[n] for n in ("label", "group") if n in samples}
            kind = np.uint8 if samples[name].shape[1] < 256 else np.uint16
            return {**known, "predicted": samples[name].argmax(1).astype(kind)}
    arm = study.results[key].get("arm")
    file = KEPT / study.folder.resolve().name / f"{_file_name(str(arm))}.npz"
    if arm is None or not file.is_file():
        return None
    with np.load(file) as samples:
        if key not in samples:
            return None
        known = {n: samples[n] for n in ("label", "group") if n in samples}
        return {**known, "predicted": samples[key]}


def _file_name(arm: str) -> str:
    return arm.replace(" ", "_").replace("/", "_")


def _short(value: Any) -> Any:
    """`value` with floats of five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else value
