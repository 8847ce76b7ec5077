"""Every measurement, one after the other: `python -m bench.campaign`. It takes hours, and continues if interrupted.

Nothing else should run on the machine meanwhile. Each step writes its tables to bench/results as it ends.
`.cache/campaign/COMMIT` keeps the output of each step and a mark for each step that has ended. Another run of the same
commit skips the marked steps. Failover, the longest, also keeps its runs there, and continues after the last ones. For
more runs, set `--runs`, `FAULT_REPEATS` and `FAULT_MINUTES`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.machine import ROOT, commit


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        command: the command line. `{folder}` in it stands for the folder of the campaign, `{runs}` for the number of
            kills and handovers.
        environment: variables that this process's own override.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def _bench(suite: str, *options: str) -> Step:
    return Step(suite, (sys.executable, "-m", "bench", suite, "--write", *options))


MILLION: Final = "1000000"
#: Failover comes first, because it is the most sensitive to what an earlier step leaves in the caches.
STEPS: Final = (
    _bench("failover", "--runs", "{runs}", "--resume", "{folder}/failover.jsonl"),
    _bench("throughput", "--instances", "10000", "100000", MILLION),
    _bench("topup_latency"),
    _bench("catchup", "--instances", "100000", MILLION),
    _bench("idle"),
    _bench("roofline"),
    _bench("costs"),
    _bench("safeguards"),
    _bench("breakdown"),
    _bench("failing", "--instances", MILLION, "--rounds", "1"),
    Step(
        "faults",
        ("make", "faults", "FAULT_REPORT=bench/results/faults.md", "PYTEST_ARGS=--deselect tests/faults/test_soak.py"),
        {"FAULT_REPEATS": "4"},
    ),
    # 30 minutes for each of two servers
    Step("soak", ("make", "faults", "FAULT_LANES=1", "PYTEST_ARGS=-k test_soak_ends"), {"FAULT_MINUTES": "60"}),
    Step("check", (sys.executable, "-m", "bench", "check")),
    Step("mutants", ("make", "mutants")),
    Step("model", ("make", "model")),
)


def run(step: Step, folder: Path, runs: int) -> bool:
    """Runs a step unless it has ended already. Returns True if it has ended with status 0."""
    mark = folder / f"{step.name}.done"
    if mark.exists():
        print(f"{step.name}: done before", flush=True)
        return True
    began = time.monotonic()
    with (folder / f"{step.name}.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [each.replace("{folder}", str(folder)).replace("{runs}", str(runs)) for each in step.command],
            cwd=ROOT,
            env={**step.environment, **os.environ},
            stdout=log,
            stderr=log,
            check=False,
        )
    print(f"{step.name}: status {done.returncode} after {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode == 0:
        mark.touch()
    return done.returncode == 0


def main() -> int:
    """Runs every step. Returns 1 if one of them failed; the others still run."""
    parser = argparse.ArgumentParser(prog="python -m bench.campaign", description=__doc__)
    parser.add_argument("steps", nargs="*", help=f"only these: {', '.join(each.name for each in STEPS)}")
    parser.add_argument("--runs", type=int, default=500, help="kills and handovers of each kind; default: 500")
    arguments = parser.parse_args()
    wanted = arguments.steps
    if unknown := set(wanted) - {each.name for each in STEPS}:
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}")
    # the tables that it writes are not part of what it measures, so the commit stays the same
    folder = ROOT / ".cache" / "campaign" / (commit(ROOT) or "no-commit")
    folder.mkdir(parents=True, exist_ok=True)
    ended = [run(each, folder, arguments.runs) for each in STEPS if not wanted or each.name in wanted]
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
