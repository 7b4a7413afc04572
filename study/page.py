"""A page of a report, written as Markdown and as one HTML file that loads nothing."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

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


class Block(NamedTuple):
    """A part of a page, in both languages."""

    markdown: str
    html: str


def heading(text: str) -> Block:
    """Of a section."""
    return Block(f"## {text}", f"<h2>{escape(text)}</h2>")


def paragraph(text: str) -> Block:
    """Text."""
    return Block(text, f"<p>{_bold(text)}</p>")


def listed(lines: Sequence[str], *, verdicts: bool = False) -> Block:
    """A list; of verdicts, each line has the colour of its word."""
    items = [f"<li{_kind(line) if verdicts else ''}>{_bold(line)}</li>" for line in lines]
    return Block(
        "\n".join("- " + _WORD.sub(r"**\1**", line) for line in lines),
        f"<ul{_class('verdicts' if verdicts else '')}>{''.join(items)}</ul>",
    )


def tabled(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Block:
    """Rows under names of columns."""
    cells = [["" if each is None else str(each) for each in row] for row in rows]
    lines = [[each.replace("|", BAR) for each in row] for row in (columns, *cells)]
    lines.insert(1, ["---"] * len(columns))
    head = "".join(f"<th>{escape(each)}</th>" for each in columns)
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in cells)
    return Block(
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>',
    )


def picture(folder: Path, path: str, caption: str) -> Block:
    """A PNG in the folder of the page, and the sentence that says what it shows."""
    content = (folder / path).read_bytes()
    width = round(int.from_bytes(content[16:20]) * SIZE)  # a PNG's first number
    data, told = base64.b64encode(content).decode(), escape(caption)
    image = f'<img width="{width}" src="data:image/png;base64,{data}" alt="{told}">'
    return Block(
        f"![{caption}]({path})\n\n{caption}",
        f"<figure>{image}<figcaption>{told}</figcaption></figure>",
    )


def code(text: str) -> Block:
    """Text as it is."""
    return Block(f"```\n{text.rstrip()}\n```", f"<pre>{escape(text)}</pre>")


def folded(title: str, parts: Sequence[Block]) -> Block:
    """What is shown on request."""
    inner = "\n\n".join(part.markdown for part in parts), "\n".join(part.html for part in parts)
    return Block(
        f'<details markdown="1"><summary>{title}</summary>\n\n{inner[0]}\n\n</details>',
        f"<details><summary>{title}</summary>\n{inner[1]}\n</details>",
    )


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page as Markdown."""
    return "\n\n".join([f"# {title}", *(each.markdown for each in blocks)]) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The page as HTML, with its pictures inside."""
    body = "\n".join(each.html for each in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def replaced(page: str, name: str, blocks: Sequence[Block]) -> str:
    """A page of which `python -m study NAME` writes the part between two marks."""
    start, end = f"<!-- written by python -m study {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = page.partition(start)
    if not found or end not in rest:
        raise ValueError(f"the page lacks a line {start.strip()!r}, or {end.strip()!r} after it")
    inner = "\n\n".join(block.markdown for block in blocks)
    return f"{before}{start}\n{inner}\n\n{end}{rest.partition(end)[2]}"


def _bold(text: str) -> str:
    return _WORD.sub(r"<b>\1</b>", escape(text))


def _kind(line: str) -> str:
    """The class of a verdict's line."""
    word = _WORD.search(line)
    return _class(word[1].lower().partition(" ")[0] if word else "")


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _html_cell(text: str) -> str:
    number = re.fullmatch(r"[+-]?[\d.]+( ± [\d.]+)?|[+-][\d.]+ \[.*\]", text)
    return f"<td{_class('number' if number else '')}>{escape(text)}</td>"
