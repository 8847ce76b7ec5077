"""A replica's wall clock jumps. Nothing changes: the controller uses the database's clock and monotonic clocks only."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import pytest

from controller.demo.process import LogLine
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, LOW_BOUNDS, StartReplica, count_for
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually

SOURCE: Final = Path(__file__).with_name("wall_clock.c")
HOUR: Final = timedelta(hours=1)
NEXT_CYCLE_SECONDS: Final = 1.0
KILLED_SECONDS: Final = 2.0


@dataclass(frozen=True)
class WallClock:
    """The wall clock of the processes that are started with its settings."""

    settings: dict[str, str]
    file: Path

    def jump(self, shift: timedelta) -> None:
        """Sets the clock of all these processes to the true time plus the shift, at once."""
        with self.file.open("r+b", buffering=0) as shown:
            shown.write(struct.pack("l", int(shift.total_seconds())))


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip(
            "shifting one process's wall clock needs Linux and a C compiler, because a preloaded library does it"
        )
    library, file = tmp_path / "wall_clock.so", tmp_path / "shift"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True)
    file.write_bytes(struct.pack("l", 0))
    return WallClock({"LD_PRELOAD": str(library), "WALL_CLOCK_SHIFT": str(file)}, file)


@pytest.mark.runs(20, short=2, older=2)
def test_leader_whose_clock_jumps_an_hour_leads_and_bills_as_before(
    *, wall_clock: WallClock, database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(database, **BUSY, **LOW_BOUNDS, **wall_clock.settings)
    last = leader.wait_for("cycle.completed")
    standby = start(database, **BUSY, **LOW_BOUNDS)
    wait_until_standing_by(ledger, standby)
    for shift in islice(cycle([HOUR, -HOUR]), runs):
        wall_clock.jump(shift)
        last = leader.wait_until(lambda line: abs(_lead_over_us(line) - shift) < HOUR / 2, "the jump", last)  # noqa: B023
        since = datetime.now(UTC)
        ledger.add_between_cycles(3)
        eventually(lambda: ledger.all_billed, "the next cycle bills it")
        seconds = seconds_to_next_charge(ledger, since)
        timings.record("clock jumps an hour: the leader's", seconds, ledger.judge(), bound=NEXT_CYCLE_SECONDS)
    assert not leader.events("leader.deposed", "cycle.failed")
    assert not standby.events("leader.elected")


@pytest.mark.runs(6)
def test_standby_whose_clock_jumps_neither_takes_over_early_nor_late(
    *, wall_clock: WallClock, database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(database, **BUSY, **wall_clock.settings)
    leader.wait_for("cycle.completed")
    for shift in islice(cycle([HOUR, -HOUR]), runs):
        standby = start(database, **BUSY, **wall_clock.settings)
        wait_until_standing_by(ledger, standby)
        wall_clock.jump(shift)
        assert count_for(standby, 0.3, "leader.elected", "leader.evicted") == 0
        killed_at = leader.kill()
        standby.wait_for("cycle.completed")
        seconds = seconds_to_next_term(ledger, killed_at)
        timings.record("clock jumps an hour: all, and the leader killed", seconds, ledger.judge(), bound=KILLED_SECONDS)
        leader = standby


def _lead_over_us(line: LogLine) -> timedelta:
    """About how far the clock of the line's writer is ahead of this process's."""
    return datetime.fromisoformat(line["time"]) - datetime.now(UTC)
