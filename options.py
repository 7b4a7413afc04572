"""The options of `train.py`: read from YAML and the command line, mistakes told in one sentence."""

import difflib
import pkgutil
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from enum import Enum
from numbers import Number
from typing import Any

import torch
import yaml
from jsonargparse import _typehints, get_loader, set_loader, set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

import activations
from models import Classifier

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST = 10_000  # values in a file; a run's config.yaml has some hundred
SLIP = 2  # exit code of a mistake in the command or its files
set_parsing_settings(instantiate_subclass_spec_in_any=False)
yaml.SafeDumper.add_multi_representer(  # Timer's default is one
    Enum, lambda dumper, value: dumper.represent_data(value.value)
)


def _number(given: Any) -> Any:
    """A number, also from the command line: the type of RandomRotation's degrees is no class."""
    value = yaml.safe_load(given) if isinstance(given, str) else given
    if isinstance(value, bool) or not isinstance(value, Number):
        raise ValueError("give a number")
    return value


def _with_own_defaults(keep: Callable[..., None]) -> Callable[..., None]:
    """Let another class begin with its own defaults; jsonargparse keeps those of the one before.

    AdamW would train with the learning rate of the SGD in a file, Snake with the alpha of CosLU.
    Loggers and data sets keep what fits, such as their folder.
    """

    def discard(parser: Any, before: Any, value: Any) -> None:
        keep(parser, before, value)
        if not before or before["class_path"] == value["class_path"]:
            return
        if not _is_kind(value["class_path"], OWN_DEFAULTS):
            return
        given: Any = before.get("init_args") or {}
        for key in list(given if isinstance(given, dict) else vars(given)):
            typed = re.compile(rf"--model\.\w+\.(init_args\.)?{key}\b")
            if not any(map(typed.match, sys.argv)):
                del given[key]

    return discard


def _is_kind(path: str, kinds: tuple[type, ...]) -> bool:
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(found, type) and issubclass(found, kinds)


OWN_DEFAULTS = (nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
# not promised: tests/test_slips.py fails by name when it has changed
if hasattr(_typehints, "discard_init_args_on_class_path_change"):
    _typehints.discard_init_args_on_class_path_change = _with_own_defaults(
        _typehints.discard_init_args_on_class_path_change
    )
register_type(Number, serializer=lambda value: value, deserializer=_number)
register_type(torch.device)  # an option of some callbacks, to be written in config.yaml
# Pattern of what jsonargparse writes, which it does not promise (tests/test_slips.py fails when it
# has changed) -> the sentence for it; the first that fits counts. {option} is what the message is
# about, {given} its value, {accepted} what it takes, {nearest} known names of nearly that spelling.
SENTENCES = {
    r"Requirement '(?P<name>[\w-]+).*not met": "{name} is not installed: pip install {name}",
    r"key \".*No module named '(?P<name>\w+)'": (
        "{option}: there is no module {name!r}; name a class, or give its full path"
    ),
    r"No module named '(?P<name>\w+)'": "{name} is not installed: pip install {name}",
    r"callable class: (?P<why>module '[\w.]+' has no attribute '\w+')": "{option}: {why}",
    r"arguments are required: (fit\.)?data\b": (
        "--data is missing: choose a data set, such as --data Digits"
    ),
    r"arguments are required: (?P<names>.+)": "{owner} needs arguments that are not given: {names}",
    r"^Unexpected config:?(?P<text>.{,60})": (
        "a file of -c holds no mapping {{name: value}}: {text}"
    ),
    r"codec can't decode": "a file of options is no text in UTF-8: {message}",
    r"key \".*Dict must include a class_path": (
        "{option} has arguments but no class: name the class first, {option} NAME"
    ),
    r"an instantiatable class, but.*?abstract.*Given value: (?P<name>\S+)": (
        "{option} {name!r} is the base of other classes and lacks {lacking}: choose one of these "
        "classes, or write what it lacks"
    ),
    r"NestedArg\(key='(?P<name>[\w.]+)'": "{option} has no option {name!r}: give {accepted}",
    r"^unrecognized arguments: (?P<name>--\S*)": "{message}{nearest}",
    r"^ambiguous option: (?P<name>--\S*)": "{name} is no option{nearest}",
    r"(does not accept option|Option) '(?P<name>[\w.]+)'": (
        "{owner} has no option {name!r}{nearest}"
    ),
    r"given class_path '(\w+\.)*(?P<name>\w+)':(?P<why>.*?)(\n\s*- (Exp|Not )|Given value|$)": (
        "{name}: {why}"
    ),
    # what the constructor of a callback has said
    r"^Does not validate.*?Errors:\s+- (?!Does not|Exp|Not a)(?P<why>.*?)\n\s*- (Exp|Not )": (
        "{given}: {why}"
    ),
    r"key \".*Unable to load config (?P<text>.*?)\n": (
        "{option} is neither a file of options nor {{name: value}}: {text}"
    ),
    r"(Unable to load|[Pp]arsing) config(.*  - |[^:]*:)(?P<why>.*)": (
        "a file of -c cannot be read: {why}"
    ),
    r"key \".*(Expected (a|')|mport path)": (
        "{option} {given!r} does not fit: give {accepted}{nearest}"
    ),
    r'^Parser key ".*?":(?P<why>.*)': "{option}: {why}",
    r"": "{message}",
}
TYPES = re.compile(
    r"(?:Subtypes: \[|Expected an? (?=<|typing|coll)|a subclass of )(.*?)(?:\]$|\.*? Got|$)",
    re.MULTILINE,
)
KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "Number": "a number",
    "str": "a text",
    "list": "a list",
    "Iterable": "a list",
    "Sequence": "a list",
    "dict": "a mapping {name: value}, with a space behind the colon",
    "timedelta": "a time such as 00:12:00:00",
    "Callable": "a class",
    "Union": "",
}


