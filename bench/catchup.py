"""The first cycle after a week's outage: every instance is 168 hours behind, and one cycle charges them all."""

from __future__ import annotations

from bench.audit import require_clean_audit
from bench.cycle import CycleRun, CycleSpec, run_cycle
from bench.measurement import Measurement, Section
from bench.template import fresh_copy, mixed_template
from tests.support.servers import Server


def catchup(server: Server, sizes: list[int], rounds: int, workers: int, batch_size: int) -> Section:
    """Measures each size in turn, on fresh copies.

    Raises:
        SystemExit: the audit of the warm-up round found a violation.
    """
    templates = [mixed_template(server, size, backlog=True) for size in sizes]
    runs: dict[int, list[CycleRun]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for template in templates:
            with fresh_copy(server, template.name) as url:
                run = run_cycle(CycleSpec(url, template.as_of.isoformat(), workers, batch_size))
                if number == 0:
                    require_clean_audit(url)
                else:
                    runs[template.instances].append(run)
            print(f"  {template.instances:>9,} {run.hours:,} hours in {run.seconds:.2f} s", flush=True)
    measurements: list[Measurement] = []
    for size, made in runs.items():
        microseconds = tuple(1e6 * each.seconds / each.instances for each in made)
        transactions = tuple(1000 * max(each.transactions) for each in made)
        measurements += [
            Measurement(f"{size:,}: cycle", "s", tuple(each.seconds for each in made)),
            Measurement(f"{size:,}: hours charged", "million", tuple(each.hours / 1e6 for each in made)),
            Measurement(f"{size:,}: time per instance", "µs", microseconds),
            Measurement(f"{size:,}: instances left with a debt", "", tuple(float(each.debts) for each in made)),
            Measurement(f"{size:,}: longest transaction", "ms", transactions),
        ]
    return Section(
        "catchup",
        "A week's backlog",
        f"Every instance is at least 168 hours behind, and one organization in twelve is short of money. {workers}"
        f" workers, batches of {batch_size:,}.",
        tuple(measurements),
    )
