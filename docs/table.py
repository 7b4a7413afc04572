"""`python docs/table.py`: write the table of docs/activations.md from the classes' docstrings."""

import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import activations

PAGE = Path(__file__).with_name("activations.md")
START, END = "<!-- written by docs/table.py -->\n", "<!-- end of the table -->\n"
FORMULA = re.compile(r"\.\. math::(.*?)\n\n", re.DOTALL)
BEGINNING = re.compile(r"Initialisation:\n(.*?)\n\n", re.DOTALL)


def changes(kind: type) -> str:
    """How a function changes, the last words of its summary: learned, scheduled, fixed."""
    summary = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
    return summary.rstrip(".").rpartition(". ")[2].lower()


def kinds() -> list[type]:
    """Every activation that `activations` offers, in alphabetical order."""
    offered = [getattr(activations, name) for name in sorted(activations.__all__, key=str.lower)]
    base = activations.Activation
    return [k for k in offered if inspect.isclass(k) and issubclass(k, base) and k is not base]


def table() -> str:
    """The table in Markdown, a row a class."""
    lines = ["| class | formula | changes | starts as |", "|---|---|---|---|"]
    for kind in kinds():
        text = inspect.cleandoc(kind.__doc__ or "")
        formula, beginning = (
            " ".join(found[1].split())
            for pattern in (FORMULA, BEGINNING)
            if (found := pattern.search(text))
        )
        formula = formula.replace("|", r"\vert ")  # a bar ends a cell
        name = f"[`{kind.__name__}`](api/functions.md#activations.{kind.__name__})"
        lines.append(f"| {name} | $`{formula}`$ | {changes(kind)} | {beginning.rstrip('.')} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with the table as it should be."""
    before, _, rest = PAGE.read_text().partition(START)
    return f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
