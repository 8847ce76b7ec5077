"""A world to bill in."""

from collections.abc import Iterator

import pytest

from tests.integration.world import World


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """A migrated database without rows, and what it takes to bill in it."""
    with World(database) as world:
        yield world
