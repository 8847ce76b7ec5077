"""The page for people: one document, no script, nothing from elsewhere, everything escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from typing import Any, Final

from controller.billing.status import Status
from controller.web.health import Vitals
from controller.web.status_cache import Snapshot

#: From this age on the application bills by itself; the page warns well before.
HEARTBEAT_LATE_SECONDS: Final = 900.0

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400

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

_TONES: Final = {"completed": "good", "failed": "bad", "running": "wait", "stopped": "wait", "abandoned": "bad"}


def render(identity: Mapping[str, Any], vitals: Vitals, problems: Sequence[str], reading: Snapshot) -> str:
    """The document.

    Args:
        identity: the fields of `Identity`.
        vitals: of this replica.
        problems: why this replica is not alive or not ready.
        reading: of the database.
    """
    view = reading.status
    parts = [
        f"<header><h1>ContainerStacks billing</h1><small>lock {_text(identity['lock'])}</small></header>",
        *(f'<p class="note">This replica: {_text(problem)}</p>' for problem in problems),
    ]
    if view is None:
        parts.append(f'<p class="note">The database can\'t be read: {_text(reading.error)}</p>')
    else:
        parts += [_cards(view, identity), _runs(reading.runs, identity)]
    parts += [_replica(identity, vitals, problems), _footer(view)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_text(_title(view))}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _title(view: Status | None) -> str:
    if view is None:
        return "billing: no database"
    return f"billing: {view.leader} leads" if view.leader else "billing: nobody leads"


def _cards(view: Status, identity: Mapping[str, Any]) -> str:
    now = view.database_time
    age = view.heartbeat_age_seconds
    late = age is None or age > HEARTBEAT_LATE_SECONDS
    since = f", since {_when(view.leading_since)}" if view.leading_since else ""
    if view.running_since:
        cycle, below, tone = "under way", f"for {_span((now - view.running_since).total_seconds())}", "wait"
    elif view.next_cycle_at is None:
        cycle, below, tone = "at once", "no cycle has completed yet", "wait"
    else:
        ahead = (view.next_cycle_at - now).total_seconds()
        cycle, tone = (f"in {_span(ahead)}", "") if ahead > 0 else (f"due for {_span(-ahead)}", "wait")
        below = _when(view.next_cycle_at)
    standbys = ", ".join(view.standbys)
    cards = [
        _card("Leader", view.leader or "nobody", f"term {view.term}{since}", "good" if view.leader else "bad"),
        _card("Standbys", f"{len(view.standbys)}", standbys or "nobody would take over", "" if standbys else "wait"),
        _card("Next cycle", cycle, below, tone),
        _card(
            "Heartbeat",
            "none yet" if age is None else f"{_span(age)} ago",
            "from 90 minutes on the application bills by itself",
            "bad" if late else "good",
        ),
        _card("Debts", f"{view.debts}", f"{view.owed} {identity['currency']} owed", "wait" if view.debts else ""),
        _card("Not charged", f"{view.failures}", "instances, for their data", "bad" if view.failures else ""),
        _card("Suspended", f"{view.suspended}", "organizations excluded from billing", "bad" if view.suspended else ""),
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(label: str, value: str, below: str, tone: str) -> str:
    return (
        f'<div class="card"><span>{_text(label)}</span><b class="{_text(tone)}">{_text(value)}</b>'
        f"<span>{_text(below)}</span></div>"
    )


def _runs(runs: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> str:
    if not runs:
        return '<h2>Last cycles</h2><p class="soft">None yet.</p>'
    heads = ("Cycle", "Began", "Outcome", "Leader", "Term")
    figures = ("Seconds", "Instances", "Hours", f"Amount ({identity['currency']})", "Debts", "Failures")
    head = "".join(f"<th>{_text(h)}</th>" for h in heads) + "".join(f'<th class="n">{_text(h)}</th>' for h in figures)
    return (
        f'<h2>Last cycles</h2><div class="scroll"><table><thead><tr>{head}<th>Error</th></tr></thead>'
        f"<tbody>{''.join(_run(run) for run in runs)}</tbody></table></div>"
    )


def _run(run: Mapping[str, Any]) -> str:
    began, finished = run["started_at"], run["finished_at"]
    outcome = str(run["outcome"])
    seconds = f"{(finished - began).total_seconds():.1f}" if finished else ""
    facts = (str(run["id"]), _when(began), outcome, run["holder"], run["term"])
    cells = [f"<td>{_text(fact)}</td>" for fact in facts]
    cells[2] = f'<td class="{_TONES.get(outcome, "")}">{_text(outcome)}</td>'
    figures = (seconds, run["instances"], run["hours"], _amount(run["amount"]), run["debts"], run["failures"])
    cells += [f'<td class="n">{_text(figure)}</td>' for figure in figures]
    return f'<tr>{"".join(cells)}<td class="text">{_text(run["error"] or "")}</td></tr>'


def _replica(identity: Mapping[str, Any], vitals: Vitals, problems: Sequence[str]) -> str:
    role = f"{vitals.role}, term {vitals.term}" if vitals.term is not None else str(vitals.role)
    facts = [
        ("Replica", identity["instance"]),
        ("Role", role),
        ("Health", "ready" if not problems else "not ready"),
        ("Version", identity["version"]),
        ("Pod", identity["pod"]),
        ("Node", identity["node"]),
    ]
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts if value)
    return f'<h2>This replica</h2><div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _footer(view: Status | None) -> str:
    read = f"As of {_text(_when(view.database_time))} by the database's clock. " if view else ""
    return (
        f'<footer>{read}<a href="/status.json">status.json</a> · <a href="/metrics">metrics</a> ·'
        ' <a href="/readyz">readyz</a> · <a href="/livez">livez</a></footer>'
    )


def _text(value: object) -> str:
    """The only way by which a value reaches the document."""
    return escape(str(value), quote=True)


def _when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _amount(value: object) -> str:
    return f"{Decimal(str(value)):.2f}"


def _span(seconds: float) -> str:
    """Some time, in the two units that matter."""
    whole = max(int(seconds), 0)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"
