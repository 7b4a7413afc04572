"""The report of a search."""

import math

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from activations.files import replacing
from study.page import (
    Block,
    code,
    folded,
    heading,
    html,
    listed,
    markdown,
    paragraph,
    picture,
    tabled,
)
from study.report import mean_deviation

from . import figures
from .evolution import EVOLVED, RANDOM, STREAMS, Member, Search
from .screen import BYTES, screen_rows
from .status import named, progress, told, value_text

_SCOPE = (
    "Everything here is on validation data, and the winner is the best of many: its value is too "
    "good by the luck of the choice. What it is worth on other seeds and other data says a study: "
    "python -m search adopt DIR NAME, then python -m study run."
)
_FAMILY = (
    "Below each function stand those that it was made from, further to the right. The first ones "
    "were drawn at random."
)
_KNOWN = (
    "Functions of torch and of this project that were found again, up to scale, shift and x -> -x, "
    "which the next layer absorbs. The place is among all functions of the search, or of random "
    "search."
)
_NO_INPUTS = (
    "The inputs of {} of {} are not known, since their runs have written no inputs.csv: these are "
    "drawn over the standard normal distribution. "
)


def report(search: Search) -> str:
    """Write the report of `search` into its folder, finished or not; the lines to print."""
    folder = search.folder
    table = _candidates(search)
    with replacing(folder / "candidates.csv") as unfinished:
        table.to_csv(unfinished, index=False)
    lines = [progress(search)] if search.pending else _result(search)
    title = search.spec["question"] or f"The search {folder.resolve().name}"
    page = _page(search, lines, table)
    for name, text in (("report.md", markdown(title, page)),
                       ("report.html", html(title, page))):  # fmt: skip
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text)
    return "\n".join([*lines, f"written into {folder}: report.md, report.html, candidates.csv"])


def _page(search: Search, lines: list[str], table: pd.DataFrame) -> list[Block]:
    page: list[Block] = [paragraph(_about(search)), listed(lines), paragraph(_SCOPE)]
    if not search.pending:
        page += [heading("Finalists"), *_finalists(search)]
    if any(stream.best() for stream in search.streams.values()):
        page += [heading("Search against random"), *_streams(search)]
    winner = _leader(search)
    if winner:
        which = "best so far" if search.pending else "winner"
        page += [heading(f"The family of the {which}"), paragraph(_FAMILY),
                 code("\n".join(family(search, winner)))]  # fmt: skip
        page += [heading("Accuracy against cost"), *_cost(search)]
    page += [heading("Known functions"), *_known(search)]
    page += [heading("Screens before training"), _screens(search)]
    if search.spec["surrogate"]:
        page += [heading("The surrogate"), paragraph(_surrogate(search))]
    lock = {name: value for name, value in search.lock.items() if name != "spec"}
    columns = [str(name) for name in table]
    shown = table.astype(object).where(table.notna(), "")
    return [
        *page,
        folded(f"All {len(table)} candidates", [tabled(columns, shown.to_numpy().tolist())]),
        folded("The locked search", [
            code(yaml.safe_dump(search.spec, sort_keys=False, allow_unicode=True)),
            code(yaml.safe_dump(lock, sort_keys=False)),
        ]),
    ]  # fmt: skip


def _leader(search: Search) -> Member | None:
    """The winner; before the end, the best so far."""
    best = search.streams[EVOLVED].best()
    return search.winner() if not search.pending else best[0] if best else None


def _about(search: Search) -> str:
    spec = search.spec
    cells = "; ".join(f"{c.get('data', 'data')}, {c.get('model.backbone', 'backbone')}"
                      for c in spec["cells"])  # fmt: skip
    space = spec["space"] if isinstance(spec["space"], str) else "of its own"
    epochs = " and ".join(map(str, spec["halving"]["epochs"]))
    ranked = ", from four times as many that a surrogate ranks" if spec["surrogate"] else ""
    return (
        f"Evolution in the space {space}, on {cells}: {spec['generations']} generations of "
        f"{spec['children']} functions{ranked}; parents are the best of {spec['tournament']} drawn "
        f"from the last {spec['population']}. Each is trained {epochs} epochs, and of these one in "
        f"{spec['halving']['keep']} goes on to the next length. Random search has the same "
        "number of trainings of each length. The best of both, "
        f"{spec['finalists']['number']} of each, are then trained with "
        f"{len(spec['finalists']['seeds'])} other seeds. Compared is "
        f"{spec['metric']} of the last epoch, in {_unit(search)}."
    )


