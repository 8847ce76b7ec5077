"""Metrics for Prometheus, in a registry of their own. docs/metrics.md has the table of them.

What the process did is counted here; what the database knows is asked for at the moment of a scrape, and is absent
when the database does not answer, rather than old. No label takes a value from outside: their number is fixed.
"""

import platform
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.billing.status import Status
from controller.billing.values import CycleResult, Outcome
from controller.lifecycle.drain import DrainOutcome

PREFIX: Final = "containerstacks_billing_"
#: Seconds; from an idle cycle of some instances to ten minutes of a backlog.
CYCLE_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All of them. Counting is safe from any thread and never fails.

    Args:
        version: the controller's.
        lock_name: the lock whose leadership is shown.
        leads: whether this replica may believe that it leads, now.
        read: what the database says; None when it can't be read. Bounded in time; called once a scrape.
    """

    def __init__(
        self,
        version: str,
        lock_name: str,
        leads: Callable[[], bool],
        read: Callable[[], Status | None],
    ) -> None:
        # a series more for each counter; process_start_time_seconds tells the same
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library's
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info(f"{PREFIX}build", "The controller's version and its Python's.", registry=registry).info(
            {"version": version, "python": platform.python_version()}
        )
        self._cycles = Counter(
            f"{PREFIX}cycles",
            "Cycles of this replica, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}cycle_duration_seconds",
            "How long this replica's completed cycles took.",
            buckets=CYCLE_BUCKETS,
            registry=registry,
        )
        self._instances = Counter(
            f"{PREFIX}instances_billed",
            "Instances that this replica's cycles have charged, once a cycle each.",
            registry=registry,
        )
        self._hours = Counter(f"{PREFIX}hours_billed", "Hours that they were charged for.", registry=registry)
        self._amount = Counter(
            f"{PREFIX}amount_billed", "What they were charged, in the currency of the wallets.", registry=registry
        )
        self._fenced = Counter(
            f"{PREFIX}fenced_writes",
            "Transactions of this replica that the database refused, since another led.",
            registry=registry,
        )
        self._evictions = Counter(
            f"{PREFIX}evictions",
            "Silent leaders whose lock session this replica has ended, standing by.",
            registry=registry,
        )
        self._drains = Counter(f"{PREFIX}drains", "Drains of this replica.", ["outcome"], registry=registry)
        for outcome in Outcome:
            self._cycles.labels(outcome=outcome.value)
        for drain_outcome in DrainOutcome:
            self._drains.labels(outcome=drain_outcome.value)
        registry.register(_AtScrape(lock_name, leads, read))

    def cycle_ended(self, result: CycleResult) -> None:
        """Counts a cycle and what it has committed, however it ended."""
        self._cycles.labels(outcome=result.outcome.value).inc()
        if result.outcome is Outcome.COMPLETED:
            self._seconds.observe(result.seconds)
        self._instances.inc(result.totals.instances)
        self._hours.inc(result.totals.hours)
        self._amount.inc(max(float(result.totals.amount), 0.0))

    def write_fenced(self) -> None:
        """Counts a transaction that the fence refused."""
        self._fenced.inc()

    def leader_evicted(self) -> None:
        """Counts the end of a silent leader's session."""
        self._evictions.inc()

    def drain_ended(self, outcome: DrainOutcome) -> None:
        """Counts a drain."""
        self._drains.labels(outcome=outcome.value).inc()

    def render(self) -> bytes:
        """The exposition, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _AtScrape(Collector):
    """What is looked up rather than counted."""

    def __init__(
        self,
        lock_name: str,
        leads: Callable[[], bool],
        read: Callable[[], Status | None],
    ) -> None:
        self._lock_name = lock_name
        self._leads = leads
        self._read = read

    def collect(self) -> Iterator[Metric]:
        leading = GaugeMetricFamily(
            "leader_election_master_status", "1: this replica leads; 0: it does not.", labels=["name"]
        )
        leading.add_metric([self._lock_name], float(self._leads()))
        yield leading
        facts = self._read()
        yield _gauge("database_up", "1: this replica could read the database just now; 0: it could not.", bool(facts))
        if facts is None:
            return
        yield _gauge("term", "The newest term, whoever leads.", facts.term)
        yield _gauge("debts", "Instances with an open debt.", facts.debts)
        yield _gauge("failures", "Instances not charged for another reason, and not since.", facts.failures)
        yield _gauge("suspended_organizations", "Organizations excluded from billing.", facts.suspended)
        if facts.heartbeat_age_seconds is not None:
            yield _gauge(
                "heartbeat_age_seconds", "Age of the newest heartbeat, whoever's.", facts.heartbeat_age_seconds
            )
        if facts.last_completed_at is not None:
            yield _gauge(
                "last_cycle_timestamp_seconds",
                "When the newest completed cycle began, whoever's, by the database's clock.",
                facts.last_completed_at.timestamp(),
            )


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, meaning, value=float(value))
