"""The report of ANSI/AAMI EC57 on heart beats: gross, on average over records, and by record.

`python -m datamodules.aami RUN/test.npz` makes it of the test of a run, or of several tests as one,
such as those of a network for each patient.
`python -m datamodules.aami DIR OUT/100.net OUT/101.net` compares annotation files with those in DIR
(100.atr, ...) as WFDB's `bxb` does: beats up to 0.15 s apart match. With `--start 300` the first
five minutes do not count, as EC57 asks for. Escape beats (e, j, n) are N here, as in de Chazal
2004; `bxb` counts them as S.
"""

import argparse
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .beats import AAMI, SYMBOLS
from .images import some
from .records import read_header, read_notes

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = "".join(AAMI)
OTHER = len(KINDS)  # row of beats that are none (O), column of beats that are missed (o)
# EC57 does not count these as false: fusion and unknown beats that are called V, unknown ones as S
UNCOUNTED = {"V": "FQ", "S": "Q"}
MATCH = 0.15  # seconds
PARTS = ("Se", "+P", "FPR")


class Report(NamedTuple):
    """What a test says of heart beats.

    Attributes:
        text: a few lines.
        tables: name -> table: `aami` has a row for gross, average and each record; `aami_counts`
            the counts, such as Vn, the V beats that are called N.
    """

    text: str
    tables: "dict[str, DataFrame]"


def report(
    true: np.ndarray, predicted: np.ndarray, record: np.ndarray | None, names: Sequence[str] = KINDS
) -> Report:
    """The report on classified beats.

    Args:
        true: (M,), classes.
        predicted: (M,), classes.
        record: (M,), the record of each beat; None where it is unknown.
        names: of the classes: N, S, V, F and Q, or the annotations.
    """
    kind = np.array([kind_of(name) for name in names])
    counts = {}
    groups = np.zeros(len(true), dtype=int) if record is None else record
    for each in np.unique(groups):
        inside = groups == each
        cell = kind[true[inside]] * (OTHER + 1) + kind[predicted[inside]]
        counts[str(each)] = np.bincount(cell, minlength=(OTHER + 1) ** 2).reshape(2 * [OTHER + 1])
    return report_of(counts, by_record=record is not None)


def report_of(counts: dict[str, np.ndarray], by_record: bool = True) -> Report:
    """The report on counts.

    Args:
        counts: for each record (6, 6): a row for each true class and one for beats that are none, a
            column for each predicted class and one for missed beats.
        by_record: whether the records are known.
    """
    import pandas as pd

    total = np.sum(list(counts.values()), axis=0)
    each = pd.DataFrame([measures(matrix) for matrix in counts.values()], index=list(counts))
    average = each.mean()
    tallied = ["beats", *(f"{kind} beats" for kind in KINDS)]
    average[[*tallied, "j", "j-kappa"]] = np.nan  # few records have all classes
    several = [average.to_frame("average").T, each] if by_record else []
    gross = pd.DataFrame([measures(total)], index=["gross"])
    table = pd.concat([gross, *several]).rename_axis("record")
    labels = [f"{row}{column}" for row in f"{KINDS}O" for column in f"{KINDS}o".lower()]
    matrices = {"gross": total} | (counts if by_record else {})
    tally = pd.DataFrame(map(np.ravel, matrices.values()), index=list(matrices), columns=labels)
    kept = [
        name for name in labels if "o" not in name.lower() or bool(tally[name].to_numpy().any())
    ]
    tally = tally.loc[:, kept].rename_axis("record")
    text = _text(table, len(counts) if by_record else 0)
    whole = table.astype(dict.fromkeys(tallied, "Int64"))  # the average has none
    return Report(text, {"aami": whole, "aami_counts": tally})


