"""Fixtures: a database to bill, and a leader for it."""

from collections.abc import Iterator

import pytest

from tests.integration.touchy import TouchyLedger
from tests.integration.world import World
from tests.model import HOUR, NOON


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """A migrated database without rows, and a leader that can bill it."""
    with World(database) as world:
        yield world


@pytest.fixture
def touchy(database: str) -> Iterator[World]:
    """A world with touchy ledgers, and four organizations that each owe five cents."""

    class Own(TouchyLedger):
        pass

    with World(database, Own) as world:
        plan = world.plan("7.30")
        for _ in range(4):
            world.instance(world.organization("1.00"), plan, NOON - 5 * HOUR)
        yield world
