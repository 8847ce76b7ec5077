"""Loads the named statements of `sql/*.sql`: the only place where SQL is written down."""

import re
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

Queries = MappingProxyType[str, str]

_NAME: Final = re.compile(r"^-- name: (?P<name>\w+)$", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """The statements of one file by name; what stands before the first name is prose."""
    _, *parts = _NAME.split(text)
    return {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


@cache
def load() -> Queries:
    """Every named statement of the package.

    Raises:
        ValueError: a name is used twice.
    """
    statements: dict[str, str] = {}
    for file in sorted((resources.files(__package__) / "sql").iterdir(), key=lambda f: f.name):
        for name, statement in parse(file.read_text("utf-8")).items():
            if name in statements:
                raise ValueError(f"two statements are named {name}; rename the one in {file.name}")
            statements[name] = statement
    return MappingProxyType(statements)
