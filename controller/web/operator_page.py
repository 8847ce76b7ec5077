"""The operator's page: whether customers are being billed, and who is not. It names customers."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from controller.billing.answers import REMEDIES
from controller.billing.page_facts import OperatorFacts
from controller.web.chart import day_chart
from controller.web.health import Vitals
from controller.web.layout import Column, Row, moment, page, plain, section, table
from controller.web.markup import Child, Markup, tag
from controller.web.parts import (
    as_of,
    replica_table,
    run_table,
    status_cards,
    tab_title,
    this_replica,
    top_panels,
)
from controller.web.status_cache import Snapshot
from controller.web.wsgi import Identity

#: Reasons of open rows that the list of suspended organizations covers.
SUSPENDED: Final = {"audit_violation", "suspended"}
DEBT: Final = "insufficient_balance"


def render(
    identity: Identity,
    vitals: Vitals,
    failed_checks: Sequence[str],
    snapshot: Snapshot[OperatorFacts],
    *,
    refresh_seconds: int | None,
) -> str:
    """Returns the operator's overview as HTML.

    Args:
        identity: this replica's identity.
        vitals: this replica's vitals.
        failed_checks: why this replica is not live or not ready.
        snapshot: the operator's facts.
        refresh_seconds: how often the page reloads; None if it doesn't.
    """
    known = snapshot.last_known
    status = snapshot.facts.status if snapshot.facts is not None else None
    age = snapshot.age_seconds if known is not None else None
    main: list[Child] = [top_panels(status, snapshot.error, failed_checks, age)]
    if known is not None:
        main.append(tag("div", _known(known, identity), class_=None if status else "stale"))
    main.append(section("This replica", this_replica(identity, vitals, failed_checks)))
    foot = [as_of(known.status if known else None), _refresh(refresh_seconds)]
    return page(tab_title(status), search(), main, foot)


def search(name: str = "") -> Markup:
    """Returns the form that explains an organization or an instance."""
    return tag(
        "form",
        tag("label", "Explain", for_="name"),
        tag(
            "input",
            id="name",
            name="name",
            type="search",
            value=name,
            required="",
            placeholder="organization or instance: id, slug, label",
            autocomplete="off",
        ),
        tag("button", "Find", type="submit"),
        action="/explain",
        method="get",
        role="search",
    )


def organization_link(row: dict[str, Any]) -> Child:
    """Returns an organization's name, linked to its explanation."""
    name = row["organization"] or row["slug"] or str(row["organization_id"])
    return tag("a", name, href=f"/explain/{row['organization_id']}")


def _known(facts: OperatorFacts, identity: Identity) -> list[Child]:
    status = facts.status
    failures = [row for row in facts.uncharged if row["reason"] not in {DEBT, *SUSPENDED}]
    debts = [row for row in facts.uncharged if row["reason"] == DEBT]
    chart = day_chart(facts.day, status.database_time, status.interval_minutes, identity.currency)
    left = [section("Failures", _failures(failures))]
    if facts.suspensions:
        left.append(section("Suspended", _suspensions(facts.suspensions)))
    lists = [tag("div", left), tag("div", section("Debts", _debts(debts, identity.currency)))]
    return [
        status_cards(status, identity),
        section("Cycles of the last 24 hours", chart),
        tag("div", lists, class_="columns"),
        section("Replicas", replica_table(status, identity)),
        section("Newest runs", run_table(facts.runs, identity.currency)),
    ]


def _failures(rows: Sequence[dict[str, Any]]) -> Child:
    if not rows:
        return tag("p", "Every instance can be charged.", class_="good")
    parts: list[Child] = []
    columns = (Column("Organization"), Column("Instances", number=True), Column("Since (UTC)", short=True))
    for reason, group in groupby(rows, key=lambda row: row["reason"]):
        listed = list(group)
        first = listed[0]
        instances = _counted(first["all_instances"], "instance")
        parts += [
            tag("h3", plain(reason or "unknown"), tag("small", f" · {instances}")),
            tag("p", plain(REMEDIES.get(reason, "see docs/money.md")), class_="soft"),
            table(
                _caption(listed),
                columns,
                (
                    Row(
                        (organization_link(row), row["instances"], moment(row["since"])),
                        tag("small", row["error"]) if row["error"] else None,
                    )
                    for row in listed
                ),
            ),
        ]
    return parts


def _debts(rows: Sequence[dict[str, Any]], currency: str) -> Child:
    if not rows:
        return tag("p", "No organization owes anything.", class_="good")
    columns = (
        Column("Organization"),
        Column("Instances", number=True),
        Column(f"Owed ({currency})", number=True),
        Column("Since (UTC)", short=True),
    )
    first = rows[0]
    total = f"{first['all_owed']:,.2f} {currency} by {_counted(first['all_instances'], 'instance')}"
    return [
        tag("h3", plain(DEBT), tag("small", f" · {total}")),
        tag("p", plain(REMEDIES[DEBT]), class_="soft"),
        table(
            _caption(rows),
            columns,
            (
                Row((organization_link(row), row["instances"], f"{row['owed']:,.2f}", moment(row["since"])))
                for row in rows
            ),
        ),
    ]


def _suspensions(rows: Sequence[dict[str, Any]]) -> Child:
    columns = (
        Column("Organization"),
        Column("By", short=True),
        Column("Reason"),
        Column("Since (UTC)", short=True),
        Column("Until (UTC)", short=True),
    )
    return table(
        _caption(rows),
        columns,
        (
            Row(
                (
                    organization_link(row),
                    row["kind"],
                    plain(row["reason"]),
                    moment(row["suspended_at"]),
                    moment(row["until"]) if row["until"] else "",
                ),
                tag("small", row["detail"]) if row["detail"] else None,
            )
            for row in rows
        ),
    )


def _caption(rows: Sequence[dict[str, Any]]) -> str:
    every = rows[0]["all_organizations"]
    count = _counted(every, "organization")
    return count if every == len(rows) else f"{count}; these {len(rows)} have waited longest"


def _refresh(seconds: int | None) -> Markup:
    if seconds is None:
        return tag("p", "This page doesn't reload. ", tag("a", "Reload every 30 seconds", href="/"))
    return tag("p", f"Reloads every {seconds} seconds. ", tag("a", "Stop reloading", href="/?reload=off"))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
