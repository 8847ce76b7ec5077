"""Commands that answer questions. They read, and change nothing."""

import time
from collections.abc import Callable, Iterable
from typing import Annotated

import psycopg
import typer

from controller import output, report
from controller.billing.status import Status
from controller.billing.verdict import Level, verdict
from controller.commands import AsJson, application
from controller.errors import DatabaseUnreachableError, one_line

WATCH_SECONDS = 2.0

app = typer.Typer(rich_markup_mode=None)


@app.command()
def status(
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print only the verdict; exit status 1 unless it is OK.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Shows if customers are being billed, who leads, and when the next cycle starts."""
    read = application().status
    if watch:
        watch_status(read, lambda shown: _show_status(shown, as_json=as_json, check=check), time.sleep)
        return
    shown = read()
    _show_status(shown, as_json=as_json, check=check)
    raise typer.Exit(1 if check and verdict(shown).level is not Level.OK else 0)


def watch_status(read: Callable[[], Status], show: Callable[[Status], None], wait: Callable[[float], None]) -> None:
    """Shows the status until Ctrl-C. While the database can't be reached, it says so and tries again."""
    try:
        while True:
            try:
                shown = read()
            except (DatabaseUnreachableError, psycopg.OperationalError) as error:
                output.line(f"DOWN: {one_line(error)}")
            else:
                output.clear()
                show(shown)
            wait(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def _show_status(shown: Status, *, as_json: bool, check: bool) -> None:
    judged = verdict(shown)
    if as_json:
        output.json_line({"verdict": judged.level, "reasons": judged.reasons, **({} if check else shown.as_dict())})
    elif check:
        output.line(judged.line)
    else:
        _print(report.status(shown))


def _print(lines: Iterable[str]) -> None:
    for text in lines:
        output.line(text)
