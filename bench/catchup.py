"""After an outage of a week: every instance is 168 hours behind, and one cycle charges them all."""

from __future__ import annotations

from bench.cycle import CycleRun, Order, run_cycle
from bench.figures import Figure, Section
from bench.template import fresh_copy, make_plausible
from bench.watch import require_clean_audit
from controller.demo.server import Server


def catchup(server: Server, sizes: list[int], rounds: int, workers: int, batch_size: int) -> Section:
    """Each size in turn, on fresh copies; the warm-up is audited."""
    templates = [make_plausible(server, size, outage=True) for size in sizes]
    runs: dict[int, list[CycleRun]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for template in templates:
            with fresh_copy(server, template) as url:
                run = run_cycle(Order(url, template.as_of.isoformat(), workers, batch_size))
                if number == 0:
                    require_clean_audit(url)
                else:
                    runs[template.instances].append(run)
            print(f"  {template.instances:>9,} {run.hours:,} hours in {run.seconds:.2f} s", flush=True)
    figures: list[Figure] = []
    for size, made in runs.items():
        figures += [
            Figure(f"{size:,}: a week's backlog", "s", tuple(each.seconds for each in made)),
            Figure(f"{size:,}: hours charged", "million", tuple(each.hours / 1e6 for each in made)),
            Figure(f"{size:,}: an instance", "µs", tuple(1e6 * each.seconds / each.instances for each in made)),
            Figure(f"{size:,}: instances left with a debt", "", tuple(float(each.debts) for each in made)),
            Figure(f"{size:,}: longest transaction", "ms", tuple(1000 * max(each.transactions) for each in made)),
        ]
    return Section(
        "catchup",
        "A week's backlog",
        f"Every instance is 168 hours and more behind, one organization in twelve is short of money; {workers}"
        f" workers, batches of {batch_size:,}.",
        tuple(figures),
    )
