"""Read files of options in YAML, also those of others."""

from collections import Counter
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST = 10_000  # values; a run's config.yaml has some hundred


def read_yaml(text: str) -> Any:
    """What `text` holds.

    Raises:
        yaml.YAMLError: it is no YAML, a name is there twice in a mapping, of which YAML would drop
            the first, or aliases make a small file huge.
    """
    check_yaml(text)
    return yaml.load(text, LOADER)


def check_yaml(text: str) -> None:
    """Raise yaml.YAMLError as `read_yaml` does."""
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
