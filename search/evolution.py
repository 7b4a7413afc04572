"""Which trainings a search needs next: made anew from its folder alone, in the same order."""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from activations.files import replacing
from study.runs import Run, Study, check_data, read_prepared, read_runs
from study.spec import SpecError, read_lock

from .screen import Candidate, Screens
from .space import Genome, Space
from .surrogate import FACTOR, predict

EVOLVED, RANDOM = "search", "random"
STREAMS = (EVOLVED, RANDOM)
TRIES = 500  # for one child
MEMBERS = "candidates.json"


@dataclass
class Member:
    """A candidate that is trained.

    Attributes:
        number: from 0, in the order in which they enter the population.
        genome: what is mutated and crossed.
        candidate: the function.
        generation: from 0.
        how: random, mutation or crossover.
        parents: their numbers.
        predicted: fitness that the surrogate expected.
        values: at each rung that it reached, mean over the cells; -inf if a run diverged or failed.
    """

    number: int
    genome: Genome
    candidate: Candidate
    generation: int
    how: str
    parents: tuple[int, ...] = ()
    predicted: float = math.nan
    values: list[float] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, float]:
        """The larger, the better: the longer training counts first."""
        value = self.values[-1] if self.values else -math.inf
        return (len(self.values), value) if value > -math.inf else (0, value)


class Stream:
    """The search, or the random search beside it: its members, one generation after another.

    Attributes:
        name: search or random.
        members: in the order of their numbers.
        counts: reason -> candidates that were looked at.
    """

    def __init__(self, name: str, search: "Search") -> None:
        self.name, self.search = name, search
        self.members: list[Member] = []
        self.counts: Counter[str] = Counter()
        self.generation = self.rung = 0
        self.alive: list[Member] = []
        self._space = Space.of(search.spec["space"])

    def advance(self) -> list[Run]:
        """Take in the results that are there; the missing runs of the present rung."""
        spec, search = self.search.spec, self.search
        epochs, keep = spec["halving"]["epochs"], spec["halving"]["keep"]
        while self.generation < spec["generations"]:
            if not self.alive:
                self.alive = self.children()
                self.members += self.alive
                if not self.alive:  # the space has no more
                    self.generation = spec["generations"]
                    break
            runs = {m.number: search.runs(m.candidate, epochs[self.rung]) for m in self.alive}
            if missing := search.missing([run for each in runs.values() for run in each]):
                return missing
            for member in self.alive:
                member.values.append(search.fitness(runs[member.number]))
            self.rung += 1
            kept = sorted(self.alive, key=lambda member: member.rank, reverse=True)
            kept = [each for each in kept[: math.ceil(len(kept) / keep)] if each.rank[0]]
            self.alive = sorted(kept, key=lambda member: member.number)
            if self.rung == len(epochs) or not self.alive:
                self.generation, self.rung, self.alive = self.generation + 1, 0, []
        return []

    def best(self, number: int = 1) -> list[Member]:
        """The best members so far."""
        ended = [member for member in self.members if member.rank[0]]
        return sorted(ended, key=lambda member: member.rank, reverse=True)[:number]

    def children(self) -> list[Member]:
        """The next generation; smaller, if the space has no more functions that pass."""
        spec, number = self.search.spec, len(self.members)
        ranked = spec["surrogate"] and self.name == EVOLVED and number > 0
        screens = Screens(member.candidate for member in self.members)
        found: list[Member] = []
        for child in range(spec["children"] * (FACTOR if ranked else 1)):
            rng = random.Random(f"{spec['seed']}/{self.name}/{self.generation}/{child}")
            for _ in range(TRIES):
                genome, how, parents = self._made(rng)
                candidate = screens.look(genome)
                if not candidate.reason:
                    found.append(Member(0, genome, candidate, self.generation, how, parents))
                    break
            else:
                break
        self.counts += screens.counts
        if ranked and found:
            for member, value in zip(found, predict(self.members, found), strict=True):
                member.predicted = float(value)
            found = sorted(found, key=lambda m: m.predicted, reverse=True)[: spec["children"]]
        return [replace(each, number=number + k) for k, each in enumerate(found)]

    def _made(self, rng: random.Random) -> tuple[Genome, str, tuple[int, ...]]:
        spec = self.search.spec
        population = self.members[-spec["population"] :]  # the older ones have died
        if self.name == RANDOM or not population:
            return self._space.grown(rng), "random", ()

        def parent() -> Member:
            drawn = rng.sample(population, min(spec["tournament"], len(population)))
            return max(drawn, key=lambda member: member.rank)

        first = parent()
        if rng.random() < spec["crossover"]:
            second = parent()
            child = self._space.crossed(first.genome, second.genome, rng)
            return child, "crossover", (first.number, second.number)
        return self._space.mutated(first.genome, rng), "mutation", (first.number,)


