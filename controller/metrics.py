"""Metrics for Prometheus, in a registry separate from the global one. docs/metrics.md lists them.

Counters count what this process did. Gauges about the database are read at each scrape; if the database does not
answer, they are absent rather than outdated. No label takes a value from outside, so the number of series is fixed.
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
from controller.billing.values import CycleResult, Outcome, Totals
from controller.lifecycle.drain import DrainOutcome

PREFIX: Final = "containerstacks_billing_"
#: Buckets in seconds, from a cycle with little to do to a backlog that takes ten minutes.
CYCLE_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one replica. Any thread may count; counting never fails.

    Args:
        version: the controller's version.
        lock_name: a label of the leadership gauge.
        leads: returns True while this replica may believe that it leads.
        read: returns the status, in bounded time, or None if the database can't be read. Called once per scrape.
    """

    def __init__(
        self,
        version: str,
        lock_name: str,
        leads: Callable[[], bool],
        read: Callable[[], Status | None],
    ) -> None:
        # `_created` doubles the number of counters, and process_start_time_seconds says the same
        disable_created_metrics()  # type: ignore[no-untyped-call] # prometheus_client has no type here
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info(f"{PREFIX}build", "The controller's version and its Python's.", registry=registry).info(
            {"version": version, "python": platform.python_version()}
        )
        self._cycles = Counter(
            f"{PREFIX}cycles",
            "Cycles of this replica, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}cycle_duration_seconds",
            "Duration of this replica's completed cycles.",
            buckets=CYCLE_BUCKETS,
            registry=registry,
        )
        self._instances = Counter(
            f"{PREFIX}instances_billed",
            "Instances charged by this replica, counted once per cycle.",
            registry=registry,
        )
        self._hours = Counter(f"{PREFIX}hours_billed", "Instance-hours charged by this replica.", registry=registry)
        self._amount = Counter(
            f"{PREFIX}amount_billed", "Amount charged by this replica, in the wallets' currency.", registry=registry
        )
        self._fenced = Counter(
            f"{PREFIX}fenced_writes",
            "Transactions of this replica that the fence refused, because another replica led.",
            registry=registry,
        )
        self._evictions = Counter(
            f"{PREFIX}evictions",
            "Silent leaders whose lock session this replica ended as a standby.",
            registry=registry,
        )
        self._drains = Counter(f"{PREFIX}drains", "Drains of this replica, by outcome.", ["outcome"], registry=registry)
        for outcome in Outcome:
            self._cycles.labels(outcome=outcome.value)
        for drain_outcome in DrainOutcome:
            self._drains.labels(outcome=drain_outcome.value)
        registry.register(_AtScrape(lock_name, leads, read))

    def cycle_ended(self, result: CycleResult) -> None:
        """Counts a cycle, regardless of its outcome, and everything that it committed."""
        self._cycles.labels(outcome=result.outcome.value).inc()
        if result.outcome in {Outcome.COMPLETED, Outcome.COMPLETED_WITH_FAILURES}:
            self._seconds.observe(result.seconds)
        self._charged(result.totals)

    def collected(self, totals: Totals) -> None:
        """Counts what a collection has charged. A collection doesn't count as a cycle."""
        self._charged(totals)

    def _charged(self, totals: Totals) -> None:
        self._instances.inc(totals.instances)
        self._hours.inc(totals.hours)
        self._amount.inc(max(float(totals.amount), 0.0))

    def write_fenced(self) -> None:
        """Counts a transaction that the fence refused."""
        self._fenced.inc()

    def leader_evicted(self) -> None:
        """Counts a silent leader whose session this replica ended."""
        self._evictions.inc()

    def drain_ended(self, outcome: DrainOutcome) -> None:
        """Counts a drain by its outcome."""
        self._drains.labels(outcome=outcome.value).inc()

    def render(self) -> bytes:
        """Returns the metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _AtScrape(Collector):
    """Gauges that are read at each scrape."""

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
            "leader_election_master_status", "1 while this replica leads, else 0.", labels=["name"]
        )
        leading.add_metric([self._lock_name], float(self._leads()))
        yield leading
        status = self._read()
        yield _gauge("database_up", "1 if this replica could read the database for this scrape, else 0.", bool(status))
        if status is None:
            return
        yield _gauge("term", "The newest term of any replica.", status.term)
        yield _gauge("debts", "Instances with a debt.", status.debts)
        yield _gauge("owed_amount", "Sum of all debts, in the wallets' currency.", float(status.owed))
        yield _gauge(
            "failures", "Instances that can't be charged for a reason other than the balance.", status.failures
        )
        yield _gauge("suspended_organizations", "Organizations that the guard has suspended.", status.suspended)
        yield _gauge(
            "backlogs",
            "Instances that are not charged until an operator accepts or waives their hours.",
            status.backlogs,
        )
        yield _gauge(
            "differing_wallets",
            "Wallets that differ from their transactions because another program changed them.",
            status.differing_wallets,
        )
        yield _gauge(
            "wallet_difference_amount", "Sum of these differences, each without its sign.", float(status.difference)
        )
        kinds = {notice.kind for notice in status.notices}
        others = GaugeMetricFamily(
            f"{PREFIX}other_biller", "1 if another program seems to bill, else 0, by kind of evidence.", labels=["kind"]
        )
        for kind in ("daemon", "periods"):
            others.add_metric([kind], float(f"other_{kind}" in kinds))
        yield others
        yield _gauge("halted", "1 while billing is halted, else 0.", any(notice.halts for notice in status.notices))
        yield _gauge("paused_seconds", "Time since an operator paused billing; 0 if it is not paused.", _paused(status))
        yield _gauge("failing_cycles", "How many of the newest cycles in a row have failed.", status.failing_cycles)
        yield _gauge("cut_short_cycles", "Cycles that a drain cut short within the last hour.", status.cut_short_cycles)
        if status.charged_instances is not None:
            yield _gauge(
                "charged_instances",
                "Instances charged in the hour, or interval, before the start of the newest successful cycle.",
                status.charged_instances,
            )
        if status.heartbeat_age_seconds is not None:
            yield _gauge("heartbeat_age_seconds", "Age of the newest heartbeat.", status.heartbeat_age_seconds)
        if status.last_completed_at is not None:
            yield _gauge(
                "last_cycle_timestamp_seconds",
                "Start of the newest completed cycle, by the database's clock.",
                status.last_completed_at.timestamp(),
            )


def _paused(status: Status) -> float:
    paused = (status.database_time - notice.since for notice in status.notices if notice.kind == "paused")
    return max((each.total_seconds() for each in paused), default=0.0)


def _gauge(name: str, description: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, description, value=float(value))
