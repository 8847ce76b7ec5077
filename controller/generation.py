"""Generations: numbers that identify the billing rules that a database follows, and those that this program follows.

Programs of one generation run side by side. A migration that changes the rules raises the generation in the database
and mints a term in the same transaction. From then on, a program of another generation can't mint a term or pass the
fence.
"""

from collections.abc import Mapping
from typing import Any, Final

from controller import __version__, sql
from controller.errors import BillingError

#: The rules that this program follows.
GENERATION: Final = 3


class GenerationError(BillingError):
    """The database follows the rules of another generation. Only another version of this program can bill on it."""


def refuse_other_generation(connection: sql.Connection) -> None:
    """Raises GenerationError unless this program follows the database's rules.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    refuse_generation_of(sql.row(connection, "current_term"))


def refuse_generation_of(leadership: Mapping[str, Any]) -> None:
    """Raises GenerationError unless this program follows the rules of a row of `billing_leadership`."""
    generation = leadership["generation"]
    if generation == GENERATION:
        return
    remedy = f"use containerstacks-billing {leadership['needs_version']} or newer"
    if generation < GENERATION:
        remedy = "run `containerstacks-billing migrate` with this version"
    raise GenerationError(
        f"this database follows the billing rules of generation {generation}, this program ({__version__}) those of"
        f" generation {GENERATION}: {remedy}"
    )
