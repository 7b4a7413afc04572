"""The verdicts as a LaTeX table with the rules of booktabs."""

from .budget import budget_lines
from .lines import published
from .runs import Study
from .verdict import Verdict

_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {each: f"\\{each}" for each in "&%$#_{}"}


def latex(study: Study, verdicts: list[Verdict]) -> str:
    r"""A `table` with a row for each arm in each cell; it needs `\usepackage{booktabs}`."""
    spec, unit = study.spec, study.rules.unit
    told, known = dict(zip(study.hypotheses(), verdicts, strict=True)), bool(spec["published"])
    columns = "lr@{ $\\pm$ }lrll" + ("r" if known else "")
    head = [r"Arm", r"\multicolumn{2}{c}{Mean $\pm$ SD}", "$n$", r"Difference", "Verdict"]
    head += ["Published"] if known else []
    body = []
    for cell in study.cells:
        body += [r"\midrule"] if cell else []
        if len(study.cells) > 1:
            name = ", ".join(study.place(cell))
            body.append(rf"\multicolumn{{{len(head) + 1}}}{{l}}{{\emph{{{escape(name)}}}}} \\")
        for arm in spec["arms"]:
            runs = study.runs_of(arm, cell)
            values, verdict = runs.values[runs.are("ok")], told.get((arm, cell))
            mean = f"{values.mean():.2f}" if len(values) else "--"
            deviation = f"{values.std(ddof=1):.2f}" if len(values) > 1 else "--"
            row = [escape(arm), mean, deviation, str(len(values))]
            row += [_difference(verdict), verdict.kind.value] if verdict else ["", "baseline"]
            if known:
                value = published(study, arm, cell)
                row.append("" if value is None else f"${value:+.2f}$")
            body.append(" & ".join(row) + r" \\")
    looks = ", ".join(map(str, spec["seeds"]["looks"]))
    caption = (
        f"{spec['metric']['name']} in {unit} over paired seeds; difference to {spec['baseline']} "
        f"with its interval. Looks at {looks} seeds, alpha {spec['alpha']:g} over all looks and "
        f"{len(told)} hypotheses, margin {spec['margin']:g} {unit}."
    )
    caption += "".join(f" {line}." for line in budget_lines(study))
    if study.lock["amendments"]:
        caption += " Exploratory: the question was changed after its lock."
    parts = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering\small",
             rf"\caption{{{escape(caption)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
             rf"{' & '.join(head)} \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
             r"\end{table}"]  # fmt: skip
    return "\n".join(parts) + "\n"


def _difference(verdict: Verdict) -> str:
    seen = verdict.interval
    if seen is None:
        return "--"
    return f"${seen.difference:+z.2f}$ $[{seen.low:+z.2f},\\,{seen.high:+z.2f}]$"


def escape(text: str) -> str:
    """Text whose special characters LaTeX prints."""
    return "".join(_ESCAPES.get(each, each) for each in text)