def measures(counts: np.ndarray) -> dict[str, float]:
    """What EC57 and the literature measure on (6, 6) counts; NaN if there is nothing to count.

    Se is the share of a class that was found, +P the share of right ones among the beats called so,
    FPR the share of other beats called so, Acc the accuracy of telling it from the others. The last
    three leave out what `UNCOUNTED` names. `kappa` is Cohen's, `j` the sum of Se and +P of S and V,
    and `j-kappa` kappa / 2 + j / 8 (Mar et al. 2011). `majority` is the accuracy of always naming
    the commonest class.
    """
    beats, hits = counts[:OTHER], np.diag(counts)[:OTHER]
    total = beats.sum()
    found: dict[str, float] = {
        "beats": int(total),
        "accuracy": _share(hits.sum(), total),
        "majority": _share(beats.sum(1).max(), total),
        "kappa": _kappa(beats[:, :OTHER]),
    }
    for place, kind in enumerate(KINDS):
        counted = [row not in UNCOUNTED.get(kind, "") and row != kind for row in f"{KINDS}O"]
        false = counts[counted, place].sum()
        rest = np.delete(counts, place, axis=0)[:, :OTHER]
        others = rest.sum() - rest[:, place].sum()
        found[f"{kind} beats"] = int(beats[place].sum())
        found[f"{kind} Se"] = _share(hits[place], beats[place].sum())
        found[f"{kind} +P"] = _share(hits[place], hits[place] + false)
        found[f"{kind} FPR"] = _share(false, others + false)
        found[f"{kind} Acc"] = _share(hits[place] + others, beats[place].sum() + others + false)
    found["j"] = sum(found[f"{kind} {part}"] for kind in "SV" for part in ("Se", "+P"))
    found["j-kappa"] = found["kappa"] / 2 + found["j"] / 8
    if counts[OTHER].any() or counts[:, OTHER].any():
        matched = beats[:, :OTHER].sum()
        found["QRS Se"] = _share(matched, total)
        found["QRS +P"] = _share(matched, matched + counts[OTHER].sum())
    return found


def compare(reference: Path, test: Path, start: float = 0) -> np.ndarray:
    """The (6, 6) counts of two annotation files of one record, matched by wfdb.

    As in `bxb`, beats that the test finds during fibrillation ([ to ] in the reference) do not
    count. Its rules for pauses of a detector are left out.

    Args:
        reference: beside the header of the record.
        test: the other file.
        start: seconds of the record that do not count; EC57 asks for 300.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    from wfdb.processing import compare_annotations

    header = read_header(reference.with_suffix(""), {})
    notes, others = (
        read_notes(file.with_suffix(""), {}, header, file.suffix) for file in (reference, test)
    )
    (at, true), (there, called) = _beats(*notes), _beats(*others)
    partner = np.full(len(at), -1)
    if len(at) and len(there):  # distances below the width match
        found = compare_annotations(at, there, int(MATCH * header.fs) + 1)
        partner = np.asarray(found.matching_sample_nums)
    opened, closed = (np.sort(notes[0][np.array(notes[1]) == each]) for each in "[]")
    quivers = np.searchsorted(opened, there, "right") > np.searchsorted(closed, there)
    extra = ~np.isin(np.arange(len(there)), partner) & ~quivers & (there >= start * header.fs)
    counted = at >= start * header.fs
    counts = np.zeros(2 * [OTHER + 1], dtype=int)
    column = np.append(called, OTHER)[partner]  # -1 is the last
    np.add.at(counts, (true[counted], column[counted]), 1)
    np.add.at(counts[OTHER], called[extra], 1)
    return counts


def _beats(peaks: np.ndarray, symbols: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The samples of the beats among annotations, in order, and their classes."""
    order = [each for each in np.argsort(peaks, kind="stable") if symbols[each] in set(SYMBOLS)]
    return peaks[order], np.array([kind_of(symbols[each]) for each in order], dtype=int)


def kind_of(name: str) -> int:
    """The position of the AAMI class of a class or an annotation."""
    return [name in symbols for symbols in AAMI.values()].index(True)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan


def _kappa(counts: np.ndarray) -> float:
    total = counts.sum()
    chance = _share(counts.sum(0) @ counts.sum(1), total**2)
    return _share(_share(np.trace(counts), total) - chance, 1 - chance)


