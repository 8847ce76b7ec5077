"""The command line: reads arguments, calls the application, and prints. It decides nothing."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

import psycopg
import typer
from typer.core import TyperGroup

from controller import __version__, answers, control, foreground, log, money_commands, output, settings, settings_help
from controller.billing.values import CycleResult, Outcome
from controller.commands import AsJson
from controller.commands import application as _application
from controller.errors import BillingError, SettingsError, one_line
from controller.lifecycle.control import request_drain
from controller.lifecycle.signals import Signals
from controller.replica import Replica

EXIT_STATUS = """Exit status: 0 done; 1 the command failed or found a problem; 2 wrong usage or settings;
3 the database can't be reached; 4 another replica leads."""
#: The exit status with which typer ends an interrupted command.
INTERRUPTED = 130
#: SQLSTATEs of a session that has ended: connection errors, shutdowns and timeouts of the session.
LOST = ("08", "57P", "25P03", "25P04")
OUTCOME_STATUS = {
    Outcome.COMPLETED: 0,
    Outcome.COMPLETED_WITH_FAILURES: 1,
    Outcome.STOPPED: 1,
    Outcome.FAILED: 1,
    Outcome.DEPOSED: 4,
    Outcome.SUPERSEDED: 1,
}


class _Commands(TyperGroup):
    """Adds the settings to `--help`."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002 - typer keeps its click private
        for text in (settings_help.environment(), EXIT_STATUS):
            formatter.write(f"\n{text}\n")


app = typer.Typer(
    cls=_Commands,
    name="containerstacks-billing",
    help="Billing controller for ContainerStacks. PostgreSQL elects a leader, which charges every hour exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
demo_app = typer.Typer(help="Shows billing and a failover on a temporary PostgreSQL.", rich_markup_mode=None)
app.add_typer(demo_app, name="demo")
app.add_typer(answers.app)
app.add_typer(control.app)
app.add_typer(money_commands.app)
WaitSeconds = Annotated[
    float, typer.Option("--wait", min=0, max=86400, help="Seconds to wait for a database that isn't ready.")
]


def main(signals: Signals) -> int:
    """Runs the command and returns its exit status."""
    try:
        app(obj=signals)
    except SystemExit as end:  # typer ends this way, also after a usage error (2) or an interruption (130)
        if end.code != INTERRUPTED:
            return end.code if isinstance(end.code, int) else 0
        failure = _interruption(signals)
    except KeyboardInterrupt:
        failure = _interruption(signals)
    except BillingError as error:
        failure = str(error), error.exit_status
    except OSError as error:  # standard output is full, and typer writes the help
        failure = one_line(error), 1
    except psycopg.Error as error:
        what, status = explain(error)
        failure = f"{what}: {one_line(error, with_detail=True)}", status
    else:
        return 0
    output.note(f"error: {log.redacted(failure[0])}")
    return failure[1]


def explain(error: psycopg.Error) -> tuple[str, int]:
    """Returns what happened to the command, and its exit status. A cancelled statement loses no connection."""
    lost = error.sqlstate.startswith(LOST) if error.sqlstate else isinstance(error, psycopg.OperationalError)
    if lost:
        return "the connection to the database was lost", 3
    return "the database refused the command", 1


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        output.line(__version__)
        raise typer.Exit


@app.callback()
def _prepare(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    if context.invoked_subcommand not in {"run", "bill"}:
        context.obj.restore()


@app.command()
def run(context: typer.Context) -> None:
    """Runs a replica: contends for leadership, and bills while it leads. SIGTERM drains it."""
    application = _application(one_off=False, may_wait=True)
    raise typer.Exit(Replica(application, context.obj).run())


@app.command()
def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Only check; exit status 1 if a migration is missing.")
    ] = False,
    wait: WaitSeconds = 0,
) -> None:
    """Applies pending migrations. Several processes may run it at the same time."""
    application = _application(may_wait=wait > 0)
    if check:
        application.check_schema(output.note, wait)
        output.line("up to date")
        return
    for line in application.migrate(output.note, wait) or ["up to date"]:
        output.line(line)


@app.command()
def bill(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Execute the same SQL and roll it back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Runs one cycle now, in the foreground, as the leader."""
    application = _application()
    with output.Progress() as progress:
        result: CycleResult = foreground.bill(
            application, context.obj, dry=dry_run, on_planned=progress.planned, on_result=progress.charged
        )
    redacted = replace(result, error=result.error and application.redact(result.error))
    output.cycle(redacted, application.unrecorded() if dry_run else (), dry=dry_run, as_json=as_json)
    raise typer.Exit(OUTCOME_STATUS[result.outcome])


