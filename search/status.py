"""How far a search is."""

import math

from study.status import START
from study.words import counted, duration

from .evolution import EVOLVED, STREAMS, Member, Search


def progress(search: Search, jobs: int = 1) -> str:
    """One line: generation, trainings, the best so far, the time left."""
    spec, stream = search.spec, search.streams[EVOLVED]
    done, left, seconds = remaining(search)
    if stream.generation < spec["generations"] and stream.alive:
        epochs = spec["halving"]["epochs"]
        where = (
            f"generation {stream.generation + 1} of {spec['generations']}, rung {stream.rung + 1} "
            f"of {len(epochs)} ({counted(epochs[stream.rung], 'epoch')})"
        )
    else:
        where = "finalists" if left else "all is trained"
    best = stream.best()
    parts = [where, f"{counted(done, 'training')} done, at most {left} left"]
    parts += [f"best so far {told(search, best[0])}"] if best else []
    parts += [f"about {duration(seconds / jobs)} left"] if left and not math.isnan(seconds) else []
    return "; ".join(parts)


def told(search: Search, member: Member) -> str:
    """Number, formula, name and fitness of a member."""
    epochs = search.spec["halving"]["epochs"][len(member.values) - 1]
    value = value_text(search, member.values[-1])
    metric, length = search.spec["metric"], counted(epochs, "epoch")
    return f"#{member.number} {named(member)}: {metric} {value} ({length})"


def named(member: Member) -> str:
    """The formula, and the known function that it equals."""
    known = member.candidate.known
    return f"{member.candidate.formula} (this is {known})" if known else member.candidate.formula


def value_text(search: Search, value: float) -> str:
    """A fitness as the metric is printed."""
    if not math.isfinite(value):
        return "diverged" if value == -math.inf else ""
    return f"{-value:.4f}" if search.spec["metric"].endswith("loss") else f"{100 * value:.2f}"


def remaining(search: Search) -> tuple[int, int, float]:
    """Trainings that have ended, those left at most, and the seconds that these take one by one."""
    spec, results = search.spec, search.study.results.values()
    epochs, keep, children = *spec["halving"].values(), spec["children"]
    trainings, total = 0, 0
    for number in epochs:
        trainings, total = trainings + children, total + children * number
        children = math.ceil(children / keep)
    cells, generations = len(spec["cells"]), spec["generations"] * len(STREAMS)
    final = (spec["finalists"]["number"] * len(STREAMS) + len(spec["references"])) * len(
        spec["finalists"]["seeds"]
    )
    planned = cells * (generations * trainings + final)
    planned_epochs = cells * (generations * total + final * epochs[-1])
    done, trained = len(results), sum(len(each["epochs"]) for each in results)
    if not trained:
        return done, planned - done, math.nan
    second = sum(each.get("fit_s") or 0.0 for each in results) / trained
    left = max(planned - done, len(search.pending)) if search.pending else 0
    return done, left, START * left + second * max(planned_epochs - trained, 0)


def status(search: Search) -> str:
    """The progress, and what is left to do."""
    lines = [search.spec["question"] or str(search.folder), progress(search)]
    if search.pending:
        next_ = counted(len(search.pending), "training")
        lines.append(f"next: {next_}: python -m search run {search.folder}")
    else:
        lines.append(f"nothing is left to train: python -m search report {search.folder}")
    return "\n".join(lines)
