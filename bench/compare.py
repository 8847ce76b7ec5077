"""Compares the throughput of this checkout with another one's: `python -m bench compare OTHER_CHECKOUT`.

Both checkouts run on one server, from the same seeded rows, with this Python. The comparison calls only their `migrate`
and `bill --json` commands, so it works across commits that share no internal name. The checkouts run in turn, and each
round reverses their order.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.machine import ROOT, commit
from bench.measurement import Aim, Measurement, Section, ratios
from bench.template import fresh_copy, seed_funded, vacuum
from controller.demo.process import clean_environment
from tests.support.servers import Server

#: This checkout may be slower by 3%.
RATIO_AIM: Final = Aim(0.97, at_least=True)


@dataclass(frozen=True)
class Checkout:
    """A folder with the project's sources, and the name of the template database that it has migrated."""

    name: str
    folder: Path
    template: str

    def run(self, url: str, *words: str, **settings: str) -> str:
        """Runs a command of this checkout and returns the output.

        Raises:
            SystemExit: the command failed. It has printed the reason.
        """
        environment = clean_environment(
            {"DATABASE_URL": url, "LOG_LEVEL": "error", "PYTHONPATH": str(self.folder), **settings}
        )
        with tempfile.TemporaryDirectory() as elsewhere:  # keeps the checkouts' own .env files out
            done = subprocess.run(
                [sys.executable, "-m", "controller", *words],
                cwd=elsewhere,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        if done.returncode != 0:
            raise SystemExit(f"{self.name}: `{' '.join(words)}` failed: {done.stdout.strip()}")
        return done.stdout

    def bill(self, server: Server, workers: int, batch_size: int) -> float:
        """Instances charged per second by one cycle on a fresh copy. Raises: SystemExit, as `run`."""
        with fresh_copy(server, self.template) as url:
            settings = {"BILLING_WORKERS": str(workers), "BILLING_BATCH_SIZE": str(batch_size)}
            settings["BILLING_TAKEOVER_DELAY_SECONDS"] = "0"
            result: dict[str, Any] = json.loads(self.run(url, "bill", "--json", **settings))
        return float(result["instances"] / result["seconds"])


def compare(
    server: Server, other: Path, instances: int, rounds: int, *, workers: list[int], batch_size: int
) -> Section:
    """Measures both checkouts with each number of workers.

    Raises:
        SystemExit: `other` is not a checkout of this project, or one of its commands failed.
    """
    if not (other / "controller" / "__main__.py").exists():
        raise SystemExit(f"{other} is not a checkout of this project: name a folder that contains controller/")
    seeded = seed_funded(server, "compare_seeded", instances)
    this = Checkout(f"this checkout ({commit(ROOT)})", ROOT, "compare_this")
    that = Checkout(f"the other ({commit(other)})", other.resolve(), "compare_other")
    for checkout in (this, that):
        url = server.create_database(checkout.template, seeded.name)
        checkout.run(url, "migrate")
        vacuum(url)
    rates: dict[tuple[Checkout, int], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for count in workers:
            for checkout in (this, that) if number % 2 else (that, this):
                rate = checkout.bill(server, count, batch_size)
                if number:
                    rates[checkout, count].append(rate)
                label = f"round {number}" if number else "warm-up"
                print(f"  {label}: {count} worker(s), {checkout.name}: {rate:,.0f} instances/s", flush=True)
    measurements: list[Measurement] = []
    for count in workers:
        name = f"{count} worker{'s' if count > 1 else ''}"
        ratio = statistics.median(rates[this, count]) / statistics.median(rates[that, count])
        measurements += [
            *(Measurement(f"{name}, {each.name}", "instances/s", tuple(rates[each, count])) for each in (this, that)),
            Measurement(f"{name}, ratio by round", "", ratios(rates[this, count], rates[that, count])),
            Measurement(f"{name}, ratio of the medians", "", (ratio,), RATIO_AIM),
        ]
    return Section(
        "compare",
        "Comparison of two checkouts",
        f"`bill` of both checkouts in turn, on copies of the same {instances:,} instances. Every wallet can pay."
        f" Batches of {batch_size:,}.",
        tuple(measurements),
    )