def _unit(search: Search) -> str:
    return "nats" if search.spec["metric"].endswith("loss") else "points"


def _shown(search: Search, values: np.ndarray) -> np.ndarray:
    """Fitness as the metric is printed."""
    return -values if search.spec["metric"].endswith("loss") else 100 * values


def _mean(search: Search, values: np.ndarray) -> str:
    ended = values[np.isfinite(values)]
    text = mean_deviation(_shown(search, ended))
    lost = len(values) - len(ended)
    return f"{text}, {lost} diverged or failed".lstrip(", ") if lost else text


# ---- what was found


def _result(search: Search) -> list[str]:
    """The winner; and how it compares with random search and with the references."""
    winner, values = search.winner(), search.final_values()
    if winner is None:
        return ["Nothing was found: every training diverged or failed."]
    mine = values[winner.candidate.formula]
    lines = [
        f"The winner is #{winner.number}, {named(winner)}: {search.spec['metric']} "
        f"{_mean(search, mine)} over {len(mine)} seeds.",
        against_random(search),
    ]
    references = search.spec["references"]
    return [*lines, *(f"Against {name}: {difference(search, mine, values[name])}."
                      for name in references)]  # fmt: skip


def against_random(search: Search) -> str:
    """Whether the search was worth it, in one sentence."""
    winner, other = search.winner(EVOLVED), search.winner(RANDOM)
    if winner is None or other is None:
        return "Random search cannot be compared: all trainings of one of them diverged or failed."
    values = search.final_values()
    mine, its = (values[each.candidate.formula] for each in (winner, other))
    best = f"the best of random search is {named(other)} ({_mean(search, its)})"
    if np.array_equal(mine, its):
        return f"The search does not beat random search: {best}, which trains alike."
    low, high = interval(mine - its)
    word = "beats" if low > 0 else "is worse than" if high < 0 else "does not beat"
    return (
        f"The search {word} random search with the same trainings: {best}; "
        f"{difference(search, mine, its)}."
    )


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of differences by seed.

    Infinite where one run has no value, and where all seeds have the same difference, which few
    seeds on a small validation set often have: it tells nothing of their spread.
    """
    n, mean = len(differences), float(np.mean(differences))
    if not np.isfinite(differences).all() or (np.ptp(differences) < 1e-9 < abs(mean)):
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / math.sqrt(n))
    return mean - half, mean + half


def difference(search: Search, first: np.ndarray, second: np.ndarray) -> str:
    """The mean difference by seed, and whether the seeds alone explain it."""
    both = np.isfinite(first) & np.isfinite(second)
    if not both.all():
        return "no difference, since runs diverged or failed"
    scale = -1 if search.spec["metric"].endswith("loss") else 100  # fitness to metric
    differences = scale * (first - second)
    low, high = interval(differences)
    if math.isinf(low):
        return (
            f"difference {differences.mean():+z.2f} {_unit(search)} with each of {len(first)} "
            "seeds, which do not tell their spread"
        )
    spread = "more than" if low > 0 or high < 0 else "not more than"
    return (
        f"difference {differences.mean():+z.2f} {_unit(search)} [{low:+z.2f}, {high:+z.2f}] over "
        f"{len(first)} paired seeds, {spread} the seeds' spread"
    )


def _finalists(search: Search) -> list[Block]:
    values, body, seen = search.final_values(), [], dict[str, list[str]]()
    members = {m.candidate.formula: m for name in STREAMS for m in search.finalists(name)}
    for stream in STREAMS:
        for member in search.finalists(stream):
            seen.setdefault(member.candidate.formula, []).append(f"{stream} #{member.number}")
    order = sorted(values, key=lambda name: -np.mean(values[name]))
    for name in order:
        member = members.get(name)
        body.append([
            named(member) if member else name, ", ".join(seen.get(name, ["reference"])),
            member.candidate.operations if member else "", _mean(search, values[name]),
            *(value_text(search, each) for each in values[name]),
        ])  # fmt: skip
    columns = ["function", "from", "operations",
               f"{search.spec['metric']}, {_unit(search)}: mean ± deviation",
               *(f"seed {each}" for each in search.spec["finalists"]["seeds"])]  # fmt: skip
    blocks: list[Block] = [tabled(columns, body)]
    if members:
        shown = {
            name: figures.Finalist(members[name], _learned(search, name), inputs(search, name))
            for name in order if name in members
        }  # fmt: skip
        figures.draw_finalists(search.folder / "figures/finalists.png", shown)
        unknown = sum(not len(each.inputs) for each in shown.values())
        blocks.append(picture(search.folder, "figures/finalists.png", (
            "The finalists over the histogram (grey) of what flowed into all their layers in a "
            "training batch of the last epoch, all seeds together. "
            f"{_NO_INPUTS.format(unknown, len(shown)) if unknown else ''}Thin: what each layer has "
            "learned, of the first seed, where there are learned constants."
        )))  # fmt: skip
    return blocks


def _learned(search: Search, name: str) -> dict[str, list[float]]:
    """Constant -> its learned values, one for each site and channel, of the first run."""
    found: dict[str, list[float]] = {}
    result = search.study.results.get(search.final_runs()[name][0].id) or {}
    for path, values in (result.get("learned") or {}).items():
        found.setdefault(path.rpartition(".")[2], []).extend(np.ravel(values).tolist())
    return found


def inputs(search: Search, name: str) -> np.ndarray:
    """What flowed into the layers, as many numbers of each layer of each run; none if unknown."""
    found = []
    for run in search.final_runs()[name]:
        files = sorted((search.folder / "runs" / run.id).glob("attempt_*/inputs.csv"))
        found += [pd.read_csv(file).to_numpy().ravel() for file in files[-1:]]
    return np.concatenate([*found, np.zeros(0)])


def _streams(search: Search) -> list[Block]:
    """How the best so far has risen in both."""
    series = {name: best_by_generation(search, name) for name in STREAMS}
    path = search.folder / "figures/streams.png"
    figures.draw_streams(path, {n: _shown(search, v) for n, v in series.items()},
                         f"{search.spec['metric']}, {_unit(search)}")  # fmt: skip
    epochs = search.spec["halving"]["epochs"][-1]
    return [picture(search.folder, "figures/streams.png", (
        f"The best value after {epochs} epochs so far, by generation, with the seed of the search. "
        "Each has the same number of trainings of each length."
    ))]  # fmt: skip


def best_by_generation(search: Search, name: str) -> np.ndarray:
    """The best fitness at the last rung up to each generation; NaN before the first."""
    rungs = len(search.spec["halving"]["epochs"])
    best, found = math.nan, []
    stream = search.streams[name]
    for generation in range(stream.generation):
        mine = [member for member in stream.members if member.generation == generation]
        values = [each.values[-1] for each in mine if each.rank[0] == rungs]
        best = float(np.fmax(best, max(values, default=math.nan)))
        found.append(best)
    return np.array(found)


def family(search: Search, member: Member) -> list[str]:
    """A member and those that it comes from, an indented line each; one that came before is cut."""
    members, seen, lines = search.streams[EVOLVED].members, set[int](), list[str]()

    def grow(each: Member, depth: int) -> None:
        again = each.number in seen
        how = f"{each.how} of {' and '.join(f'#{k}' for k in each.parents)}"
        how = "drawn" if not each.parents else "see above" if again else how
        lines.append(f"{'    ' * depth}{told(search, each)}, {how}")
        if not again:
            seen.add(each.number)
            for parent in each.parents:
                grow(members[parent], depth + 1)

    grow(member, 0)
    return lines


def _cost(search: Search) -> list[Block]:
    """The front of fitness against operations, of those trained longest."""
    rungs = len(search.spec["halving"]["epochs"])
    trained = {name: [m for m in stream.members if len(m.values) == rungs and m.rank[0]]
               for name, stream in search.streams.items()}  # fmt: skip
    every = [member for members in trained.values() for member in members]
    if not every:
        return [paragraph("No function has been trained to the last length yet.")]
    best = front(every)

    def points(members: list[Member]) -> list[tuple[int, float]]:
        values = _shown(search, np.array([m.values[-1] for m in members]))
        return list(zip((m.candidate.operations for m in members), values, strict=True))

    path = search.folder / "figures/cost.png"
    figures.draw_cost(
        path,
        {name: points(members) for name, members in trained.items()},
        points(best),
        f"{search.spec['metric']}, {_unit(search)}",
        higher=not search.spec["metric"].endswith("loss"),
    )
    body = [[named(m), m.candidate.operations, value_text(search, m.values[-1])] for m in best]
    return [
        picture(search.folder, "figures/cost.png", (
            "All functions that were trained to the last length, by the operations for each "
            "element; the line joins those that no cheaper one reaches. A fused kernel moves "
            f"{BYTES} bytes for each element, forward and backward, whatever the function."
        )),
        tabled(["function", "operations", search.spec["metric"]], body),
    ]  # fmt: skip


def front(members: list[Member]) -> list[Member]:
    """Those that are better than every one that costs the same or less, the cheapest first."""
    found: list[Member] = []
    for each in sorted(members, key=lambda m: (m.candidate.operations, -m.values[-1], m.number)):
        if not found or each.values[-1] > found[-1].values[-1]:
            found.append(each)
    return found


def _known(search: Search) -> list[Block]:
    """Known functions that were found again, and their places."""
    body = []
    for name, stream in search.streams.items():
        order = [m.number for m in sorted(stream.members, key=lambda m: m.rank, reverse=True)]
        for member in stream.members:
            if member.candidate.known:
                place = order.index(member.number) + 1
                epochs = search.spec["halving"]["epochs"][len(member.values) - 1]
                seen = value_text(search, member.values[-1]) if member.values else "waits"
                body.append([member.candidate.known, member.candidate.formula, name,
                             f"#{member.number}", f"{place} of {len(order)}", seen,
                             epochs if member.values else ""])  # fmt: skip
    if not body:
        return [paragraph("None was found again.")]
    columns = ["function", "found as", "by", "number", "place", search.spec["metric"], "epochs"]
    return [paragraph(_KNOWN), tabled(columns, sorted(body))]


def _screens(search: Search) -> Block:
    rows = {name: {reason: (n, share) for reason, n, share in screen_rows(stream.counts)}
            for name, stream in search.streams.items()}  # fmt: skip
    reasons = dict.fromkeys(reason for each in rows.values() for reason in each)
    body = [[reason, *(part for each in rows.values() for part in each.get(reason, (0, "0.0%")))]
            for reason in reasons]  # fmt: skip
    return tabled(["result", *(part for name in rows for part in (name, "share"))], body)


def _surrogate(search: Search) -> str:
    """How well the expected values agree with those that came."""
    pairs = np.array([(m.predicted, m.values[0]) for m in search.streams[EVOLVED].members
                      if m.values and np.isfinite([m.predicted, m.values[0]]).all()])  # fmt: skip
    if len(pairs) < 3 or np.ptp(pairs, axis=0).min() == 0:
        return "It has ranked too few functions to tell whether it helps."
    rho = pd.DataFrame(pairs).corr("spearman").to_numpy()[0, 1]
    return (
        f"Rank correlation between what it expected and what came at the first rung: {rho:+.2f}, "
        f"over the {len(pairs)} functions that it chose; 0 would be a guess."
    )


def _candidates(search: Search) -> pd.DataFrame:
    """A row for each candidate."""
    epochs = search.spec["halving"]["epochs"]
    rows = [
        {
            "by": name, "number": m.number, "generation": m.generation,
            "formula": m.candidate.formula, "known": m.candidate.known, "how": m.how,
            "parents": " ".join(map(str, m.parents)), "operations": m.candidate.operations,
            **{f"{search.spec['metric']}, {e} epochs": value_text(search, v)
               for e, v in zip(epochs, m.values, strict=False)},
        }
        for name, stream in search.streams.items() for m in stream.members
    ]  # fmt: skip
    return pd.DataFrame(rows)
