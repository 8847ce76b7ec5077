"""A cycle names customers in at most one log line: how many, and those that are new."""

from __future__ import annotations

from uuid import UUID

from structlog.testing import capture_logs

from controller.billing.customers_log import NAMED, CustomersLog
from controller.billing.values import BatchResult, Totals


def failing(*organizations: int, error: str = "error: refused") -> BatchResult:
    return BatchResult(Totals(), 0, failed={UUID(int=each): error for each in organizations})


def test_thousand_failing_organizations_are_one_line_with_a_count_and_a_few_names() -> None:
    customers = CustomersLog()
    with capture_logs() as logged:
        for each in range(1000):
            customers.add(failing(each))
        customers.cycle_ended()
    (line,) = logged
    assert (line["event"], line["log_level"]) == ("customers.affected", "warning")
    assert (line["failed_organizations"], line["failed_organizations_new"]) == (1000, 1000)
    assert line["failed_organizations_named"] == [str(UUID(int=each)) for each in range(NAMED)]
    assert line["error"] == "error: refused"


def test_next_cycle_names_only_what_is_new() -> None:
    customers = CustomersLog()
    customers.add(failing(1, 2))
    customers.cycle_ended()
    with capture_logs() as logged:
        customers.add(failing(1, 2))
        customers.cycle_ended()
        customers.add(failing(1, 2, 3, error="locked: busy"))
        customers.cycle_ended()
    assert [line["log_level"] for line in logged] == ["debug", "warning"]
    assert logged[1]["failed_organizations_named"] == [str(UUID(int=3))]
    assert logged[1]["failed_organizations"] == 3


def test_customer_that_recovered_and_fails_again_is_new() -> None:
    customers = CustomersLog()
    for result in (failing(1), failing()):
        customers.add(result)
        customers.cycle_ended()
    with capture_logs() as logged:
        customers.add(failing(1))
        customers.cycle_ended()
    assert logged[0]["failed_organizations_new"] == 1


def test_quiet_cycle_writes_no_line() -> None:
    with capture_logs() as logged:
        CustomersLog().cycle_ended()
    assert logged == []


def test_instances_priced_by_default_and_rewound_share_the_line() -> None:
    customers = CustomersLog()
    customers.add(
        BatchResult(
            Totals(), 2, priced_by_default=({"instance": "i-1", "label": "web"},), rewound=({"instance": "i-2"},)
        )
    )
    with capture_logs() as logged:
        customers.cycle_ended()
    (line,) = logged
    assert line["priced_by_default_named"] == ["instance i-1, label web"]
    assert line["rewound_named"] == ["instance i-2"]
