"""No history of three replicas breaks an invariant of the executable model, with the real statements on a real server.

Further tests show that the model finds mistakes. Without the fence, with a fence that does not lock, or with a standby
that does not wait for the holder's deadline, it finds the shortest history that breaks an invariant.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from controller import sql
from controller.election import Silence
from tests.integration.leadership_model import histories, shortest

CALM: Final = settings(
    deadline=None,
    database=None,
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
FENCE: Final = sql.load()["fence"]
NO_FENCE: Final = "select %(term)s as term, pg_current_xact_id()::text as transaction_id"
#: Several times as many examples as it takes to find each of the mistakes below.
ENOUGH: Final = settings(CALM, max_examples=600, stateful_step_count=30, phases=[Phase.generate])


def test_no_history_breaks_an_invariant(database: str) -> None:
    with histories(database) as here:
        run_state_machine_as_test(here, settings=settings(CALM, max_examples=50, stateful_step_count=40))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_long_history_breaks_an_invariant(database: str) -> None:
    search = settings(CALM, derandomize=False, print_blob=True, max_examples=400, stateful_step_count=80)
    with histories(database) as here:
        run_state_machine_as_test(here, settings=search)


class Hasty(Silence):
    """Expires five seconds too early."""

    @property
    def remaining_seconds(self) -> float:
        return super().remaining_seconds - 5


@pytest.mark.usefixtures("newest_server_only")
@pytest.mark.parametrize(
    ("parts", "last_step", "most_steps"),
    [
        pytest.param({"statements": {**sql.load(), "fence": NO_FENCE}}, "a commits", 9, id="no fence"),
        pytest.param(
            {"statements": {**sql.load(), "fence": FENCE.removesuffix(" for share")}},
            "a commits",
            9,
            id="a fence that does not lock",
        ),
        pytest.param({"silence": Hasty}, "b evicts a", 6, id="an eviction before the deadline", marks=pytest.mark.slow),
    ],
)
def test_model_finds_the_history_that_breaks_an_invariant(
    database: str, parts: dict[str, Any], last_step: str, most_steps: int
) -> None:
    assert FENCE.endswith(" for share")
    with histories(database, **parts) as here:
        with pytest.raises(AssertionError):
            run_state_machine_as_test(here, settings=ENOUGH)
        found = shortest(here)
    print(*found, sep="\n")  # noqa: T201 - for people: pytest -s
    assert found[-1] == last_step
    assert len(found) <= most_steps