@app.command()
def drain(
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=86400,
            help="Seconds to wait for the current cycle.",
            show_default="BILLING_DRAIN_TIMEOUT_SECONDS",
        ),
    ] = None,
) -> None:
    """Tells the controller in this pod or on this host to finish its work, hand over and stop, and waits for it."""
    loaded = settings.load()
    if loaded.control_socket is None:
        raise SettingsError(
            "BILLING_CONTROL_SOCKET is none, so there is no socket: send the controller SIGTERM instead"
        )
    outcome = request_drain(loaded.control_socket, timeout)
    output.line(f"drain {outcome.replace('_', ' ')}")
    raise typer.Exit(0 if outcome == "completed" else 1)


@demo_app.callback(invoke_without_command=True)
def demo(context: typer.Context) -> None:
    """Elects, bills, kills the leader, hands over, and audits. Takes under a minute."""
    if context.invoked_subcommand is None:
        from controller.demo import story  # noqa: PLC0415 - `run` never needs it

        raise typer.Exit(story.tell())


@demo_app.command()
def seed(
    organizations: Annotated[int, typer.Option(min=4)] = 40,
    instances: Annotated[int, typer.Option(min=40)] = 400,
    wait: WaitSeconds = 0,
) -> None:
    """Creates a sample ContainerStacks schema with data in the database of DATABASE_URL, which must not have one."""
    from controller.demo import sample  # noqa: PLC0415

    size = sample.Size(organizations=organizations, instances=instances)
    with _application(may_wait=wait > 0).connect_patiently(wait, output.note) as connection:
        made = sample.seed(connection, size)
    output.line(
        f"created {organizations} organizations with {instances} instances" if made else "the sample already exists"
    )


@demo_app.command(name="run")
def run_demo(
    use_database_url: Annotated[
        bool, typer.Option("--use-database-url", help="Migrate and bill the database of DATABASE_URL instead.")
    ] = False,
) -> None:
    """Runs one controller on sample data in a temporary PostgreSQL until Ctrl-C.

    It ignores .env and every DATABASE_ variable, so it never touches a real database by accident.
    """
    from controller.demo import sample, server  # noqa: PLC0415

    loaded = settings.load(None, ignored=settings.database_variables() - {"DATABASE_URL" if use_database_url else ""})
    with ExitStack() as stack:
        if not use_database_url:
            postgres = stack.enter_context(server.EphemeralServer())
            url = postgres.create_database("containerstacks")
            loaded = loaded.for_sample(url, postgres.folder / "control.sock")
            with _application(loaded).connect() as connection:
                sample.seed(connection, sample.Size())
            output.line(f"One controller on sample data, on {postgres.installation.title}, until Ctrl-C.")
            output.line(f"In another terminal: export DATABASE_URL={url}")
        for command in ("status", "history", "audit"):
            output.line(f"  {sys.argv[0]} {command}")
        if loaded.page_address is not None:
            output.line(f"In a browser: http://{loaded.page_address}")
        readable = loaded.model_copy(update={"log_format": loaded.log_format or "console"})
        application = _application(readable, one_off=False)
        application.migrate(output.note)
        raise typer.Exit(Replica(application, Signals()).run())


def _interruption(signals: Signals) -> tuple[str, int]:
    number = signals.interrupted_by
    return f"interrupted by {number.name} before the command had finished", 128 + number
