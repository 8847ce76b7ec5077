"""Commands that decide about money: `reconcile` and `accept-backlog`."""

import re
import time
from dataclasses import asdict
from decimal import Decimal
from typing import Annotated, Any, Final

import typer

from controller import money_report, output
from controller.billing import reconcile as reconciliation
from controller.billing.answers import NameNotFoundError, Subject, find
from controller.billing.backlog import accept_backlog as accept
from controller.billing.backlog import read_backlogs
from controller.billing.reconcile import Comparison, Correction, Order
from controller.commands import AsJson, application
from controller.postgres import migrations

Reason = Annotated[str | None, typer.Option(help="The reason, for the record.")]
By = Annotated[str | None, typer.Option(help="Your name, for the record.", show_default="the current user")]

_AMOUNT: Final = re.compile(r"[+-]?\d{1,20}(\.\d{1,20})?")

app = typer.Typer(rich_markup_mode=None)


@app.command()
def reconcile(
    organization: Annotated[str, typer.Argument(help="An organization's id or slug.")],
    *,
    correct: Annotated[
        bool,
        typer.Option("--correct", help="Change the wallet by the difference, so that it matches its transactions."),
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Leave the wallet unchanged, and add the difference to its baseline.")
    ] = False,
    amount: Annotated[str | None, typer.Option(help="The difference, as this command shows it.")] = None,
    reason: Reason = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Compares a wallet with its transactions, and corrects or accepts a difference. Exit status 1 if it differs."""
    kind = _kind(correct=correct, accept=accept)
    if kind and (amount is None or not reason or not reason.strip()):
        raise typer.BadParameter(f"--{kind} needs --amount and --reason")
    if not kind and (amount or reason or by):
        raise typer.BadParameter("--amount, --reason and --by need --correct or --accept")
    seen = _amount(amount) if amount else None
    built = application()
    correction: Correction | None = None
    with built.connect() as connection:
        migrations.check(connection)
        subject = find(connection, organization, organizations_only=True)
        wanted = subject.organization_id
        if kind and seen is not None and reason:
            order = Order(kind, seen, reason.strip(), built.operator(by))
            correction = reconciliation.reconcile(connection, wanted, order, time.sleep)
        compared = correction.after if correction else reconciliation.compare(connection, wanted)
        if compared is None:
            raise NameNotFoundError(f"{organization} has been deleted")
        made = reconciliation.read_corrections(connection, wanted)
    _print(subject, compared, correction, made, as_json=as_json)
    raise typer.Exit(1 if compared.differs else 0)


@app.command()
def accept_backlog(
    organization: Annotated[
        str | None, typer.Argument(help="An organization's id or slug.", show_default=False)
    ] = None,
    *,
    everyone: Annotated[bool, typer.Option("--all", help="Accept the backlog of every organization.")] = False,
    instances: Annotated[
        int | None, typer.Option(help="How many instances the list shows. If that has changed, accepts nothing.", min=0)
    ] = None,
    reason: Reason = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Lets the next cycle charge a backlog. Without an organization, lists backlogs; exit status 1 if there are any."""
    if organization and everyone:
        raise typer.BadParameter("choose an organization or --all")
    wanted = organization is not None or everyone
    if wanted and not (reason and reason.strip()):
        raise typer.BadParameter("accept-backlog needs --reason")
    if not wanted and (reason or by or instances is not None):
        raise typer.BadParameter("--instances, --reason and --by need an organization or --all")
    built = application()
    with built.connect() as connection:
        migrations.check(connection)
        if not wanted or not reason:
            rows = read_backlogs(connection, None, built.pricing)
        else:
            subject = find(connection, organization, organizations_only=True) if organization else None
            accepted_by = built.operator(by)
            whom = subject.organization_id if subject else None
            done = accept(
                connection, whom, built.pricing, accepted_by=accepted_by, reason=reason.strip(), expected=instances
            )
            whose = subject.slug if subject else "every organization"
            output.json_line(asdict(done)) if as_json else output.line(money_report.accepted(done, whose))
            return
    if as_json:
        output.json_line(rows)
    else:
        for text in money_report.backlogs(rows):
            output.line(text)
    raise typer.Exit(1 if rows else 0)


def _kind(*, correct: bool, accept: bool) -> str | None:
    if correct and accept:
        raise typer.BadParameter("choose one of --correct and --accept")
    return "correct" if correct else "accept" if accept else None


def _amount(text: str) -> Decimal:
    if not _AMOUNT.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is not an amount such as 12.34", param_hint="--amount")
    return Decimal(text)


def _print(
    subject: Subject,
    compared: Comparison,
    correction: Correction | None,
    made: list[dict[str, Any]],
    *,
    as_json: bool,
) -> None:
    if as_json:
        output.json_line(
            {
                **asdict(subject),
                **asdict(compared),
                "correction": correction and asdict(correction),
                "corrections": made,
            }
        )
        return
    for text in money_report.comparison(subject, compared, correction, made):
        output.line(text)
