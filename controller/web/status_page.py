"""The status page: one HTML document without scripts. Every value is escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from html import escape
from typing import Any, Final

from controller.billing.status import Status
from controller.billing.verdict import HEARTBEAT_LATE_SECONDS, Level, verdict
from controller.web.health import Vitals
from controller.web.status_cache import Snapshot
from controller.wording import duration, next_cycle, time

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b2330;--soft:#5d6878;--line:#dde2ea;--back:#f5f7fa;--card:#fff;--good:#137a4a;
--bad:#b3261e;--wait:#8a5a00}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#98a3b3;--line:#2b3442;--back:#10151d;--card:#18202b;
--good:#4cc38a;--bad:#ff8a80;--wait:#f0b454}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:64rem;margin:0 auto;padding:2rem 1.25rem}
header{display:flex;flex-wrap:wrap;gap:.25rem 1rem;align-items:baseline;margin-bottom:1.5rem}
h1{font-size:1.3rem;margin:0}
h2{font-size:.95rem;margin:2rem 0 .6rem}
small,.soft,footer{color:var(--soft)}
.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(13.5rem,1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1rem;min-width:0}
.card b{display:block;font-size:1.2rem;font-weight:600;overflow-wrap:anywhere}
.card span{color:var(--soft);font-size:.85rem}
.good{color:var(--good)}.bad{color:var(--bad)}.wait{color:var(--wait)}
.verdict{font-size:1.2rem;font-weight:600;margin:0 0 1rem;overflow-wrap:anywhere}
.note{border-left:3px solid var(--bad);background:var(--card);padding:.6rem 1rem;margin:0 0 1rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .8rem;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}
th{font-weight:500;color:var(--soft);font-size:.85rem}
.n{text-align:right}
td.text{white-space:normal;min-width:12rem}
footer{margin-top:2rem;font-size:.85rem}
a{color:inherit}
"""
STYLE_HASH: Final = f"sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}"

_OUTCOME_TONES: Final = {
    "completed": "good",
    "completed_with_failures": "bad",
    "failed": "bad",
    "running": "wait",
    "stopped": "wait",
    "abandoned": "bad",
}
_VERDICT_TONES: Final = {Level.OK: "good", Level.ATTENTION: "wait", Level.DOWN: "bad"}
_NEXT_CYCLE_TONES: Final = {"leader": "bad", "halted": "bad", "running": "wait", "takeover": "wait", "nothing": "wait"}


def render(identity: Mapping[str, Any], vitals: Vitals, failed_checks: Sequence[str], snapshot: Snapshot) -> str:
    """Returns the document.

    Args:
        identity: the fields of `Identity`.
        vitals: of this replica.
        failed_checks: why this replica is not live or not ready.
        snapshot: of the status.
    """
    status = snapshot.status
    parts = [
        f"<header><h1>ContainerStacks billing</h1><small>lock {_text(identity['lock'])}</small></header>",
        *(f'<p class="note">This replica: {_text(check)}</p>' for check in failed_checks),
    ]
    if status is None:
        parts.append(f'<p class="note">The database can\'t be read: {_text(snapshot.error)}</p>')
    else:
        parts += [_verdict(status), _cards(status, identity), _runs(snapshot.runs, identity)]
    parts += [_replica(identity, vitals, failed_checks), _footer(status)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_text(_title(status))}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _title(status: Status | None) -> str:
    if status is None:
        return "billing: no database"
    return f"billing: {status.leader} leads" if status.leader else "billing: no leader"


def _verdict(status: Status) -> str:
    judged = verdict(status)
    return f'<p class="verdict {_VERDICT_TONES[judged.level]}">{_text(judged.line)}</p>'


