"""Shared by the modules that define commands: building the application, and common options."""

import sys
from typing import Annotated

import structlog
import typer

from controller import log, settings
from controller.app import Application, instance_id
from controller.errors import SecretFileError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def application(
    loaded: settings.Settings | None = None, *, one_off: bool = True, may_wait: bool = False
) -> Application:
    """Reads the settings and configures logging. A one-off command logs to standard error and prints its result.

    Args:
        loaded: the settings; by default those of the environment.
        one_off: False for a controller, which logs to standard output.
        may_wait: True if the caller waits for a file with a connection string that can't be read yet.
    """
    loaded = loaded or settings.load()
    try:
        loaded.require_database()
    except SecretFileError:
        if not may_wait:
            raise
    level = "warn" if one_off and loaded.log_level == "info" else loaded.log_level
    stream = sys.stderr if one_off else sys.stdout
    log.configure(
        level, loaded.log_format, instance_id(loaded.pod_name), loaded.secrets, stream, colours=loaded.no_color is None
    )
    for warning in settings.warnings():
        structlog.get_logger(part="settings").warning(**warning)
    return Application(loaded)
