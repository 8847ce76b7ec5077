"""Databases to bill in."""

from collections.abc import Iterator

import pytest

from tests.integration.scripted_ledger import ScriptedLedger
from tests.integration.world import World
from tests.model import HOUR, NOON


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """A migrated database without rows, and what a test needs to bill in it."""
    with World(database) as world:
        yield world


@pytest.fixture
def scripted_world(database: str) -> Iterator[World]:
    """Four organizations that owe five cents each, billed by scripted ledgers."""

    class Script(ScriptedLedger):
        pass

    with World(database, Script) as world:
        plan = world.plan("7.30")
        for _ in range(4):
            world.instance(world.organization("1.00"), plan, NOON - 5 * HOUR)
        yield world


@pytest.fixture
def owing(world: World) -> World:
    """A world with four organizations that owe five hours each."""
    plan = world.plan("7.30")
    for _ in range(4):
        world.instance(world.organization("100.00"), plan, world.one("select now() - interval '5.5 hours'"))
    return world
