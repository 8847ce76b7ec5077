"""A shell completes commands and options."""

import pytest
from typer.testing import CliRunner

from controller.cli import app


@pytest.mark.parametrize(
    ("words", "completed"),
    [("st", {"status", "statement"}), ("bill --dr", {"--dry-run"}), ("demo r", {"run"})],
)
def test_shell_completes_commands_and_options(words: str, completed: set[str]) -> None:
    environment = {
        "_CONTAINERSTACKS_BILLING_COMPLETE": "complete_bash",
        "COMP_WORDS": f"containerstacks-billing {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    done = CliRunner().invoke(app, [], env=environment, prog_name="containerstacks-billing")
    assert completed <= set(done.stdout.split())
