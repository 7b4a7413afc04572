"""Which runs a study needs next: read from its folder alone."""

import hashlib
import itertools
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from activations.files import replacing
from callbacks.results import FILE, TEST
from options import parsable

from . import budget
from .claims import claim
from .spec import CONTROLS, OFF, SpecError, decides, flatten, for_train, read_lock, written_out
from .verdict import Kind, Rules, Runs, Verdict, family

RUN, CLAIM = "spec.json", "claim"
ABOUT = "about.json"
UNTESTED = ("tune", budget.STAGE)  # stages whose runs are compared on validation


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        stage: tune, budget, verdict or control.
        arm: its name; of a control, the arm's name and the control's, such as `CosLU frozen`.
        cell: number of the cell.
        seed: of the run.
        options: of train.py, without the seed.
        setting: number of the tuned setting in the grid.
        shapes: id of the run whose learned shapes this one starts from.
        base: the overlays of train.py.
        compiled: what `compile: auto`, which is the default, is for all runs of a study alike.
    """

    stage: str
    arm: str
    cell: int
    seed: int
    options: dict[str, Any]
    setting: int = 0
    shapes: str = ""
    base: list[dict[str, Any]] = field(default_factory=list)
    compiled: str = OFF

    @property
    def arguments(self) -> list[str]:
        """What is typed after `train.py fit` and the overlays; `compile: auto` is decided."""
        flat = [flatten(each) for each in (*self.base, self.options)]
        given = [each["model.compile"] for each in flat if "model.compile" in each]
        decided = [f"--model.compile={self.compiled}"] if given[-1:] == ["auto"] else []
        return [*arguments(self.options, self.seed), *decided]

    @cached_property
    def id(self) -> str:
        """The first 12 digits of the SHA-256 of the options, without places of data, and the seed.

        Studies that are packed, or on their way, have this number on their folders.
        """
        parts = [decides(self.base), decides(self.options), self.seed, self.shapes]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Study:
    """A study's folder, read.

    Attributes:
        folder: of the study.
        lock: content of its lock.
        results: id of a run -> its results, of those that have ended.
        estimates: what :func:`study.lines.on_new_images` has computed.
    """

    folder: Path
    lock: dict[str, Any]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    estimates: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _tuned: dict[tuple[str, int], tuple[int, list[float]]] = field(default_factory=dict, init=False)

    @classmethod
    def read(cls, folder: Path, packed: dict[str, dict[str, Any]] | None = None) -> "Study":
        """Read the lock and all results, those of a packed study too.

        Raises:
            SpecError: there is no study, its lock was changed by hand, or a run was made by other
                code or on other data.
        """
        lock = read_lock(folder, "arms")
        study = cls(folder, lock, {**(packed or {}), **read_runs(folder, lock["code"])})
        found = ((run.cell, run.id, study.results.get(run.id)) for run in study.possible())
        check_data(folder, ((cell, key, each) for cell, key, each in found if each))
        return study

    @property
    def spec(self) -> dict[str, Any]:
        """What is asked."""
        return self.lock["spec"]

    @property
    def seeds(self) -> list[int]:
        """Of the verdict, up to the last look."""
        first, looks = self.spec["seeds"]["first"], self.spec["seeds"]["looks"]
        return list(range(first, first + looks[-1]))

    @property
    def cells(self) -> range:
        """Their numbers."""
        return range(len(self.spec["cells"]))

    def place(self, cell: int) -> tuple[str, str]:
        """Data and network of a cell."""
        data, network = ("data", "model.backbone")
        cells = self.spec["cells"]
        options, usual = cells[cell], {data: "the data", network: "the network"}
        place = {name: str(options.get(name, f"{word} of the base file"))
                 for name, word in usual.items()}  # fmt: skip
        alike = [each for each in cells if all(each.get(n) == options.get(n) for n in place)]
        differing = [
            f"{name.rpartition('.')[2]} {options.get(name, 'as usual')}"
            for name in dict.fromkeys(name for each in alike for name in decides(each))
            if any(each.get(name) != options.get(name) for each in alike)
        ]
        return place[data], ", ".join([place[network], *differing])

    @property
    def rules(self) -> Rules:
        """How the study is judged; metrics between 0 and 1 are counted in points of 0.01."""
        spec = self.spec
        loss = spec["metric"]["name"].endswith("loss")
        return Rules(spec["margin"], tuple(spec["seeds"]["looks"]), spec["alpha"],
                     unit="nats" if loss else "points", higher_is_better=not loss)  # fmt: skip

    def value(self, run: Run) -> float:
        """The metric of a run that has ended; NaN without."""
        metric, found = self.spec["metric"], self.results.get(run.id)
        tests = (found or {}).get("test") or {}
        value = tests.get(metric["at"], {}).get(metric["name"])
        scale = 1 if metric["name"].endswith("loss") else 100
        return math.nan if value is None else scale * value

    def last(self, run: Run, metric: str) -> float:
        """The last value of a validation metric of a run that has ended well; NaN without.

        Of an epoch that was not validated there is none; None is a value that was not finite.
        """
        found = self.results.get(run.id)
        if not found or found["status"] != "ok":
            return math.nan
        values = [each[metric] for each in found["epochs"] if metric in each]
        return math.nan if not values or values[-1] is None else values[-1]

    def status(self, run: Run) -> str:
        """Of a run: ok, diverged, failed or missing."""
        found = self.results.get(run.id)
        if found is None:
            return "missing"
        if found["status"] != "ok" or run.stage in UNTESTED or not math.isnan(self.value(run)):
            return found["status"]
        metric = self.spec["metric"]  # a value that was not finite is stored as null
        tests = (found.get("test") or {}).get(metric["at"], {})
        return "diverged" if metric["name"] in tests else "failed"

    # ---- the runs of each stage

    def run(self, stage: str, arm: str, cell: int, seed: int, setting: int, **more: Any) -> Run:
        """One run: options of the cell, the budget, the setting and the arm.

        With `times`, the learning rate changes after so many times as many epochs or steps.
        """
        spec = self.spec
        tested = {"test_after_fit": spec["metric"]["at"]} if stage not in UNTESTED else {}
        changes = more.pop("changes", {})
        options = dict[str, Any]()
        for part in (spec["cells"][cell], spec["budget"], tested, self.settings[setting],
                     spec["arms"][split(arm)[0]], changes):  # fmt: skip
            earlier = {name: each for name, each in options.items() if name not in part}
            options = earlier | part  # train.py takes the last
        times = more.pop("times", 1)
        more = {"base": budget.stretched(spec["base"], times)} | more
        more |= {"compiled": self.lock.get("compiled", OFF)}
        return Run(stage, arm, cell, seed, budget.stretched(options, times), setting, **more)

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The grid, written out; one empty setting without tuning."""
        return written_out(self.spec["tune"]) or [{}]

    def tuning(self) -> Iterator[Run]:
        """The runs of the tuning stage: the same grid for every arm."""
        for cell, setting in itertools.product(self.cells, range(len(self.settings))):
            for seed in (self.spec["tune"] or {}).get("seeds", []):
                for arm in self.spec["arms"]:
                    yield self.run("tune", arm, cell, seed, setting)

    def possible(self) -> Iterator[Run]:
        """Every run that the study may need, whatever its verdicts are."""
        yield from self.tuning()
        for cell in self.cells:
            yield from itertools.chain(*budget.compared(self, cell))
            for arm, seed in itertools.product(self.spec["arms"], self.seeds):
                yield self.verdict_run(arm, cell, seed)
                if arm != self.spec["baseline"]:
                    controls = (f"{arm} {control}" for control in self.spec["controls"])
                    known = (self.control_run(control, cell, seed) for control in controls)
                    yield from filter(None, known)

    def tuned(self, arm: str, cell: int) -> tuple[int, list[float]]:
        """The best setting of an arm, and the mean of the validation metric of each.

        A setting with a run that has diverged or failed is never chosen, unless all have.
        """
        key = split(arm)[0], cell
        if key not in self._tuned:
            self._tuned[key] = self._tune(*key)
        return self._tuned[key]

    def _tune(self, name: str, cell: int) -> tuple[int, list[float]]:
        if not self.spec["tune"]:
            return 0, []
        metric, seeds = self.spec["tune"]["metric"], self.spec["tune"]["seeds"]
        sign = -1 if metric.endswith("loss") else 1
        means = []
        for setting in range(len(self.settings)):
            runs = [self.run("tune", name, cell, seed, setting) for seed in seeds]
            values = [self.last(run, metric) for run in runs]
            means.append(sum(values) / len(values))
        best = max(
            range(len(means)), key=lambda k: -math.inf if math.isnan(means[k]) else sign * means[k]
        )
        return best, means

    def untuned(self, arm: str, cell: int) -> bool:
        """Whether a run of an arm's tuning failed or was not validated: a setting not tried."""
        tune = self.spec["tune"]
        if not tune:
            return False
        runs = [
            self.run("tune", split(arm)[0], cell, seed, setting)
            for setting in range(len(self.settings))
            for seed in tune["seeds"]
        ]
        ended = (found for run in runs if (found := self.results.get(run.id)))
        return any(
            found["status"] == "failed"
            or (found["status"] == "ok" and not any(tune["metric"] in e for e in found["epochs"]))
            for found in ended
        )

    def verdict_run(self, arm: str, cell: int, seed: int) -> Run:
        """A run of the verdict stage, with the tuned setting."""
        return self.run("verdict", arm, cell, seed, self.tuned(arm, cell)[0])

    def hypotheses(self, baseline: str = "") -> list[tuple[str, int]]:
        """Each arm but the baseline, or another one that takes its place, in each cell."""
        base = baseline or self.spec["baseline"]
        return [(arm, cell) for cell in self.cells for arm in self.spec["arms"] if arm != base]

    def runs_of(self, arm: str, cell: int) -> Runs:
        """Values and status of an arm's runs, in the order of the seeds."""
        runs = [self.verdict_run(arm, cell, seed) for seed in self.seeds]
        return self._runs(self.label(arm, cell), runs)

    def _runs(self, name: str, runs: Iterable[Run | None]) -> Runs:
        """Of the first seeds; what is None is missing."""
        known = dict(zip(self.seeds, runs, strict=False))
        found = [known.get(seed) for seed in self.seeds]
        status = tuple(self.status(run) if run else "missing" for run in found)
        values = [self.value(run) if run and s == "ok" else math.nan
                  for run, s in zip(found, status, strict=True)]  # fmt: skip
        return Runs(name, values, status)  # pyright: ignore[reportArgumentType]

    def label(self, arm: str, cell: int) -> str:
        """The arm's name, with data and backbone where there are several cells."""
        if len(self.spec["cells"]) == 1:
            return arm
        return f"{arm} ({', '.join(self.place(cell))})"

    def verdicts(self, baseline: str = "") -> list[Verdict]:
        """One for each hypothesis, against the baseline or another arm."""
        base = baseline or self.spec["baseline"]
        asked = self.hypotheses(base)
        bases = [replace(self.runs_of(base, cell), name=base) for _, cell in asked]
        found = family(bases, [self.runs_of(arm, cell) for arm, cell in asked], self.rules)
        found = [
            replace(each, kind=Kind.HELD, failed=())
            if self.untuned(arm, cell) or self.untuned(base, cell)
            else each
            for (arm, cell), each in zip(asked, found, strict=True)
        ]
        if base != self.spec["baseline"]:  # more seeds are for what the first baseline leaves open
            grow = set(self.open_arms())
            found = [
                each
                if {pair, (base, pair[1])} <= grow
                else replace(each, needed=None, smallest=None)
                for pair, each in zip(asked, found, strict=True)
            ]
        return self._scoped(found, [cell for _, cell in asked])

    def _scoped(self, verdicts: list[Verdict], cells: list[int]) -> list[Verdict]:
        """Verdicts that say to which budget they belong, and to what data if the name does not."""
        named = 2 if len(self.spec["cells"]) > 1 else 0  # data and network are in the label
        known = {cell: ", ".join(budget.scope(self, cell)[named:]) for cell in set(cells)}
        return [replace(v, scope=known[c]) for v, c in zip(verdicts, cells, strict=True)]

    # ---- controls

    def controlled(self) -> list[tuple[str, int, int]]:
        """Arm, cell and number of seeds of each control that a verdict calls for."""
        controls, found = self.spec["controls"], []
        for (arm, cell), verdict in zip(self.hypotheses(), self.verdicts(), strict=True):
            if verdict.kind not in (Kind.BETTER, Kind.WORSE) or verdict.interval is None:
                continue
            first = self.results.get(self.verdict_run(arm, cell, self.seeds[0]).id) or {}
            learns = bool(first.get("learned")) and not self.alternates(arm, cell)
            wanted = [each for each in controls if learns or each == "same_time"]
            found += [(f"{arm} {control}", cell, verdict.interval.n) for control in wanted]
        return found

    def uncontrolled(self) -> list[str]:
        """A line for each decided arm with parameters of its own that are no known shapes."""
        asked, lines = {"frozen", "retrained"} & set(self.spec["controls"]), []
        for (arm, cell), verdict in zip(self.hypotheses(), self.verdicts(), strict=True):
            if not asked or verdict.kind not in (Kind.BETTER, Kind.WORSE):
                continue
            new, base = (self.results.get(self.verdict_run(each, cell, self.seeds[0]).id) or {}
                         for each in (arm, self.spec["baseline"]))  # fmt: skip
            more = (new.get("parameters") or 0) - (base.get("parameters") or 0)
            if more > 0 and not new.get("learned"):
                lines.append(
                    f"{self.label(arm, cell)} has no control: its {more} parameters are not known "
                    "as learned shapes. Make it a subclass of activations.Activation"
                )
        return lines

    def alternates(self, arm: str, cell: int) -> bool:
        """Whether the shapes of an arm learn in turn with its weights.

        Frozen they would leave epochs in which nothing learns: such an arm has no control of them.
        """
        run = self.verdict_run(arm, cell, self.seeds[0])
        return "AlternatingOptimization" in json.dumps([run.base, run.options])

    def given(self, name: str, arm: str, cell: int) -> Any:
        """An option of an arm, also in an overlay; None where it is not given."""
        run = self.verdict_run(arm, cell, self.seeds[0])
        overlays = (flatten(each) for each in (*run.base, run.options))
        return next((each[name] for each in reversed([*overlays]) if name in each), None)

    def control_run(self, arm: str, cell: int, seed: int) -> Run | None:
        """A run of a control; None while its cost ratio is not measured yet."""
        name, control = split(arm)
        setting = self.tuned(name, cell)[0]
        if control == "same_time":
            ratio = self.ratios().get(f"{name}/{cell}")
            if ratio is None:
                return None
            base = self.spec["baseline"]
            changes = budget.limits(self, cell, ratio)
            setting = self.tuned(base, cell)[0]
            run = self.run("control", base, cell, seed, setting, changes=changes, times=ratio)
            return replace(run, arm=arm)
        changes: dict[str, Any] = {"model.activation_frozen": True}
        shapes = self.verdict_run(name, cell, seed).id if control == "retrained" else ""
        if shapes and self.given("model.match", name, cell):
            changes["model.match"] = False  # the start is known
        if shapes and self.given("model.activation.progressive", name, cell):
            changes["model.activation.progressive"] = False  # no learned term waits
        return self.run("control", arm, cell, seed, setting, changes=changes, shapes=shapes)

    def ratios(self) -> dict[str, float]:
        """`arm/cell` -> time of a step over the baseline's, as `cost` measured it.

        None of another device than that of the runs: a CPU's are not those of a GPU.
        """
        file = self.folder / "ratios.json"
        if not file.is_file() or self.measured_elsewhere():
            return {}
        return json.loads(file.read_text())

    def measured_elsewhere(self) -> str:
        """On which device the ratios were measured and the runs made, if these differ."""
        about = self.folder / "steps.json"
        if not about.is_file():
            return ""
        mine = json.loads(about.read_text())["machine"]["gpu"]
        machines = (found.get("machine") or found for found in self.results.values())
        known = next((machine["gpu"] for machine in machines if "gpu" in machine), mine)
        told = [each or "a CPU" for each in (mine, known)]
        return f"measured on {told[0]}, while the runs are of {told[1]}" if known != mine else ""

    def control_verdicts(self) -> list[Verdict]:
        """Each control against the baseline, with the same seeds as the arm's verdict.

        At the same time it is the arm against the baseline that was trained as long. The level is
        that of all controls which the study may have, so that one more changes no verdict.
        """
        asked, arms, bases = self.controlled(), [], []
        for arm, cell, n in asked:
            (name, control), base, seeds = split(arm), self.spec["baseline"], self.seeds[:n]
            new = [self.control_run(arm, cell, seed) for seed in seeds]
            old = [self.verdict_run(base, cell, seed) for seed in seeds]
            if control == "same_time":
                ratio = self.ratios().get(f"{name}/{cell}")
                base += f" ({budget.words(self, cell, ratio)})" if ratio else ""
                old, new = new, [self.verdict_run(name, cell, seed) for seed in seeds]
            arms.append(self._runs(self.label(arm, cell), new))
            bases.append(self._runs(base, old))
        if not asked:
            return []
        possible = len(self.hypotheses()) * len(self.spec["controls"])
        found = family(bases, arms, self.rules, possible)
        found = [replace(each, needed=None, smallest=None) for each in found]  # no look follows
        return self._scoped(found, [cell for _, cell, _ in asked])

    # ---- what comes next

    def next_runs(self) -> tuple[str, list[Run]]:
        """Name and missing runs of the stage that is not finished; "" at the end."""
        missing = self._missing(self.tuning())
        if missing:
            return "tuning", missing
        arms = self.open_arms()
        unknown = [cell for cell in self.cells if budget.measured(self, cell) is None]
        double = self._missing(run for c in unknown for _, run in budget.compared(self, c))
        wanted = [
            self.control_run(arm, cell, seed)
            for arm, cell, n in self.controlled()
            for seed in self.seeds[:n]
        ]
        controls = self._missing(run for run in wanted if run)
        looks = self.spec["seeds"]["looks"]
        for look in looks:
            wanted = ((seed, *each) for seed in self.seeds[:look] for each in arms)
            missing = self._missing(self.verdict_run(arm, cell, seed) for seed, arm, cell in wanted)
            if missing and controls and look != looks[0]:
                return "controls", controls  # of the arms that an earlier look has decided
            if missing:
                return f"seeds up to look {look}", [*double, *missing]
        if double:
            return "twice the budget", double
        return ("controls", controls) if controls else ("", [])

    def open_arms(self) -> list[tuple[str, int]]:
        """Arms without a verdict yet, and the baselines of their cells; not those held back."""
        final = (Kind.BETTER, Kind.WORSE, Kind.EQUIVALENT, Kind.UNSTABLE, Kind.HELD)
        pairs = zip(self.hypotheses(), self.verdicts(), strict=True)
        arms = [each for each, verdict in pairs if verdict.kind not in final]
        cells = dict.fromkeys(cell for _, cell in arms)
        return [*((self.spec["baseline"], cell) for cell in cells), *arms]

    def _missing(self, runs: Iterable[Run]) -> list[Run]:
        unique = {run.id: run for run in runs}
        return [run for key, run in unique.items() if key not in self.results]

    def prepare(self, runs: list[Run]) -> None:
        """Write the folder of each run for any worker to take; set damaged results aside.

        Runs that were prepared before, have not begun, and are none of `runs` are withdrawn.
        """
        about = read_prepared(self.folder)
        for key in about.keys() - {run.id for run in runs} - self.results.keys():
            folder = self.folder / "runs" / key
            if not (folder / FILE).exists() and claim(folder / CLAIM):
                (folder / RUN).unlink()
                (folder / CLAIM).unlink()
        numbers = itertools.count(max((each["number"] for each in about.values()), default=-1) + 1)
        for run in runs:
            folder = self.folder / "runs" / run.id
            if (folder / FILE).exists() and read_result(folder) is None:
                (folder / FILE).replace(folder / f"{FILE}.damaged")
            known = about.get(run.id)
            content = {
                "number": known["number"] if known else next(numbers), "stage": run.stage,
                "arm": run.arm, "cell": run.cell, "seed": run.seed, "setting": run.setting,
                "base": for_train(run.base), "arguments": run.arguments,
                "compiled": run.compiled,
            }  # fmt: skip
            if run.shapes:
                content["shapes"] = "shapes.ckpt"
                learned = self.results[run.shapes]["learned"]
                fades = self.given("model.match", split(run.arm)[0], run.cell) == "fade"
                old = {n: ".".join(n.rsplit(".new.", 1)) if fades else n for n in learned}
                state = {old[name]: torch.tensor(value) for name, value in learned.items()}
                with replacing(folder / "shapes.ckpt") as unfinished:
                    torch.save({"state_dict": state}, unfinished)
            if content != known:
                with replacing(folder / RUN) as unfinished:
                    unfinished.write_text(json.dumps(content, indent=1))


