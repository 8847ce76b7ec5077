"""`make help` is how people find the other targets."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_make_help_lists_every_target_once_with_a_description() -> None:
    targets = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    command = [
        "make",
        "--no-print-directory",
        "help",
    ]  # `make test` runs this test, and a make inside a make prints directories
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    listed = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [name for _, name, _ in listed] == sorted(targets)
    assert {"e2e", "help", "test"} <= set(targets)
