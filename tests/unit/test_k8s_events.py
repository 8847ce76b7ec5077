"""Events have the form that the API server accepts, and describe what happened."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from controller.billing.values import CycleResult, Outcome, Totals
from controller.k8s.events import (
    MAX_NOTE_BYTES,
    Event,
    Reason,
    cycle_note,
    cycle_reason,
    event_body,
    event_name,
    micro_time,
)
from controller.k8s.pod import Pod

POD = Pod("billing", "billing-7d4-x2", "pod-uid", "billing")
EVENT = Event("name", Reason.LEADER_ELECTED, "leads", datetime(2026, 11, 22, 12, tzinfo=UTC))
POD_REFERENCE = {"apiVersion": "v1", "kind": "Pod", "namespace": "billing", "name": "billing-7d4-x2", "uid": "pod-uid"}


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 11, 22, 12, tzinfo=UTC), "2026-11-22T12:00:00.000000Z"),
        (datetime(2026, 11, 22, 12, 0, 0, 1000, tzinfo=UTC), "2026-11-22T12:00:00.001000Z"),
        (datetime(2026, 11, 22, 12, tzinfo=timezone(timedelta(hours=2))), "2026-11-22T10:00:00.000000Z"),
    ],
)
def test_time_always_has_six_fraction_digits(moment: datetime, text: str) -> None:
    assert micro_time(moment) == text


def test_event_is_about_the_deployment_and_relates_to_the_pod() -> None:
    assert event_body(EVENT, POD, "deployment-uid") == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "name", "namespace": "billing"},
        "eventTime": "2026-11-22T12:00:00.000000Z",
        "reportingController": "containerstacks-billing",
        "reportingInstance": "billing-7d4-x2",
        "action": "Elect",
        "reason": "LeaderElected",
        "regarding": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "namespace": "billing",
            "name": "billing",
            "uid": "deployment-uid",
        },
        "related": POD_REFERENCE,
        "note": "leads",
        "type": "Normal",
    }


@pytest.mark.parametrize(("pod", "uid"), [(POD, None), (replace(POD, deployment=None), "uid")])
def test_event_is_about_the_pod_if_the_deployment_is_unknown(pod: Pod, uid: str | None) -> None:
    body = event_body(EVENT, pod, uid)
    assert body["regarding"] == POD_REFERENCE
    assert "related" not in body


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_an_action(reason: Reason) -> None:
    body = event_body(replace(EVENT, reason=reason, warning=True), POD, None)
    assert (body["reason"], body["type"]) == (reason.value, "Warning")
    assert body["action"] in {"Elect", "Bill", "Drain"}


def test_long_note_is_cut_between_characters_and_is_one_line() -> None:
    note = event_body(replace(EVENT, note="é\n" * 2000), POD, None)["note"]
    assert len(note.encode()) <= MAX_NOTE_BYTES
    assert "\n" not in note
    assert note.endswith("…")


def test_event_name_is_valid_for_any_pod() -> None:
    for pod in ("billing-7d4-x2", "a." * 126 + "a", "x" * 253):
        name = event_name(pod, "0123456789abcdef")
        assert len(name) <= 253
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name)


@pytest.mark.parametrize(
    ("result", "note"),
    [
        (
            CycleResult(Outcome.COMPLETED, Totals(10, 12, Decimal("1.2")), 2.04),
            "Charged 1.20 for 12 hours of 10 instances in 2.0 s",
        ),
        (
            CycleResult(Outcome.COMPLETED, Totals(10, 12, Decimal("1.2"), 3, 4), 2.04),
            "Charged 1.20 for 12 hours of 10 instances in 2.0 s; 3 in debt, 4 not charged",
        ),
        (
            CycleResult(Outcome.FAILED, Totals(), 0.1, error="disk full"),
            (
                "the log and `containerstacks-billing history` give the error;"
                " charged 0.00 for 0 hours of 0 instances in 0.1 s"
            ),
        ),
        (
            CycleResult(
                Outcome.COMPLETED_WITH_FAILURES,
                Totals(10, 12, Decimal("1.2"), 0, 4),
                2.04,
                failures_by_reason={"wallet_missing": 3, "balance_nan": 1},
            ),
            (
                "Charged 1.20 for 12 hours of 10 instances in 2.0 s; 0 in debt, 4 not charged"
                " (1 balance_nan, 3 wallet_missing)"
            ),
        ),
    ],
)
def test_cycle_note_has_the_totals_and_the_reasons(result: CycleResult, note: str) -> None:
    assert cycle_note(result) == note


@pytest.mark.parametrize(
    ("outcome", "totals", "reason"),
    [
        (Outcome.COMPLETED, Totals(debts=3), Reason.CYCLE_COMPLETED),
        (Outcome.COMPLETED_WITH_FAILURES, Totals(failures=1), Reason.CYCLE_COMPLETED_WITH_FAILURES),
        (Outcome.FAILED, Totals(failures=1), Reason.CYCLE_FAILED),
        (Outcome.STOPPED, Totals(), None),
        (Outcome.DEPOSED, Totals(), None),
        (Outcome.SUPERSEDED, Totals(), None),
    ],
)
def test_cycle_has_one_reason_for_each_outcome(outcome: Outcome, totals: Totals, reason: Reason | None) -> None:
    assert cycle_reason(CycleResult(outcome, totals, 1.0)) is reason
