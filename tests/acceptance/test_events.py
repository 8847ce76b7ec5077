"""Every log event in the source is a constant `noun.verb_past`, so people can search for it and alert on it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).parents[2] / "controller"
LEVELS: Final = {"debug", "info", "warning", "error", "exception", "critical"}
NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z]+)*\.[a-z]+(_[a-z]+)*")
#: Past forms that don't end in -ed, and states that end when they are logged.
IRREGULAR: Final = {
    "unproven",
    "rewound",
    "split",
    "tried_others",
    "begun",
    "stuck",
    "timed_out",
    "unable",
    "unavailable",
}


def events() -> Iterator[tuple[str, str]]:
    """Each place that logs, and its event. An event that isn't a constant shows as source text."""
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and _logs(node.func):
                name = node.args[0]
                where = f"{file.relative_to(SOURCE)}:{node.lineno}"
                if isinstance(name, ast.Constant):
                    yield where, str(name.value)
                elif isinstance(name, ast.JoinedStr):
                    yield where, ast.unparse(name)
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id.endswith("_EVENTS") for target in node.targets
            ):
                for each in ast.walk(node.value):
                    if isinstance(each, ast.Constant):
                        yield f"{file.relative_to(SOURCE)}:{each.lineno}", str(each.value)


def _logs(function: ast.expr) -> bool:
    """True if the call's function is `log.info`, `self._log.warning` or the like, or `tell`, a level chosen earlier."""
    if isinstance(function, ast.Name):
        return function.id == "tell"
    if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
        return False
    owner = function.value
    return (isinstance(owner, ast.Name) and owner.id in {"log", "logger"}) or (
        isinstance(owner, ast.Attribute) and owner.attr in {"_log", "log"}
    )


FOUND: Final = list(events())


def test_events_are_found() -> None:
    names = {name for _, name in FOUND}
    assert {"leader.elected", "leader.deposed", "drain.started", "cycle.completed", "controller.stopped"} <= names


@pytest.mark.parametrize(("where", "name"), FOUND, ids=[f"{name} {where}" for where, name in FOUND])
def test_event_is_a_noun_and_a_verb_in_the_past(where: str, name: str) -> None:
    assert NAME.fullmatch(name), where
    verb = name.partition(".")[2]
    assert verb.endswith("ed") or verb in IRREGULAR, where


def test_each_irregular_form_is_in_use() -> None:
    assert {name.partition(".")[2] for _, name in FOUND} >= IRREGULAR
