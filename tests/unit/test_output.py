"""Results reach a pipe or a terminal in any encoding. Data is neither interpreted as markup nor cut off."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Literal

import pytest
import structlog

from controller import answers, log, output, terminal
from controller.billing.audit import AuditReport, Finding
from controller.billing.values import CycleResult, Outcome, Totals
from tests.statuses import NOW, status

#: Rich markup, an emoji, a link, escape sequences, a bell, a right-to-left override, wide characters and a long text.
ODD = "[/b] [bold] :smile: [link=x]y[/link] \x1b[31mred\x1b[0m \x07 \u202e ☃ 漢字 " + "long " * 30
SHOWN = "[/b] [bold] :smile: [link=x]y[/link] \\x1b[31mred\\x1b[0m \\x07 \\u202e"


class Stream(io.TextIOWrapper):
    """A standard output that keeps what was written."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="\n")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        self.flush()
        written: bytes = self.buffer.getvalue()  # type: ignore[attr-defined]
        return written.decode(self.encoding)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Prints every kind of result, with odd data, and returns what reached the stream."""
    last = {
        "id": 7, "kind": "cycle", "outcome": "failed", "started_at": NOW.isoformat(), "instances": 1, "hours": 2,
        "amount": "3", "error": ODD,
    }  # fmt: skip
    run = {
        "id": 7, "term": 3, "holder": ODD[:40], "started_at": NOW, "finished_at": NOW + timedelta(seconds=2),
        "kind": "collection", "outcome": "completed_with_failures", "instances": 1234567,
        "hours": 1234567, "amount": Decimal("123456.78"),
        "debts": 1, "failures": 2, "error": ODD,
    }  # fmt: skip
    replicas = tuple(
        {"instance_id": ODD, "role": role, "since": None} for role in ("leader", "standby", "without term")
    )
    odd = status(leader=ODD, standbys=(ODD,), replicas=replicas, last_run=last)
    report = AuditReport((Finding("periods", "periods do not overlap", 1, 0, (ODD,)),), 0)
    result = CycleResult(Outcome.FAILED, Totals(), 1.0, None, ODD, {ODD: 1})

    def show(stream: Stream, *, as_json: bool = False) -> str:
        monkeypatch.setattr(sys, "stdout", stream)
        answers._show_status(odd, as_json=as_json, check=False)
        output.history([run, run], as_json=as_json)
        output.audit(report, as_json=as_json)
        output.cycle(result, dry=False, as_json=as_json)
        return stream.text

    return show


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("columns", ["80", "0", "nonsense"])
def test_data_in_a_pipe_is_complete_and_never_markup_or_a_control_sequence(
    everything: Callable[..., str], monkeypatch: pytest.MonkeyPatch, encoding: str, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = everything(Stream(encoding))
    assert shown.count(SHOWN) == 10
    assert shown.count("long " * 29) == 10
    assert "\x1b" not in shown
    assert "…" not in shown
    for line in everything(Stream(encoding), as_json=True).splitlines():
        json.loads(line)


@pytest.mark.parametrize(("columns", "widest"), [("80", 80), ("0", 80), ("nonsense", 80), ("1", 40), ("200", 200)])
def test_every_command_fits_its_terminal(
    everything: Callable[..., str], monkeypatch: pytest.MonkeyPatch, columns: str, widest: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = everything(Stream(terminal=True))
    assert "\x1b" not in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= widest
    assert "".join(shown.split()).count("longlong") >= 9 * 14


def test_history_on_a_wide_terminal_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", stream)
    output._print_table([["cycle", "amount", "error"], ["7", "12.50", ""], ["12345", "1.00", "漢字"]])
    assert stream.text.splitlines() == ["cycle  amount  error", "7       12.50", "12345    1.00  漢字"]


@pytest.mark.parametrize("style", ["console", "json"])
def test_log_holds_no_control_sequence_of_its_data(style: Literal["console", "json"]) -> None:
    stream = Stream("ascii")
    log.configure("info", style, "host-1", lambda: ["hunter2"], stream)
    try:
        structlog.get_logger().warning("instance.priced_by_default", label=ODD, nested=[ODD], error=f"hunter2 {ODD}")
        structlog.get_logger().error("service.crashed", exc_info=ValueError(ODD))
    finally:
        structlog.reset_defaults()
    assert "\x1b" not in stream.text
    assert "\x07" not in stream.text
    assert "hunter2" not in stream.text


def test_result_that_can_not_be_written_is_an_error_but_a_closed_pipe_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Stream):
        error: OSError

        def flush(self) -> None:
            raise self.error

        def close(self) -> None:
            """Nothing to flush."""

    stream = Refusing()
    monkeypatch.setattr(sys, "stdout", stream)
    stream.error = OSError(28, "No space left on device")
    with pytest.raises(terminal.OutputError, match=r"^can't write to standard output: No space left on device$"):
        output.line("result")
    stream.error = BrokenPipeError(32, "Broken pipe")
    output.line("result")
    monkeypatch.setattr(sys, "__stdout__", None)
    with pytest.raises(terminal.OutputError, match="it is closed"):
        output.line("result")
    monkeypatch.setattr(sys, "stderr", stream)
    output.note("progress")


def test_one_off_command_masks_secrets_in_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("info", "json", "host-1", lambda: ["hunter2"], stream)
    structlog.reset_defaults()
    output.note(log.redacted("error: no login with hunter2"))
    assert stream.text == "error: no login with ***\n"
