"""Checks the Promela models of the election, exhaustively: `make model`. Needs spin and a C compiler.

The models must hold. Each mutant leaves out one rule and must break a claim; the program prints how many steps the
counterexample has. A search that can't be completed proves nothing, so it counts as a failure.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
#: Of one search.
MEMORY_MB: Final = 3500
SECONDS: Final = 300
#: Of all searches together.
TOTAL_SECONDS: Final = 120
DEPTH: Final = 100_000

SAFETY: Final = ("-DSAFETY", "-DCOLLAPSE")
#: Breadth first, so that the counterexample is a shortest one.
SHORTEST: Final = ("-DSAFETY", "-DBFS")
LIVENESS: Final = ("-DNFAIR=4", "-DCOLLAPSE")


@dataclass(frozen=True)
class Search:
    """One exhaustive search.

    Attributes:
        model: name of the file.
        claim: what is checked, in words; for a mutant, the rule that is left out.
        mutant: name of the #ifdef, or None for the model itself.
        formula: name of the liveness formula, or None for the assertions.
    """

    model: str
    claim: str
    mutant: str | None = None
    formula: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a search. `steps` is the length of the counterexample, or None if no claim is broken."""

    complete: bool
    steps: int | None
    states: int
    seconds: float


MODELS: Final = (
    Search("fence", "no late commit, none twice, none lost; a drain keeps the lock"),
    Search("fence", "a free lock is taken", formula="taken"),
    Search("fence", "batches don't starve a mint", formula="minted"),
    Search("bounds", "no believing leader is evicted; a silent one is replaced in time"),
)
MUTANTS: Final = (
    Search("fence", "the fence is gone", "FENCE_GONE"),
    Search("fence", "the fence doesn't compare the holder", "HOLDER_NOT_COMPARED"),
    Search("fence", "the fence doesn't lock its row `for share`", "FOR_SHARE_DROPPED"),
    Search("fence", "a mint doesn't wait for batches in flight", "MINT_DOES_NOT_WAIT"),
    Search("fence", "batches don't queue behind a mint", "MINT_WITHOUT_THE_QUEUE", "minted"),
    Search("fence", "a replica that lost its session never contends again", "NEVER_CONTENDS_AGAIN", "taken"),
    Search("fence", "a leader resigns before its last commit", "RESIGNS_BEFORE_THE_COMMIT"),
    Search("fence", "a resignation unlocks once, and keeps the session", "UNLOCKS_ONCE"),
    Search("fence", "a batch whose answer is lost is charged again", "REPLAYS_AFTER_A_LOST_ANSWER"),
    Search("bounds", "the deadline counts from after the ping", "DEADLINE_FROM_AFTER_THE_PING"),
    Search("bounds", "the first deadline counts from the grant", "FIRST_DEADLINE_FROM_THE_GRANT"),
    Search("bounds", "a standby counts less than the deadline", "STANDBY_COUNTS_LESS_THAN_THE_DEADLINE"),
    Search("bounds", "a standby counts from before its wait", "SILENCE_FROM_BEFORE_THE_WAIT"),
    Search("bounds", "a standby evicts without the match", "EVICTS_WITHOUT_THE_MATCH"),
    Search("bounds", "a wait outlasts the holder's silence", "WAIT_OUTLASTS_THE_SILENCE"),
    Search("bounds", "the text of a wait states no deadline", "WAIT_STATES_NO_DEADLINE"),
    Search("bounds", "the server's timeout is before the deadline", "SERVER_TIMEOUT_BEFORE_THE_DEADLINE"),
)


def why_skipped() -> str | None:
    """Returns why nothing can be checked here, or None."""
    if shutil.which("spin") is None:
        return "spin is not installed: apt-get install spin"
    if shutil.which("cc") is None:
        return "there is no C compiler: apt-get install gcc"
    return None


def run(search: Search) -> Outcome:
    """Generates, compiles and runs a verifier."""
    began = time.monotonic()
    defines = [f"-D{search.mutant}"] if search.mutant else []
    options = ["-a", "-f", "-N", search.formula] if search.formula else []
    if search.formula:
        defines.append("-DLIVENESS")
        compiled = LIVENESS
    else:
        compiled = SHORTEST if search.mutant else SAFETY
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        shutil.copy(FOLDER / f"{search.model}.pml", folder)
        for command in (
            ["spin", *defines, "-a", f"{search.model}.pml"],
            ["cc", "-O2", "-w", *compiled, f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c"],
        ):
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        report = subprocess.run(
            ["./pan", f"-m{DEPTH}", *options], cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS
        ).stdout
    return parse(report, time.monotonic() - began)


def parse(report: str, seconds: float) -> Outcome:
    """Reads the verifier's report."""
    found = re.search(r"depth reached (\d+), errors: (\d+)", report)
    states = re.search(r"(\d+) states, stored", report)
    cycle = re.search(r"acceptance cycle \(at depth (\d+)\)|assertion violated .*\(at depth (\d+)\)", report)
    if found is None or states is None or (int(found[2]) and cycle is None):
        return Outcome(complete=False, steps=None, states=0, seconds=seconds)
    incomplete = "Search not completed" in report and not int(found[2])
    truncated = "max search depth too small" in report or "memory limit" in report
    steps = int(next(filter(None, cycle.groups()))) if cycle and int(found[2]) else None
    return Outcome(not (incomplete or truncated), steps, int(states[1]), seconds)


def main() -> int:
    """Returns 1 if a model breaks a claim, or a mutant doesn't."""
    if (reason := why_skipped()) is not None:
        sys.stdout.write(f"skipped: {reason}\n")
        return 0
    failed, began = 0, time.monotonic()
    for search in (*MODELS, *MUTANTS):
        outcome = run(search)
        right = outcome.complete and (outcome.steps is None) == (search.mutant is None)
        failed += not right
        verdict = "holds" if outcome.steps is None else f"broken in {outcome.steps} steps"
        if search.mutant and outcome.steps is not None:
            verdict = f"caught in {outcome.steps} steps"
        name = search.claim if search.mutant is None else f"mutant: {search.claim}"
        told = verdict if right else f"FAILED: {verdict if outcome.complete else 'the search was not completed'}"
        sys.stdout.write(f"{search.model:7} {name:68} {told:22} {outcome.states:>9,} states {outcome.seconds:5.1f} s\n")
        sys.stdout.flush()
    seconds = time.monotonic() - began
    sys.stdout.write(f"{seconds:.0f} s, at most {TOTAL_SECONDS} s\n")
    return 1 if failed or seconds > TOTAL_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