class Search:
    """A search's folder, read.

    Attributes:
        folder: of the search.
        lock: content of its lock.
        streams: search and random, by name.
        pending: the runs that are missing next; none at the end.
    """

    def __init__(self, folder: Path, lock: dict[str, Any]) -> None:
        self.folder, self.lock = folder, lock
        self.study = Study(folder, lock)  # of the runs
        self.streams = {name: Stream(name, self) for name in STREAMS}
        self.pending: list[Run] = []

    @classmethod
    def read(cls, folder: Path) -> "Search":
        """Read the lock and all results.

        Raises:
            SpecError: there is no search, its lock was changed by hand, or it was made by other
                code.
        """
        search = cls(folder, read_lock(folder, "space"))
        search.next_runs()
        return search

    @property
    def spec(self) -> dict[str, Any]:
        """What is searched."""
        return self.lock["spec"]

    # ---- runs and what they are worth

    def runs(self, function: Candidate | str, epochs: int, seed: int | None = None) -> list[Run]:
        """The trainings of a candidate, or of a reference by its name, one for each cell."""
        spec = self.spec
        if isinstance(function, str):
            name, options = function, dict[str, Any](spec["references"][function])
        else:
            name, options = function.formula, dict[str, Any]({"model.activation": "Formula"})
            options["model.activation.formula"] = function.formula
            if function.constants:
                options["model.activation.constants"] = function.constants
                options["model.share"] = spec["constants"]
        seed = int(spec["seed"] if seed is None else seed)
        return [
            Run("search", name, number, seed, {**cell, **options, "trainer.max_epochs": epochs},
                base=spec["base"])
            for number, cell in enumerate(spec["cells"])
        ]  # fmt: skip

    def missing(self, runs: list[Run]) -> list[Run]:
        """Those that have not ended, each once."""
        unique = {run.id: run for run in runs}
        return [run for key, run in unique.items() if key not in self.study.results]

    def fitness(self, runs: list[Run]) -> float:
        """The mean over runs, larger is better; -inf if one diverged or failed."""
        metric = self.spec["metric"]
        values = [self.study.last(run, metric) for run in runs]
        if any(map(math.isnan, values)):
            return -math.inf
        return float(np.mean(values)) * (-1 if metric.endswith("loss") else 1)

    # ---- what comes next

    def next_runs(self) -> list[Run]:
        """Read the results; the runs that are missing next.

        Raises:
            SpecError: the candidates are not those that the folder has recorded.
        """
        self.study.results = read_runs(self.folder, self.lock["code"])
        about, found = read_prepared(self.folder), self.study.results
        check_data(self.folder, ((about[k]["cell"], k, found[k]) for k in about.keys() & found))
        missing = [run for stream in self.streams.values() for run in stream.advance()]
        self._record()
        if not missing:
            missing = [run for runs in self.final_runs().values() for run in runs]
        self.pending = self.missing(missing)
        return self.pending

    def finalists(self, name: str) -> list[Member]:
        """The best members of a stream, which are trained with other seeds."""
        return self.streams[name].best(self.spec["finalists"]["number"])

    def final_runs(self) -> dict[str, list[Run]]:
        """Formula of a finalist, or name of a reference -> its runs with all seeds and cells."""
        epochs, seeds = self.spec["halving"]["epochs"][-1], self.spec["finalists"]["seeds"]
        members = [m for name in STREAMS for m in self.finalists(name)]
        every: dict[str, Candidate | str] = {name: name for name in self.spec["references"]}
        every |= {member.candidate.formula: member.candidate for member in members}
        return {
            name: [run for seed in seeds for run in self.runs(each, epochs, seed)]
            for name, each in every.items()
        }

    def final_values(self) -> dict[str, np.ndarray]:
        """The same -> a value for each seed, mean over the cells."""
        found, cells = {}, len(self.spec["cells"])
        for name, runs in self.final_runs().items():
            seeds = [runs[k : k + cells] for k in range(0, len(runs), cells)]
            found[name] = np.array([self.fitness(each) for each in seeds])
        return found

    def winner(self, name: str = EVOLVED) -> Member | None:
        """The finalist with the best mean over the seeds."""
        values = self.final_values()
        return max(
            self.finalists(name),
            key=lambda member: values[member.candidate.formula].mean(),
            default=None,
        )

    def _record(self) -> None:
        """Write which candidates there are; a folder never goes on with others."""
        found = {
            name: [{"formula": m.candidate.formula, "how": m.how, "parents": list(m.parents)}
                   for m in stream.members]
            for name, stream in self.streams.items()
        }  # fmt: skip
        file = self.folder / MEMBERS
        known = json.loads(file.read_text()) if file.is_file() else {name: [] for name in STREAMS}
        for name in STREAMS:
            for number, (old, new) in enumerate(zip(known[name], found[name], strict=False)):
                if old != new:
                    raise SpecError(
                        f"{self.folder}: candidate {number} of {name} was {old['formula']}, and is "
                        f"now {new['formula']}: the search was begun with other code. Check out "
                        f"commit {self.lock['commit']}, or begin in another folder"
                    )
        if any(len(found[name]) > len(known[name]) for name in STREAMS):
            with replacing(file) as unfinished:
                unfinished.write_text(json.dumps(found, indent=1))
