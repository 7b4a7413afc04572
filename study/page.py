"""A page of a report, written as Markdown and as one HTML file that loads nothing."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

SIZE = 0.72  # of a picture on the page, in pixels of the screen for each of its own
WORDS = ("BETTER", "WORSE", "EQUIVALENT", "UNDECIDED", "IDENTICAL", "UNSTABLE", "HELD BACK",
         "NO VERDICT")  # fmt: skip
BAR = "\\|"  # a bar in a cell
_WORD = re.compile(rf"\b({'|'.join(WORDS)}|MORE THAN|SHORT BUDGET)\b")
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
p { margin: .5rem 0; } figure { margin: 1.4rem 0; } figcaption { color: #444; }
img { max-width: 100%; height: auto; }
ul { padding-left: 1.1rem; margin: .5rem 0; } li { margin: .3rem 0; }
ul.verdicts { list-style: none; padding: 0; }
ul.verdicts li { padding: .45rem .8rem; border-left: .35rem solid #777; background: #f5f5f5; }
ul.verdicts li.better { border-color: #0072b2; } ul.verdicts li.worse { border-color: #d55e00; }
ul.verdicts li.equivalent, ul.verdicts li.identical { border-color: #009e73; }
ul.verdicts li.unstable, ul.verdicts li.held { border-color: #cc79a7; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid #e4e4e4;
         vertical-align: top; }
td:first-child { white-space: nowrap; }
th { border-bottom: 2px solid #999; } td.number { text-align: right; white-space: nowrap;
     font-variant-numeric: tabular-nums; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; font-weight: 600; margin: .8rem 0; }
"""


@dataclass(frozen=True)
class Heading:
    """Of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Lines:
    """A list; of verdicts, each line has the colour of its word."""

    lines: Sequence[str]
    verdicts: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under names of columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """A PNG in the folder of the page, and the sentence that says what it shows."""

    path: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Text as it is."""

    text: str


@dataclass(frozen=True)
class Folded:
    """What is shown on request."""

    title: str
    parts: "Sequence[Block]"


Block = Heading | Text | Lines | Table | Picture | Code | Folded


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page as Markdown."""
    return "\n\n".join([f"# {title}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Text(text):
            return text
        case Lines(lines):
            return "\n".join("- " + _WORD.sub(r"**\1**", line) for line in lines)
        case Table(columns, rows):
            table = [columns, ["---"] * len(columns), *rows]
            cells = [[_cell(each).replace("|", BAR) for each in row] for row in table]
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case Picture(path, caption):
            return f"![{caption}]({path})\n\n{caption}"
        case Code(text):
            return f"```\n{text.rstrip()}\n```"
        case Folded(heading, parts):
            inner = "\n\n".join(map(_markdown, parts))
            return f'<details markdown="1"><summary>{heading}</summary>\n\n{inner}\n\n</details>'


def html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The page as HTML, with the pictures of `folder` inside."""
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text):
            return f"<p>{_bold(text)}</p>"
        case Lines(lines, verdicts):
            kinds = [_kind(line) if verdicts else "" for line in lines]
            items = [f"<li{k}>{_bold(line)}</li>" for k, line in zip(kinds, lines, strict=True)]
            return f"<ul{_class('verdicts' if verdicts else '')}>{''.join(items)}</ul>"
        case Table(columns, rows):
            head = "".join(f"<th>{escape(each)}</th>" for each in columns)
            body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows)
            return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        case Picture(path, caption):
            content = (folder / path).read_bytes()
            width = round(int.from_bytes(content[16:20]) * SIZE)  # a PNG's first number
            data = base64.b64encode(content).decode()
            image = (
                f'<img width="{width}" src="data:image/png;base64,{data}" alt="{escape(caption)}">'
            )
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Folded(heading, parts):
            inner = "\n".join(_html(each, folder) for each in parts)
            return f"<details><summary>{escape(heading)}</summary>\n{inner}\n</details>"


def _bold(text: str) -> str:
    return _WORD.sub(r"<b>\1</b>", escape(text))


def _kind(line: str) -> str:
    """The class of a verdict's line."""
    word = _WORD.search(line)
    return _class(word[1].lower().partition(" ")[0] if word else "")


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _html_cell(value: object) -> str:
    text = _cell(value)
    number = re.fullmatch(r"[+-]?[\d.]+( ± [\d.]+)?|[+-][\d.]+ \[.*\]", text)
    return f"<td{_class('number' if number else '')}>{escape(text)}</td>"
