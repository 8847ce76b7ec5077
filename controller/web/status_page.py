"""The public status page. It names no customer, because anyone who reaches the HTTP port can read it."""

from collections.abc import Sequence

from controller.billing.page_facts import PublicFacts
from controller.web.health import Vitals
from controller.web.layout import page, section
from controller.web.markup import Child, tag
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


def render(identity: Identity, vitals: Vitals, failed_checks: Sequence[str], snapshot: Snapshot[PublicFacts]) -> str:
    """Returns the public status page as HTML.

    Args:
        identity: this replica's identity.
        vitals: this replica's vitals.
        failed_checks: why this replica is not live or not ready.
        snapshot: the public facts.
    """
    known = snapshot.last_known
    status = snapshot.facts.status if snapshot.facts is not None else None
    age = snapshot.age_seconds if known is not None else None
    main: list[Child] = [top_panels(status, snapshot.error, failed_checks, age)]
    if known is not None:
        shown = [
            status_cards(known.status, identity),
            section("Replicas", replica_table(known.status, identity)),
            section("Newest runs", run_table(known.runs, identity.currency)),
        ]
        main.append(tag("div", shown, class_=None if status else "stale"))
    main.append(section("This replica", this_replica(identity, vitals, failed_checks)))
    foot = [
        as_of(known.status if known else None),
        tag(
            "p",
            [
                [tag("a", path.lstrip("/"), href=path), " · "]
                for path in ("/status.json", "/metrics", "/readyz", "/livez")
            ],
            "customers are on the operator's page, at BILLING_PAGE_ADDRESS",
        ),
    ]
    return page(tab_title(status), [], main, foot)