def _cards(status: Status, identity: Mapping[str, Any]) -> str:
    age = status.heartbeat_age_seconds
    late = age is None or age > HEARTBEAT_LATE_SECONDS
    since = f", since {time(status.leading_since)}" if status.leading_since else ""
    standbys = ", ".join(status.standbys)
    cycle = next_cycle(status)
    intruder = status.lock_held_without_term
    detail = f"{intruder} holds the lock without a term" if intruder else f"term {status.term}{since}"
    cards = [
        _card("Leader", status.leader or "none", detail, "good" if status.leader else "bad"),
        _card(
            "Standbys", f"{len(status.standbys)}", standbys or "no replica can take over", "" if standbys else "wait"
        ),
        _card("Next cycle", cycle.when, cycle.detail, _NEXT_CYCLE_TONES.get(status.waiting_for, "")),
        _card(
            "Heartbeat",
            "none yet" if age is None else f"{duration(age)} ago",
            "after 90 minutes the application resumes its own billing",
            "bad" if late else "good",
        ),
        _card("Debts", f"{status.debts}", f"{status.owed} {identity['currency']} owed", "wait" if status.debts else ""),
        _card("Failures", f"{status.failures}", "instances that can't be charged", "bad" if status.failures else ""),
        _card(
            "Suspended", f"{status.suspended}", "organizations excluded from billing", "bad" if status.suspended else ""
        ),
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(label: str, value: str, detail: str, tone: str) -> str:
    return (
        f'<div class="card"><span>{_text(label)}</span><b class="{_text(tone)}">{_text(value)}</b>'
        f"<span>{_text(detail)}</span></div>"
    )


def _runs(runs: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> str:
    if not runs:
        return '<h2>Recent cycles</h2><p class="soft">None yet.</p>'
    texts = ("Cycle", "Started", "Outcome", "Leader", "Term")
    numbers = ("Seconds", "Instances", "Hours", f"Amount ({identity['currency']})", "Debts", "Failures")
    head = "".join(f"<th>{_text(each)}</th>" for each in texts)
    head += "".join(f'<th class="n">{_text(each)}</th>' for each in numbers)
    return (
        f'<h2>Recent cycles</h2><div class="scroll"><table><thead><tr>{head}<th>Error</th></tr></thead>'
        f"<tbody>{''.join(_run(run) for run in runs)}</tbody></table></div>"
    )


def _run(run: Mapping[str, Any]) -> str:
    started, finished = run["started_at"], run["finished_at"]
    outcome = str(run["outcome"])
    seconds = f"{(finished - started).total_seconds():.1f}" if finished else ""
    cells = [f"<td>{_text(value)}</td>" for value in (run["id"], time(started))]
    cells.append(f'<td class="{_OUTCOME_TONES.get(outcome, "")}">{_text(outcome)}</td>')
    cells += [f"<td>{_text(value)}</td>" for value in (run["holder"], run["term"])]
    amount = f"{Decimal(str(run['amount'])):.2f}"
    numbers = (seconds, run["instances"], run["hours"], amount, run["debts"], run["failures"])
    cells += [f'<td class="n">{_text(number)}</td>' for number in numbers]
    return f'<tr>{"".join(cells)}<td class="text">{_text(run["error"] or "")}</td></tr>'


def _replica(identity: Mapping[str, Any], vitals: Vitals, failed_checks: Sequence[str]) -> str:
    role = f"{vitals.role}, term {vitals.term}" if vitals.term is not None else str(vitals.role)
    facts = [
        ("Replica", identity["instance"]),
        ("Role", role),
        ("Health", "draining" if vitals.draining else "not ready" if failed_checks else "ready"),
        ("Version", identity["version"]),
        ("Pod", identity["pod"]),
        ("Node", identity["node"]),
    ]
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts if value)
    return f'<h2>This replica</h2><div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _footer(status: Status | None) -> str:
    as_of = f"As of {_text(time(status.database_time))} by the database's clock. " if status else ""
    return (
        f'<footer>{as_of}<a href="/status.json">status.json</a> · <a href="/metrics">metrics</a> ·'
        ' <a href="/readyz">readyz</a> · <a href="/livez">livez</a></footer>'
    )


def _text(value: object) -> str:
    """Escapes a value. No value reaches the document any other way."""
    return escape(str(value), quote=True)