def parsable(words: list[str]) -> list[str]:
    """The words of a command line, as the parser takes them.

    A class comes ahead of its options, unless a file of options is between: the parser looks for
    them in the class that is named so far. Our activations have their full names: timm has a
    Swish, too.
    """
    words = list(words)
    for option in sorted({word.partition("=")[0] for word in words if word.startswith("--")}):
        named = [n for n, word in enumerate(words) if word.partition("=")[0] == option]
        first = next((n for n, word in enumerate(words) if word.startswith(f"{option}.")), None)
        if first is None or len(named) != 1 or named[0] < first:
            continue
        at, last = named[0], named[0] + (1 if "=" in words[named[0]] else 2)
        if not any(re.match("(-c|--config)(=|$)", word) for word in words[first:at]):
            words[first:last] = words[at:last] + words[first:at]
    found: list[str] = []
    for word in words:
        option, equals, value = word.rpartition("=")
        named = option or (found[-1] if found else "")
        if named == "--model.activation" and value in activations.__all__:
            value = f"activations.{value}"
        found.append(f"{option}{equals}{value}")
    return found


class Parser(LightningArgumentParser):
    """Prints one message for a mistake on the command line, not pages of usage.

    Attributes:
        source: of the class: the checkpoint whose stored options are being read.
        owner: the class whose arguments these are, if it is the parser of one class.
    """

    source = ""
    owner = ""

    def add_class_arguments(self, theclass: Any, nested_key: Any = None, **options: Any) -> Any:
        """Add all but what the swap sets itself: the device and the dtype of the activations."""
        if nested_key is None:
            unnamed = "--data, which names no data set,"
            self.owner = unnamed if theclass is LightningDataModule else theclass.__name__
        if theclass is Classifier:
            options["skip"] = {"activation.init_args.device", "activation.init_args.dtype"}
        return super().add_class_arguments(theclass, nested_key, **options)

    def add_trust(self) -> None:
        """Add `--trust`, of the commands that open a checkpoint."""
        self.add_argument(
            "--trust",
            action="extend",  # "append" reads the list of a config.yaml as one text
            nargs="+",
            type=str,
            default=[],
            help="Packages whose classes a checkpoint may name.",
        )

    def format_help(self, *args: Any, **more: Any) -> str:
        """Show the default optimizer by what it is, not as a function's address."""
        default = "SGD lr 0.1, momentum 0.9, weight_decay 1e-4"
        return re.sub(
            r"<function\s+_sgd\s+at\s+0x\w+>", default, super().format_help(*args, **more)
        )

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one sentence for `message`, and exit with status 2."""
        text = explain(message, _inner(ex) or self)
        if self.source:
            raise ValueError(f"{self.source!r} stores an option that does not fit here: {text}")
        command = "export" if self.prog.endswith("export") else "fit"
        sys.stderr.write(f"train.py: error: {text}\nOptions: python train.py {command} --help\n")
        sys.exit(SLIP)


def explain(message: str, parser: Parser | None = None) -> str:
    """One sentence for an error of jsonargparse or of a library: option, value, what is accepted.

    Args:
        message: the text of the error.
        parser: the parser of the options, or of the class, that the error is about.
    """
    found = ((re.search(pattern, message, re.DOTALL), text) for pattern, text in SENTENCES.items())
    match, sentence = next((match, text) for match, text in found if match)
    key = re.search(r'key "([\w.]+)"', message)
    owner = parser.owner if parser else ""
    option = f"{owner}: {key[1]}" if key and owner else f"--{key[1]}" if key else "a value"
    value = re.search(r"(?:Given value|Got value|dot import path string): ?(.*)", message)
    given = value[1].strip() if value else ""
    if classes := re.findall(r"class_path='([\w.]+)'", given):
        given = " or ".join(dict.fromkeys(classes))
    accepted = _accepted(message)
    if given.lower() == "false" and "off" in accepted:
        accepted += "; YAML reads off as false: put it in quotes"
    parts = {name: _line(text) for name, text in match.groupdict("").items()}
    return sentence.format(
        **parts,
        message=_line(message),
        option=option,
        owner=owner or "the command",
        given=_line(given, 60),
        accepted=accepted,
        lacking=_lacking(parts["name"]) if "{lacking}" in sentence else "",
        nearest=_nearest(parts.get("name"), given, option, parser) if parser else "",
    )


def _nearest(wrong: str | None, given: str, option: str, parser: Parser) -> str:
    """Classes for `option`, named nearly as `given`; else options, named nearly as `wrong`."""
    text, name = parser.format_help(), (wrong or given).rpartition(".")[2]
    section = re.search(rf"\n  {re.escape(option)} .*?(?=\n  --|\Z)", text, re.DOTALL)
    words = "".join((section[0] if section else "").split())
    classes = words.partition("knownsubclasses:")[2].partition(")")[0]
    known = classes.split(",") if classes else re.findall(r"  --([\w.]+)", text)
    if not classes and not wrong:
        return ""  # a value is no option
    if not classes and not parser.owner:
        known = [f"--{each}" for each in [*known, "model.optimizer.lr"]]
    known = [each for each in dict.fromkeys(known) if not each.endswith(".help")]
    ends = {each.rpartition(".")[2]: each for each in known}
    close = [each for each in known if each.endswith(f".{name}")]
    close = close or [ends[each] for each in difflib.get_close_matches(name, ends, n=3)]
    return f"; the nearest: {', '.join(close)}" if close else ""


def _lacking(name: str) -> str:
    """What a class leaves to those that are made of it; the parser has imported it."""
    try:
        return ", ".join(sorted(pkgutil.resolve_name(name).__abstractmethods__))
    except (ImportError, ValueError, AttributeError):  # a short name
        return "methods"


def _accepted(message: str) -> str:
    """What an option takes, from the types in `message`."""
    types = TYPES.search(message)
    text = re.sub(r"typing\.Literal\[([^]]*)\]", r"\1", types[1] if types else "")
    text = re.sub(r"[\w.]*Callable\[\[[^][]*\], ([\w.]+)\]", r"\1", text)  # what it makes
    while text != (shorter := re.sub(r"\[[^][]*\]", "", text)):
        text = shorter
    found: list[str] = []
    for each in text.split(","):
        path = re.sub(r"<class '(.*)'>.*", r"\1", each.strip()).strip("'")
        name = path.rpartition(".")[2]
        kind = f"a class of the kind {name}" if "<class" in each or "." in path else name
        found.append(KINDS.get(name, kind))
    *most, last = dict.fromkeys(filter(None, found)) or ["the name of a class, or its full path"]
    return f"{', '.join(most)} or {last}" if most else last


def _line(text: str, most: int = 300) -> str:
    """`text` on one line, cut to `most` characters."""
    words = " ".join(text.split())
    return words if len(words) <= most else f"{words[:most]}..."


def _inner(error: BaseException | None) -> Parser | None:
    """The innermost parser that `error` passed through: that of the class with the wrong option."""
    parser = None
    for frame, _ in traceback.walk_tb(error.__traceback__ if error else None):
        owner = frame.f_locals.get("self")
        parser = owner if isinstance(owner, Parser) else parser
    return getattr(error, "subcommand_parser", None) or parser


def _read_yaml(text: str) -> Any:
    """Read YAML; refuse a key that is there twice, and aliases that make a small file huge."""
    if "\n" in text or "&" in text:
        check_yaml(text)
    return _plain_yaml(text)


def parse_yaml(text: str) -> Any:
    """What `text` holds.

    Raises:
        yaml.YAMLError: it is no YAML, a name is there twice in a mapping, of which YAML would drop
            the first, or aliases make a small file huge.
    """
    check_yaml(text)
    return yaml.load(text, LOADER)


def check_yaml(text: str) -> None:
    """Raise yaml.YAMLError as `parse_yaml` does."""
    try:
        root = yaml.compose(text, LOADER)
        many = root is not None and _size(root, {}) > MOST
    except RecursionError as error:
        raise yaml.YAMLError("lists or mappings in one another, too deep to be read") from error
    if many:
        raise yaml.YAMLError(f"more than {MOST:,} values: no file of options is so large")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` has when its aliases are written out."""
    if id(node) not in known:
        known[id(node)] = 1  # an alias of what it is in
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in parts]
            if twice := [key for key, count in Counter(map(str, keys)).items() if count > 1]:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"{twice[0]!r} is there twice in the mapping at line {line}")
            parts = [value for _, value in parts]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


_plain_yaml = get_loader("yaml")
set_loader("yaml", _read_yaml, (yaml.YAMLError,))
