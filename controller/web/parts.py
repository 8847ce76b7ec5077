"""Parts that the public page and the operator's page share. They show only the data that the caller passes."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from controller.billing.status import Status
from controller.billing.verdict import FALLBACK_SECONDS, HEARTBEAT_LATE_SECONDS, Level, verdict
from controller.web.health import Vitals
from controller.web.layout import Column, Row, card, cards, facts, moment, plain, table
from controller.web.markup import Child, Markup, tag
from controller.web.wsgi import Identity
from controller.wording import duration, next_cycle, time

OUTCOME_TONES: Final = {
    "completed": "good",
    "completed_with_failures": "bad",
    "failed": "bad",
    "running": "wait",
    "stopped": "wait",
    "abandoned": "bad",
}
_VERDICT_TONES: Final = {Level.OK: "good", Level.ATTENTION: "wait", Level.DOWN: "bad"}
_NEXT_CYCLE_TONES: Final = {"leader": "bad", "halted": "bad", "running": "wait", "takeover": "wait", "nothing": "wait"}


def verdict_panel(status: Status) -> Markup:
    """Returns the panel on top of a page: the level with its first reason, the other reasons, and who leads."""
    judged = verdict(status)
    first, *others = judged.reasons
    title = tag("h1", tag("span", judged.level.upper(), class_="level"), f": {first}")
    more = tag("ul", (tag("li", each) for each in others)) if others else None
    return tag("div", title, more, _who_leads(status), class_=f"verdict {_VERDICT_TONES[judged.level]}")


def _who_leads(status: Status) -> Markup | None:
    if status.leader is None or status.leading_since is None:
        return None
    count = len(status.standbys)
    standbys = f"{count} standby{'' if count == 1 else 's'}" if count else "no standby"
    since = duration((status.database_time - status.leading_since).total_seconds())
    return tag("p", tag("strong", status.leader), f" leads in term {status.term} for {since}, with {standbys}.")


def away_panel(error: str | None, failed_checks: Sequence[str], age_seconds: float | None) -> Markup:
    """Returns the panel of a page without a database. It gives the error once.

    Args:
        error: why the database can't be read.
        failed_checks: why this replica is not live or not ready.
        age_seconds: the age of the facts below the panel; None if there are none.
    """
    repeated = error is not None and any(error in each for each in failed_checks)
    known = (
        None if age_seconds is None else f"The facts below were read {duration(age_seconds)} ago and may have changed."
    )
    return tag(
        "div",
        tag("h1", tag("span", "DOWN", class_="level"), ": the database can't be read"),
        None if repeated else tag("p", error),
        (tag("p", f"This replica: {each}") for each in failed_checks),
        tag("p", tag("strong", known)) if known else None,
        class_="verdict bad",
    )


def top_panels(status: Status | None, error: str | None, failed_checks: Sequence[str], age: float | None) -> Child:
    """Returns the panels on top of a page: the verdict, or why there is none, and what is wrong with this replica.

    Args:
        status: None if the database can't be read.
        error: why the database can't be read.
        failed_checks: why this replica is not live or not ready.
        age: seconds since the last known facts were read; None if there are none.
    """
    if status is None:
        return away_panel(error, failed_checks, age)
    lines = [tag("p", f"This replica: {each}") for each in failed_checks]
    return [verdict_panel(status), tag("div", lines, class_="verdict wait") if lines else None]


def status_cards(status: Status, identity: Identity) -> Markup:
    """Returns the cards of the status, without a customer's data."""
    age = status.heartbeat_age_seconds
    cycle = next_cycle(status)
    shown = [card("Next cycle", cycle.when, cycle.detail, _NEXT_CYCLE_TONES.get(status.waiting_for, "good"))]
    run = status.last_run
    if run is not None:
        charged = f"{run['amount']} {identity.currency} for {run['instances']} instances"
        outcome = str(run["outcome"])
        shown.append(card("Last cycle", plain(outcome), charged, OUTCOME_TONES.get(outcome, "")))
    left = FALLBACK_SECONDS - (age or 0)
    shown += [
        card(
            "Heartbeat",
            "none yet" if age is None else f"{duration(age)} ago",
            f"the application bills in {duration(left)} without another" if left > 0 else "the application bills now",
            "bad" if age is None or age > HEARTBEAT_LATE_SECONDS else "good",
        ),
        card("Debts", f"{status.owed} {identity.currency}", f"owed by {status.debts} instances", ""),
        card("Failures", f"{status.failures}", "instances that can't be charged", "bad" if status.failures else "good"),
        card(
            "Suspended",
            f"{status.suspended}",
            "organizations excluded from billing",
            "wait" if status.suspended else "good",
        ),
    ]
    return cards(shown)