def split(arm: str) -> tuple[str, str]:
    """Name of an arm and of its control, "" without one."""
    name, _, control = arm.rpartition(" ")
    return (name, control) if name and control in CONTROLS else (arm, "")


def arguments(options: dict[str, Any], seed: int) -> list[str]:
    """The options as they are typed after `python train.py fit`."""
    words = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in for_train(options).items()
    }
    return parsable(
        [*(f"--{n}={value}" for n, value in words.items()), f"--seed_everything={seed}"]
    )


def read_runs(folder: Path, code: str = "") -> dict[str, dict[str, Any]]:
    """Id of a run -> its results, of all in a study's folder; damaged ones count as none.

    Raises:
        SpecError: a run was made by other code than `code`.
    """
    found = {}
    for file in sorted(folder.glob(f"runs/*/{FILE}")):
        if (content := read_result(file.parent)) is None:
            continue
        if code and content.get("code") != code:
            raise SpecError(
                f"{file.parent} was made by other code ({content.get('code')}, the study's is "
                f"{code}): runs of different code do not mix. Delete that folder; it is run again"
            )
        found[file.parent.name] = content
    return found


def check_data(folder: Path, runs: Iterable[tuple[int, str, dict[str, Any]]]) -> None:
    """Refuse what two places of data that are not the same would do to a comparison.

    Args:
        folder: of a study or search.
        runs: cell, id and results of each.

    Raises:
        SpecError: two runs of a cell have other numbers of training samples, or other test labels.
    """
    first = dict[tuple[int, str], tuple[str, Any]]()
    for cell, run, found in runs:
        key = f"{run} (packed in {found['packed']})" if "packed" in found else run
        for name in ("train_samples", "test_labels"):
            value = found.get(name)
            if value is None or found["status"] != "ok":
                continue
            other, known = first.setdefault((cell, name), (key, value))
            if value != known:
                raise SpecError(
                    f"{folder}/runs: {other} and {key} were made on other data "
                    f"({name.replace('_', ' ')}: {known} and {value}), which do not mix. Delete "
                    "the folders of the wrong ones, or the packed files that hold them; they are "
                    "run again"
                )


