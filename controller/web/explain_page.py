"""The page that explains why an organization or an instance was or was not charged. It shows what `explain` prints."""

from collections.abc import Sequence
from typing import Any, Final

from controller.billing.answers import REMEDIES, Explanation, Subject, not_charged_because
from controller.web.layout import Column, Row, facts, moment, page, plain, section, table
from controller.web.markup import Child, Markup, tag
from controller.web.operator_page import search
from controller.wording import time

#: Instances and periods that a page lists.
LISTED: Final = 100


def render(explained: Explanation, currency: str) -> str:
    """Returns the document that explains a subject."""
    subject = explained.subject
    reasons = explained.reasons()
    kind, name = "Organization", subject.organization
    if subject.instance_id is not None:
        kind, name = "Instance", subject.label or str(subject.instance_id)
    main: list[Child] = [
        tag(
            "div",
            tag("h1", f"{kind} {name}"),
            _advice(reasons) if reasons else tag("p", "The next cycle can charge everything that is due."),
            class_=f"verdict {'bad' if reasons else 'good'}",
        ),
        tag("div", section("Organization", _organization(explained.organization)), class_="columns"),
    ]
    instances = explained.instances[:LISTED]
    main.append(section(_instances_title(explained), _instances(instances, currency)))
    main.append(
        section(
            f"What the next cycle will do, as of {time(explained.as_of)}",
            _outlook(explained.outlook[:LISTED], explained.instances, currency),
        )
    )
    hidden = len(explained.instances) > LISTED or len(explained.outlook) > LISTED
    foot: list[Child] = [
        tag("p", "There is more: ", tag("code", f"containerstacks-billing explain {_id(subject)} --json"))
        if hidden
        else None,
        tag("p", "The same in a terminal: ", tag("code", f"containerstacks-billing explain {_id(subject)}")),
        tag("p", "Every payment: ", tag("code", _statement(subject))),
        tag("p", tag("a", "Back to the overview", href="/")),
    ]
    return page(f"{name} · billing", search(), main, foot)


def render_choice(name: str, found: Sequence[Subject]) -> str:
    """Returns the page of a search that found several subjects, or none."""
    if found:
        title = f"{len(found)} match “{name}”"
        columns = (Column("Kind", short=True), Column("Name"), Column("Organization"), Column("Id"))
        content: Child = table("Choose one", columns, (_choice(each) for each in found[:LISTED]))
    else:
        title = f"Nothing matches “{name}”"
        content = tag("p", "Search for an id, an organization's slug, an instance's label or its provider's id.")
    return page("Explain · billing", search(name), section(title, content, level="h1"), [])


def render_error(title: str, detail: str | None) -> str:
    """Returns the page for an explanation that can't be given."""
    main = tag("div", tag("h1", title), tag("p", detail) if detail else None, class_="verdict bad")
    return page("Explain · billing", search(), main, [tag("p", tag("a", "Back to the overview", href="/"))])


def _choice(subject: Subject) -> Row:
    kind = "organization" if subject.instance_id is None else "instance"
    name = subject.organization if subject.instance_id is None else subject.label or "without a label"
    link = tag("a", name, href=f"/explain/{_id(subject)}")
    return Row((kind, link, subject.slug, tag("code", str(_id(subject)))))


def _advice(reasons: Sequence[str]) -> Markup:
    lines = (
        tag("li", f"{plain(reason)}: {REMEDIES.get(reason, 'see docs/money.md')}", class_="reason")
        for reason in reasons
    )
    return tag("ul", lines)


def _organization(organization: dict[str, Any]) -> Markup:
    match organization["wallets"]:
        case 0:
            wallet = "none"
        case 1:
            wallet = f"{organization['balance']} {organization['currency']}"
        case number:
            wallet = f"{number} wallets, and there may be only one"
    suspended = organization["suspended"]
    return facts(
        "Names, wallet and suspension",
        [
            ("Name", organization["organization"]),
            ("Slug", organization["slug"]),
            ("Id", tag("code", str(organization["organization_id"]))),
            ("Wallet", wallet),
            ("Suspended", f"since {time(organization['suspended_at'])}: {suspended}" if suspended else "no"),
            ("Details", organization["suspended_detail"]),
        ],
    )


def _instances(instances: Sequence[dict[str, Any]], currency: str) -> Child:
    if not instances:
        return tag("p", "None.", class_="soft")
    columns = (
        Column("Instance"),
        Column(f"A month ({currency})", number=True),
        Column("Price since (UTC)", short=True),
        Column("Billed until (UTC)", short=True),
        Column("Last charge"),
        Column("Not charged"),
    )
    return table("In charging order", columns, (_instance(each) for each in instances))


def _instance(row: dict[str, Any]) -> Row:
    charge: Child = "none"
    if row["charged_from"]:
        charge = f"{row['charged_amount']} for {row['charged_hours']} h, run {row['charged_run']}"
    owed: Child = "nothing"
    if row["open_reason"]:
        reason = str(row["open_reason"]).replace("_", " ")
        owed = [tag("span", f"{row['open_hours']} h, {reason}", class_="bad"), " since ", moment(row["open_since"])]
    price = "none" if row["monthly_price"] is None else f"{row['monthly_price']} ({row['price_source']})"
    return Row(
        (
            [_instance_link(row), tag("small", f" {row['provider_instance_id'] or ''}")],
            price,
            moment(row["price_since"]) if row["price_since"] else "always",
            moment(row["billed_until"]) if row["billed_until"] else "unknown",
            charge,
            owed,
        ),
        tag("small", row["open_error"]) if row["open_error"] else None,
    )


def _instance_link(row: dict[str, Any]) -> Markup:
    return tag("a", row["label"] or "without a label", href=f"/explain/{row['instance_id']}")


def _outlook(rows: Sequence[dict[str, Any]], instances: Sequence[dict[str, Any]], currency: str) -> Child:
    if not rows:
        return tag("p", "Nothing is due then.", class_="soft")
    labels = {each["instance_id"]: each["label"] or str(each["instance_id"]) for each in instances}
    columns = (
        Column("Instance"),
        Column("Hours from (UTC)", short=True),
        Column("Hours", number=True),
        Column(f"Cost ({currency})", number=True),
        Column(f"Charged ({currency})", number=True),
        Column("Result"),
    )
    return table("Each period, in charging order", columns, (_period(row, labels) for row in rows))


def _period(row: dict[str, Any], labels: dict[Any, str]) -> Row:
    reason = not_charged_because(row)
    result = tag("span", reason.replace("_", " ") if reason else "charged", class_="bad" if reason else "good")
    cost = "unknown" if row["cost"] is None else str(row["cost"])
    return Row(
        (
            labels.get(row["instance_id"], str(row["instance_id"])),
            moment(row["starts_at"]),
            row["hours"],
            cost,
            row["amount"],
            result,
        )
    )


def _instances_title(explained: Explanation) -> str:
    if explained.subject.instance_id is not None:
        return "Instance"
    total = explained.organization["instances"]
    return f"Instances ({total:,})" if total <= LISTED else f"Instances (the first {LISTED} of {total:,})"


def _id(subject: Subject) -> str:
    return str(subject.instance_id or subject.organization_id)


def _statement(subject: Subject) -> str:
    return f"containerstacks-billing statement {subject.organization_id} --from yesterday"