def replica_table(status: Status, identity: Identity) -> Markup:
    """Returns the replicas: the leader first, and which one serves this page."""
    columns = (Column("Role", short=True), Column("Replica"), Column("Since (UTC)", short=True))
    rows = []
    for each in status.replicas:
        since = datetime.fromisoformat(each["since"]) if each["since"] else None
        name = f"{each['instance_id']}{' (this page)' if each['instance_id'] == identity.instance else ''}"
        rows.append(Row((each["role"], name, moment(since) if since else "")))
    if status.leader is None:
        rows.insert(0, Row((tag("span", "no leader", class_="bad"), "no customers are being billed", "")))
    if not status.standbys:
        rows.append(Row((tag("span", "no standby", class_="wait"), "no replica can take over", "")))
    return table(f"Lock {identity.lock}, term {status.term}", columns, rows)


def this_replica(identity: Identity, vitals: Vitals, failed_checks: Sequence[str]) -> Markup:
    """Returns what this replica knows about itself."""
    role = f"{vitals.role}, term {vitals.term}" if vitals.term is not None else str(vitals.role)
    return facts(
        "The replica that serves this page",
        [
            ("Replica", identity.instance),
            ("Role", role),
            ("Health", "draining" if vitals.draining else "not ready" if failed_checks else "ready"),
            ("Version", identity.version),
            ("Pod", identity.pod),
            ("Node", identity.node),
        ],
    )


def run_table(runs: Sequence[Mapping[str, Any]], currency: str) -> Markup:
    """Returns the newest runs. An error gets a line below its run, so that the table fits the page."""
    if not runs:
        return tag("p", "No cycle has run yet.", class_="soft")
    columns = (
        Column("Run", number=True),
        Column("Started (UTC)", short=True),
        Column("Outcome"),
        Column("Leader"),
        Column("Term", number=True),
        Column("Seconds", number=True),
        Column("Instances", number=True),
        Column("Hours", number=True),
        Column(f"Amount ({currency})", number=True),
        Column("Debts", number=True),
        Column("Failures", number=True),
    )
    return table("Newest first", columns, (_run(run) for run in runs))


def _run(run: Mapping[str, Any]) -> Row:
    started, finished = run["started_at"], run["finished_at"]
    outcome = str(run["outcome"])
    collection = " (collection)" if run.get("kind") == "collection" else ""
    reasons = ", ".join(f"{reason} {count}" for reason, count in (run.get("failures_by_reason") or {}).items())
    details = "; ".join(each for each in (reasons, run.get("error")) if each)
    return Row(
        (
            run["id"],
            moment(started),
            tag("span", f"{plain(outcome)}{collection}", class_=OUTCOME_TONES.get(outcome)),
            tag("small", run["holder"]),
            run["term"],
            f"{(finished - started).total_seconds():.1f}" if finished else "",
            run["instances"],
            run["hours"],
            f"{run['amount']:,.2f}",
            run["debts"],
            run["failures"],
        ),
        tag("small", details) if details else None,
    )


def as_of(status: Status | None) -> Child:
    """Says when the facts were read, by the database's clock."""
    return tag("p", f"As of {time(status.database_time)}, by the database's clock.") if status else None


def tab_title(status: Status | None) -> str:
    """Returns the title of the browser's tab, which shows the verdict without opening it."""
    return "DOWN: no database · billing" if status is None else f"{verdict(status).level.upper()} · billing"