def read_result(run: Path) -> dict[str, Any] | None:
    """The results of a run; None if there are none, or if they or the test samples are damaged."""
    try:
        content = json.loads((run / FILE).read_text())
        if content["status"] == "ok" and content["test"]:
            with zipfile.ZipFile(run / TEST) as samples:
                if samples.testzip():
                    return None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return content


def read_prepared(folder: Path) -> dict[str, dict[str, Any]]:
    """Id of a run -> what is to be trained, of all that are prepared in a study's folder."""
    found = {}
    for file in sorted(folder.glob(f"runs/*/{RUN}")):
        try:
            content = json.loads(file.read_text())
            found[file.parent.name] = {**content, "number": int(content["number"])}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def read_about(folder: Path) -> dict[str, dict[str, Any]]:
    """What the code had when a study was locked; {} of earlier ones.

    `defaults`: the default numbers of its activations, by class (:func:`study.shapes.defaults`).
    `own`: the hashes of modules from elsewhere (:func:`study.copied.own_code`). It is no part of
    the lock, whose names earlier code checks.
    """
    file = folder / ABOUT
    return json.loads(file.read_text()) if file.is_file() else {}


def write_about(folder: Path, about: dict[str, dict[str, Any]]) -> None:
    """Write what :func:`read_about` reads."""
    with replacing(folder / ABOUT) as unfinished:
        unfinished.write_text(json.dumps(about, indent=1))


def write_base(folder: Path, base: list[dict[str, Any]]) -> list[str]:
    """Write the overlays of a run; return the arguments that read them."""
    words = []
    for number, overlay in enumerate(for_train(base)):
        with replacing(folder / f"base_{number}.yaml") as unfinished:
            unfinished.write_text(yaml.safe_dump(overlay, sort_keys=False))
        words += ["-c", str(folder / f"base_{number}.yaml")]
    return words