def _text(table: "DataFrame", records: int) -> str:
    gross = table.loc["gross"]
    of = f" of {records} record{'s' if records > 1 else ''}" if records else ""
    over = [("accuracy", f" (commonest class {gross['majority']:.4f})"), ("kappa", ""), ("j", "")]
    told = ", ".join(
        f"{name} {_shown(gross[name])}{more}" for name, more in [*over, ("j-kappa", "")]
    )
    lines = [f"AAMI EC57: {gross['beats']:.0f} beats{of}: {told}"]
    if "QRS Se" in table:
        lines.append(f"QRS Se {_shown(gross['QRS Se'])}, QRS +P {_shown(gross['QRS +P'])}")
    sides = ["gross", "average"] if records > 1 else ["gross"]
    titles = [f"{part} {side}" for side in sides for part in PARTS]
    lines.append("class  beats   " + "".join(f"{title:<13}" for title in titles).rstrip())
    for kind in KINDS:
        cells = (_shown(table.loc[side, f"{kind} {part}"]) for side in sides for part in PARTS)
        known = f"{gross[f'{kind} beats']:.0f}"
        lines.append(f"{kind:<7}{known:<8}" + "".join(f"{cell:<13}" for cell in cells).rstrip())
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"


def of_tests(files: Sequence[Path]) -> dict[str, Report]:
    """The reports on `test.npz` of one run, or of several as one test.

    Returns:
        One for each network that a run tested, by the name of its probabilities.
    """
    tests: list[dict[str, np.ndarray]] = []
    for file in files:
        with file.open("rb") as opened, np.load(opened) as content:
            tests.append(dict(content))
    _once([str(each) for test in tests for each in np.unique(test.get("group", []))])
    found = {}
    for name in (name for name in tests[0] if name.startswith("probability")):
        classes = {test[name].shape[1] for test in tests}
        names = {len(KINDS): KINDS, len(SYMBOLS): SYMBOLS}.get(max(classes))
        if names is None or len(classes) > 1:
            raise ValueError(f"{some(list(map(str, files)))}: not the five classes of EC57")
        true, predicted = (
            np.concatenate(parts)
            for parts in ([t["label"] for t in tests], [t[name].argmax(1) for t in tests])
        )
        known = all("group" in test for test in tests)
        record = np.concatenate([test["group"] for test in tests]) if known else None
        found[name] = report(true, predicted, record, names)
    return found


def _once(records: Sequence[str]) -> None:
    """Raise a ValueError if a record is there twice."""
    if twice := [record for record, count in Counter(records).items() if count > 1]:
        raise ValueError(f"several files are of the record {some(twice)}: name one of each")


def main() -> None:
    """Print a report, and write its tables."""
    parser = argparse.ArgumentParser("python -m datamodules.aami", description=__doc__)
    parser.add_argument("source", type=Path, help="test.npz, or the folder of the references")
    parser.add_argument("files", type=Path, nargs="*", help="more of them, or annotation files")
    parser.add_argument("--start", type=float, default=0, help="seconds that do not count")
    parser.add_argument("--to", type=Path, help="folder for the tables as CSV")
    given = parser.parse_args()
    if given.source.suffix != ".npz" and not given.files:
        parser.error(
            f"{str(given.source)!r} is no test.npz of a run, and as a folder of references it "
            "needs annotation files, such as out/100.net"
        )
    if given.source.suffix == ".npz" and given.start:
        parser.error(
            f"--start {given.start:g} needs annotation files: test.npz does not say when its beats "
            "are (python train.py predict --predictions.annotator net writes some)"
        )
    try:
        if given.source.suffix == ".npz":
            found = of_tests([given.source, *given.files])
        else:
            _once([file.stem for file in given.files])
            counts = {
                file.stem: compare(given.source / f"{file.stem}.atr", file, given.start)
                for file in given.files
            }
            if not any(matrix[:OTHER].any() for matrix in counts.values()):
                raise ValueError(
                    f"no beat of {some(list(counts))} counts (--start {given.start:g})"
                )
            found = {"": report_of(counts)}
        if given.to:
            given.to.mkdir(parents=True, exist_ok=True)
        for name, each in found.items():
            which = name.removeprefix("probability")
            print(f"{which.removeprefix('_')} {each.text}".strip())
            for title, table in each.tables.items() if given.to else ():
                table.to_csv(given.to / f"{title}{which}.csv", float_format="%.6f")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
