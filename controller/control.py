"""Commands that tell the leader what to do. They record the command and wait for the leader's answer."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from controller import output, report, sql
from controller.answers import parse_age
from controller.app import Application, storable
from controller.billing import control
from controller.billing.answers import NameNotFoundError, find, read_run
from controller.billing.control import ANSWER_SECONDS, Command, Wish
from controller.billing.other_billers import halting, read_notices
from controller.billing.statement import is_moment
from controller.commands import AsJson, application
from controller.errors import BillingError
from controller.postgres import migrations
from controller.wording import time

#: A command that the leader carries out later than this says what it waits for.
NOTE_SECONDS: Final = 3.0


def _said(reason: str | None) -> str | None:
    """Returns a reason as PostgreSQL can store it. A blank one is refused."""
    if reason is not None and not reason.strip():
        raise typer.BadParameter("the reason is blank; say why", param_hint="--reason")
    return None if reason is None else storable(reason)


Reason = Annotated[
    str, typer.Option(help="The reason, for the record. The status and the application show it.", callback=_said)
]
OptionalReason = Annotated[str | None, typer.Option("--reason", help="The reason, for the record.", callback=_said)]
Organization = Annotated[str, typer.Argument(help="An organization's id or slug.", metavar="ORG")]
By = Annotated[str | None, typer.Option(help="Your name, for the record.", show_default="the current user")]


class RefusedError(BillingError):
    """The leader refused the command; the message says why. Exit status 1."""


app = typer.Typer(rich_markup_mode=None)


@app.command()
def pause(
    reason: Reason,
    for_time: Annotated[
        str | None, typer.Option("--for", help="How long: 30m, 4h or 2d.", show_default="4h", metavar="TIME")
    ] = None,
    indefinitely: Annotated[bool, typer.Option("--indefinitely", help="Until `resume`.")] = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Stops billing after the batch in hand. When the pause ends, billing continues and charges the hours since."""
    if indefinitely and for_time is not None:
        raise typer.BadParameter("choose one of --for and --indefinitely")
    seconds = None if indefinitely else parse_age(for_time or "4h", "--for").total_seconds()
    if seconds == 0:
        raise typer.BadParameter("the pause would end at once; give a time such as 30m", param_hint="--for")
    with _session() as (connection, built):
        wish = Wish("pause", built.operator(by), reason, for_seconds=seconds)
        given = control.wait(connection, control.give(connection, wish), _finished)
    until = f"until {time(given.until)}" if given.until else "until `containerstacks-billing resume`"
    done = (
        f"paused {until}" if given.finished_at else f"{given.acknowledged_by} pauses after the batch in hand, {until}"
    )
    raise typer.Exit(_answer(given, done, as_json=as_json))


