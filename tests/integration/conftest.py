"""A world to bill in."""

from collections.abc import Iterator

import pytest

from tests.integration.touchy import TouchyLedger
from tests.integration.world import World
from tests.model import HOUR, NOON


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """A migrated database without rows, and what it takes to bill in it."""
    with World(database) as world:
        yield world


@pytest.fixture
def touchy(database: str) -> Iterator[World]:
    """One with touchy ledgers: four organizations, five cents each."""

    class Own(TouchyLedger):
        pass

    with World(database, Own) as world:
        plan = world.plan("7.30")
        for _ in range(4):
            world.instance(world.organization("1.00"), plan, NOON - 5 * HOUR)
        yield world
