"""Checks of billing itself: who else bills, whether the application would take over, and what is overdue."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from controller import sql
from controller.billing import verdict as verdicts
from controller.doctor.findings import Finding, Level, as_finding
from controller.doctor.patient import Patient
from controller.postgres.claim import refuse_other_controller
from controller.wording import duration

#: The kind of a pause's notice.
PAUSED: Final = "paused"
LEVELS: Final = {
    verdicts.Level.OK: Level.OK,
    verdicts.Level.ATTENTION: Level.WARNING,
    verdicts.Level.DOWN: Level.FAILURE,
}


def others(patient: Patient) -> Iterator[Finding]:
    """Checks for other programs that bill, and for a second controller. Raises OtherControllerError."""
    lock = patient.application.lock
    with patient.reading() as connection:
        refuse_other_controller(connection, lock.name, lock.key)
    notices = [notice for notice in patient.status().notices if notice.kind != PAUSED]
    for notice in notices:
        yield as_finding("other billers", Level.FAILURE if notice.halts else Level.WARNING, notice.message)
    if not notices:
        yield Finding("other billers", Level.OK, "no other program bills these instances")


def fallback(patient: Patient) -> Iterator[Finding]:
    """Reports whether the application's built-in billing is paused, judged by the age of the newest heartbeat."""
    status = patient.status()
    age, limit = status.heartbeat_age_seconds, verdicts.FALLBACK_SECONDS
    if age is None or (age >= limit and status.term == 0):
        message = "no recent heartbeat, so the application's built-in billing is active"
        yield Finding("fallback", Level.WARNING, message, "start the controller; it pauses built-in billing")
    elif age >= limit:
        message = f"the newest heartbeat is {duration(age)} old, so the application's built-in billing is active"
        yield Finding("fallback", Level.FAILURE, message, "find out why no leader bills; see the billing check")
    elif age > verdicts.HEARTBEAT_LATE_SECONDS:
        message = f"the newest heartbeat is {duration(age)} old; built-in billing resumes in {duration(limit - age)}"
        yield Finding(
            "fallback", Level.WARNING, message, "find out why no leader writes a heartbeat; see the billing check"
        )
    else:
        yield Finding(
            "fallback", Level.OK, f"the application's built-in billing is paused: the heartbeat is {duration(age)} old"
        )


def verdict(patient: Patient) -> Iterator[Finding]:
    """Judges billing as `status` does, without what the other checks report."""
    status = patient.status()
    if status.term == 0 and status.leader is None:
        remedy = "start a replica: `containerstacks-billing run`"
        yield Finding("billing", Level.WARNING, "no replica has led on this database yet", remedy)
        return
    for notice in status.notices:
        if notice.kind == PAUSED:  # deliberate, so not a failure
            yield Finding("billing", Level.WARNING, notice.message, "run `containerstacks-billing resume` to end it")
    judged = verdicts.verdict(replace(status, notices=(), heartbeat_age_seconds=None))
    remedy = "" if judged.level is verdicts.Level.OK else "run `containerstacks-billing status`; see docs/operations.md"
    yield Finding("billing", LEVELS[judged.level], "; ".join(judged.reasons), remedy)


def overdue(patient: Patient) -> Iterator[Finding]:
    """Checks that nothing was due at the last completed cycle without a recorded reason."""
    with patient.reading() as connection:
        rows = [row for row in sql.rows(connection, "audit_overdue", organization=None) if not row["exempt"]]
    if rows:
        message = f"{len(rows)} instances were due at the last completed cycle and have no recorded reason"
        yield Finding("overdue", Level.FAILURE, message, "run `containerstacks-billing audit`; it names them")
    else:
        yield Finding("overdue", Level.OK, "nothing is overdue without a recorded reason")


def standbys(patient: Patient) -> Iterator[Finding]:
    """Reports that standbys waiting for the advisory lock are healthy, although they look like blocked sessions."""
    with patient.reading() as connection:
        row = sql.row(connection, "doctor_standbys")
    yield Finding(
        "standbys",
        Level.OK,
        f"connected replicas: {row['sessions']}, waiting for the lock now: {row['waiting']}; sessions named"
        " `billing elector ...` that wait on Lock/advisory are normal; exclude them from alerts on blocked sessions",
    )
