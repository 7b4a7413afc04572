"""What `mkdocs build` needs beyond its plugins: formulas as MathML, roles of docstrings as links.

mkdocs loads this file as a hook; griffe, which reads the docstrings, loads it as an extension.
"""

import ast
import html
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*| *$))*)", re.MULTILINE)
ROLE = re.compile(r":(\w+):`([^`]+)`")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
GITHUB = re.compile(r"\$`(.+?)`\$")
UNREAD = re.compile(r"\.\. \w+::|:\w+:<code>")


class Docstrings(griffe.Extension):
    """Turns the formulas and roles of docstrings into Markdown, before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_role, BLOCK.sub(_block, obj.docstring.value))


def _block(found: re.Match[str]) -> str:
    margin, formula = found.groups()
    return f"\n{margin}$$\n{margin}{' '.join(formula.split())}\n{margin}$$\n"


def _role(found: re.Match[str]) -> str:
    role, target = found.groups()
    if role == "math":
        return f"${target}$"
    name = f"`{target.rpartition('.')[2]}`"
    return f"[{name}][{target}]" if "." in target else name


def on_page_markdown(markdown: str, **_: Any) -> str:
    """List every function where a page says `::: activations.functions`; plain `$` for GitHub's."""
    imports = ast.parse(Path("activations/__init__.py").read_text()).body
    names = [
        alias.name
        for node in imports
        if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("functions.")
        for alias in node.names
    ]
    entries = "\n".join(f"::: activations.{name}" for name in sorted(names, key=str.lower))
    markdown = markdown.replace("::: activations.functions\n", f"{entries}\n")
    return GITHUB.sub(r"$\1$", markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Draw the formulas of a page; stop where something is left that a browser cannot show."""
    content = FORMULA.sub(_mathml, content)
    if unread := UNREAD.search(content):
        raise PluginError(f"{page.file.src_path}: docs/hooks.py does not know {unread[0]!r}")
    return content


def _mathml(found: re.Match[str]) -> str:
    formula = html.unescape(found[2]).strip()
    # a bar that is a letter has the same space on both sides
    letters = formula.replace("|", r"\vert ")
    drawn = convert(letters, display="block" if found[1] == "div" else "inline")
    if "\\" in drawn:
        raise PluginError(f"latex2mathml does not know a command of {formula!r}")
    return drawn