@app.command()
def resume(
    reason: OptionalReason = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Ends a pause, and accepts what another program has billed up to now."""
    with _session() as (connection, built):
        before = read_notices(connection)
        given = control.give(connection, Wish("resume", built.operator(by), reason))
        given = control.wait(connection, given, _acknowledged)
        after = read_notices(connection)
    kinds = {notice.kind for notice in after}
    lifted = [notice for notice in before if notice.kind not in kinds]
    if not as_json:
        for notice in lifted:
            output.line(f"{'lifted' if notice.kind == 'paused' else 'accepted'}: {notice.message}")
        for notice in after:
            output.line(f"still {'halted' if notice.halts else 'reported'}: {notice.message}")
    halted = any(notice.halts for notice in after)
    done = f"{given.leader} bills again within seconds"
    if not lifted and not after:
        done = "nothing to resume: billing is not paused, and no other program has billed"
    status = _answer(
        given,
        None if halted else done,
        as_json=as_json,
        lifted=[asdict(each) for each in lifted],
        notices=[asdict(each) for each in after],
    )
    raise typer.Exit(1 if halted else status)


@app.command()
def trigger(
    reason: OptionalReason = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Makes the leader run a cycle now, and follows it to its end. The exit status is that of `bill`."""
    with _session() as (connection, built):
        given = control.give(connection, Wish("trigger", built.operator(by), reason))
        given = control.wait(connection, given, _acknowledged)
        if _acknowledged(given):
            given = _follow(connection, given, _over, quiet=as_json)
        shown, failures = read_run(connection, given.run_id) if given.run_id is not None else (None, [])
    if shown is None or shown["outcome"] == "running":
        raise typer.Exit(_answer(given, None, as_json=as_json))
    shown["error"] = built.redact(shown["error"]) if shown["error"] else None
    if as_json:
        output.json_line(given.as_dict() | {"run": shown})
    else:
        for line in report.run(shown, failures):
            output.line(line)
    raise typer.Exit(0 if shown["outcome"] == "completed" else 1)


@app.command()
def step_down(
    reason: OptionalReason = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Makes the leader hand over to a standby, after the cycle in hand."""
    with _session() as (connection, built):
        given = control.give(connection, Wish("step-down", built.operator(by), reason))
        given = control.wait(connection, given, _acknowledged)
        if _acknowledged(given):
            given = _follow(connection, given, _finished, quiet=as_json)
        if given.finished_at is not None and given.refusal is None:
            given = control.wait(connection, given, lambda each: each.leader not in {None, each.acknowledged_by})
    done = f"{given.acknowledged_by} has stepped down; {given.leader or 'no replica'} leads"
    raise typer.Exit(_answer(given, done, as_json=as_json))


@app.command()
def suspend(
    organization: Organization,
    reason: Reason,
    until: Annotated[
        str | None,
        typer.Option(
            help="When it ends: a date or a time in UTC.", show_default="not before `unsuspend`", metavar="TIME"
        ),
    ] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Excludes an organization from billing. Its hours are recorded at the prices that apply, and charged later."""
    with _session() as (connection, built):
        target = find(connection, organization, organizations_only=True)
        ends_at = _moment(connection, until, ahead=True)
        wish = Wish("suspend", built.operator(by), reason, ends_at, organization_id=target.organization_id)
        given = control.wait(connection, control.suspend(connection, wish), _acknowledged)
    ends = f"until {time(given.until)}" if given.until else "until `containerstacks-billing unsuspend`"
    raise typer.Exit(_answer(given, f"suspended {target.slug} {ends}", as_json=as_json))


@app.command()
def unsuspend(
    organization: Organization,
    reason: OptionalReason = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Ends a suspension by an operator. The next cycle charges the hours since, at their recorded prices."""
    with _session() as (connection, built):
        target = find(connection, organization, organizations_only=True)
        wish = Wish("unsuspend", built.operator(by), reason, organization_id=target.organization_id)
        ended = control.unsuspend(connection, wish)
        if ended is None:
            raise RefusedError(f"no operator has suspended {target.slug}; a clean audit ends a suspension by the guard")
        given = control.wait(connection, ended[0], _acknowledged)
    row = ended[1]
    done = f"lifted: {target.slug} was suspended {row['detail']}: {row['reason']}"
    raise typer.Exit(_answer(given, done, as_json=as_json))


@app.command()
def waive(
    name: Annotated[str, typer.Argument(help="An organization's id or slug, or an instance's id.", metavar="NAME")],
    reason: Reason,
    until: Annotated[
        str | None,
        typer.Option(help="Waive the hours before a date or a time in UTC.", show_default="now", metavar="TIME"),
    ] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Writes off the unpaid whole hours of an organization or an instance: they become billed periods of 0.00."""
    with _session() as (connection, built):
        target = find(connection, name)
        if target.instance_id is not None and str(target.instance_id) != name.lower():
            raise NameNotFoundError(f"{name} is a label: use the id {target.instance_id}")
        wish = Wish(
            "waive", built.operator(by), reason, _moment(connection, until, ahead=False),
            organization_id=target.organization_id, instance_id=target.instance_id,
        )  # fmt: skip
        given = control.wait(connection, control.give(connection, wish), _acknowledged)
        if _acknowledged(given):
            given = _follow(connection, given, _finished, quiet=as_json)
        waived = control.read_waived(connection, given)
    hours, instances = report.counted(waived["hours"], "hour"), report.counted(waived["instances"], "instance")
    done = f"waived {hours} of {instances}, worth {waived['amount']}, in run {given.run_id}"
    raise typer.Exit(_answer(given, done, as_json=as_json, waived=waived))


def _moment(connection: sql.Connection, text: str | None, *, ahead: bool) -> datetime | None:
    """Reads the time of --until, which must be in the future if `ahead`, else in the past, by the database's clock."""
    if text is None:
        return None
    if not is_moment(text):
        raise typer.BadParameter(f"{text!r} is not a date such as 2026-11-25, or a time such as 2026-11-25T14:00Z")
    row = sql.row(connection, "until", text=text)
    if row["ahead"] is not ahead:
        raise typer.BadParameter(f"{text} {'has passed' if ahead else 'has not passed yet'}", param_hint="--until")
    moment: datetime = row["until"]
    return moment


def _acknowledged(command: Command) -> bool:
    return command.acknowledged_at is not None


def _finished(command: Command) -> bool:
    return command.finished_at is not None


def _follow(connection: sql.Connection, given: Command, until: Callable[[Command], bool], *, quiet: bool) -> Command:
    """Waits until the leader has carried out a command that it has read. Says so if that takes long."""
    given = control.wait(connection, given, until, seconds=NOTE_SECONDS)
    if not until(given) and not quiet:
        halt = halting(read_notices(connection))
        waits_for = "the work in hand" if halt is None else f"the end of a halt ({halt.message})"
        output.note(f"{given.acknowledged_by} has read it; waiting for {waits_for}. After Ctrl-C it stays recorded.")
    return control.wait(connection, given, until, seconds=math.inf)


def _over(command: Command) -> bool:
    """True if a trigger was refused, or its cycle has ended."""
    return command.refusal is not None or (command.outcome or "running") != "running"


def _answer(given: Command, done: str | None, *, as_json: bool, **more: Any) -> int:  # noqa: ANN401 - JSON
    """Prints the leader's answer, and returns the exit status.

    Args:
        given: after the wait.
        done: what to print if the leader carried the command out; None for nothing.
        as_json: print JSON.
        more: more fields for JSON.

    Raises:
        RefusedError: the leader refused the command.
    """
    unanswered = given.acknowledged_at is None and given.leader is not None
    if as_json:
        output.json_line(given.as_dict() | more)
        return 1 if unanswered or given.refusal is not None else 0
    if given.refusal is not None:
        raise RefusedError(given.refusal)
    if unanswered:
        output.line(f"recorded; {given.leader} leads, but has not answered within {ANSWER_SECONDS:g} s")
    elif given.finished_at is None and given.leader is None:
        output.line("recorded; no replica leads, so the next leader will carry it out")
    elif done is not None:
        output.line(done)
    return 1 if unanswered else 0


@contextmanager
def _session() -> Iterator[tuple[sql.Connection, Application]]:
    built = application()
    with built.connect() as connection:
        migrations.check(connection)
        yield connection, built
