"""`--lanes 2`: two parallel runs of pytest, each with a share of the files, and one table at the end.

Fault tests mostly wait, so two cores can run several. The soak test runs alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.timings import Timings

ALONE: Final = "test_soak.py"
WAIT_SECONDS: Final = 4 * 3600.0


def share_out(items: Sequence[pytest.Item], lanes: int) -> list[set[Path]]:
    """Assigns whole files, heaviest first, to the lane with the least work so far; `ALONE` to the first lane."""
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += _weight(item)
    loads = [0] * lanes
    shares: list[set[Path]] = [set() for _ in range(lanes)]
    for path, weight in weights.most_common():
        lane = 0 if path.name == ALONE else loads.index(min(loads))
        loads[lane] += 0 if path.name == ALONE else weight
        shares[lane].add(path)
    return shares


def _weight(item: pytest.Item) -> int:
    """An estimate of the work in a test: its runs, or a constant for a slow test without a count."""
    parameters: dict[str, int] = getattr(getattr(item, "callspec", None), "params", {})
    return parameters.get("runs") or (5 if item.get_closest_marker("slow") else 2)


@dataclass
class Lane:
    """Another run of pytest, started by the constructor."""

    process: subprocess.Popen[bytes]
    output: Path
    timings: Path


@dataclass
class Lanes:
    """The first lane's plugin: starts the other lanes, and waits for them before the soak and at the end."""

    arguments: Sequence[str]
    count: int
    timings: Timings
    others: list[Lane] = field(default_factory=list)
    folder: Path | None = None

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Starts the other lanes before the first test."""
        if session.config.option.collectonly:
            return
        self.folder = Path(tempfile.mkdtemp(prefix="csb-lanes-"))
        for number in range(1, self.count):
            output, timings = self.folder / f"{number}.txt", self.folder / f"{number}.json"
            words = ["-m", "pytest", *self.arguments, f"--lane={number}", f"--lane-timings={timings}"]
            with output.open("wb") as written:
                process = subprocess.Popen([sys.executable, *words], stdout=written, stderr=subprocess.STDOUT)
            self.others.append(Lane(process, output, timings))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Waits for the other lanes before the soak, outside the test's time limit."""
        if item.path.name == ALONE:
            self.wait()
        return (yield)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Adds the other lanes' times and failures."""
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            for lane in self.others:
                lane.process.terminate()
        self.wait()
        for lane in self.others:
            if lane.timings.exists():
                self.timings.add(lane.timings.read_text(encoding="utf-8"))
            if lane.process.returncode not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the other lanes' output."""
        for number, lane in enumerate(self.others, start=2):
            terminalreporter.section(f"lane {number}")
            terminalreporter.write_line(lane.output.read_text(encoding="utf-8", errors="replace"))

    def pytest_unconfigure(self) -> None:
        """Ends the other lanes if they still run."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self) -> None:
        """Waits for the end of the other lanes."""
        for lane in self.others:
            lane.process.wait(WAIT_SECONDS)
