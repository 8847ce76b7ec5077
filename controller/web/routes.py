"""The paths, as a WSGI application: what is asked, and in which words it is answered."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

import structlog

from controller.log import WarnOnce
from controller.web.health import Vitals, why_not_live, why_not_ready
from controller.web.status_cache import Snapshot, StatusCache
from controller.web.status_page import STYLE_HASH, render

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"

#: The page renews itself so often.
REFRESH_SECONDS: Final = 10

_POLICY: Final = (
    f"default-src 'none'; style-src '{STYLE_HASH}'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", _POLICY),
]

log = structlog.get_logger(part="web")


@dataclass(frozen=True)
class Identity:
    """Who this replica is; shown to people.

    Attributes:
        instance: `hostname-pid`.
        version: of the controller.
        lock: the lock's name.
        currency: of the amounts.
        pod: its name, in Kubernetes.
        node: likewise.
    """

    instance: str
    version: str
    lock: str
    currency: str
    pod: str | None = None
    node: str | None = None


@dataclass(frozen=True)
class _Answer:
    status: HTTPStatus
    kind: str
    body: str | bytes
    more: tuple[tuple[str, str], ...] = ()


class Routes:
    """The application that a server calls, on any number of threads.

    Args:
        identity: of this replica.
        vitals: of this replica, at the moment of the call; must return at once.
        reader: of the database.
        metrics: the exposition for Prometheus; bounded in time by `reader`.
        session_timeout_seconds: see `why_not_ready`.
        workers_apart: whether the workers reach the database by another address than the lock session.
    """

    def __init__(
        self,
        identity: Identity,
        vitals: Callable[[], Vitals],
        reader: StatusCache,
        metrics: Callable[[], bytes],
        session_timeout_seconds: float,
        *,
        workers_apart: bool = False,
    ) -> None:
        self._identity = identity
        self._vitals = vitals
        self._reader = reader
        self._metrics = metrics
        self._session_timeout_seconds = session_timeout_seconds
        self._workers_apart = workers_apart
        self._failures = WarnOnce(log, "page.failed", level="error")
        self._paths: dict[str, Callable[[], _Answer]] = {
            "/": self._page,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._exposition,
            "/status.json": self._status,
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """WSGI."""
        answer = self._answer(environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", ""))
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        start_response(
            f"{answer.status.value} {answer.status.phrase}",
            [("Content-Type", answer.kind), ("Content-Length", str(len(body))), *_HEADERS, *answer.more],
        )
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _answer(self, method: str, path: str) -> _Answer:
        answer = self._paths.get(path)
        if answer is None:
            return _Answer(HTTPStatus.NOT_FOUND, TEXT, f"not here; try {' '.join(self._paths)}\n")
        if method not in {"GET", "HEAD"}:
            return _Answer(
                HTTPStatus.METHOD_NOT_ALLOWED, TEXT, "nothing can be changed here\n", (("Allow", "GET, HEAD"),)
            )
        try:
            response = answer()
        except Exception as error:  # noqa: BLE001 - a mistake in a page is no reason to stop billing
            self._failures.failed(path, path=path, exc_info=error)
            return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, "this page has a mistake in it; see the log\n")
        self._failures.worked(path)
        return response

    def _livez(self) -> _Answer:
        return _probe(why_not_live(self._vitals(), self._session_timeout_seconds))

    def _readyz(self) -> _Answer:
        return _probe(self._why_not_ready(self._vitals()))

    def _why_not_ready(self, vitals: Vitals) -> list[str]:
        unproven = self._reader.why_unproven() if self._workers_apart else None
        return why_not_ready(vitals, self._session_timeout_seconds, unproven)

    def _exposition(self) -> _Answer:
        return _Answer(HTTPStatus.OK, METRICS, self._metrics())

    def _status(self) -> _Answer:
        reading = self._reader.get()
        vitals = self._vitals()
        replica = asdict(self._identity) | {
            "role": vitals.role,
            "leads_in_term": vitals.term,
            "draining": vitals.draining,
            "silent_seconds": round(vitals.silent_seconds, 3),
            "not_live": why_not_live(vitals, self._session_timeout_seconds),
            "not_ready": self._why_not_ready(vitals),
        }
        facts = _facts(reading) if reading.status else {"error": reading.error}
        return _Answer(_known(reading), JSON, json.dumps(facts | {"replica": replica}, default=_plain) + "\n")

    def _page(self) -> _Answer:
        reading = self._reader.get()
        vitals = self._vitals()
        problems = why_not_live(vitals, self._session_timeout_seconds) or self._why_not_ready(vitals)
        body = render(asdict(self._identity), vitals, problems, reading)
        return _Answer(_known(reading), HTML, body, (("Refresh", str(REFRESH_SECONDS)),))


def _probe(reasons: list[str]) -> _Answer:
    if reasons:
        return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, "\n".join(reasons) + "\n")
    return _Answer(HTTPStatus.OK, TEXT, "ok")


def _known(reading: Snapshot) -> HTTPStatus:
    return HTTPStatus.OK if reading.status is not None else HTTPStatus.SERVICE_UNAVAILABLE


def _facts(reading: Snapshot) -> dict[str, Any]:
    """The Status, its last run in the words of the history, which have been redacted."""
    if reading.status is None:
        return {}
    facts = reading.status.as_dict()
    ended = next((dict(run) for run in reading.runs if run["outcome"] != "running"), None)
    return facts | {"last_run": ended, "runs": [dict(run) for run in reading.runs]}


def _plain(value: object) -> str:
    """Times in RFC 3339, amounts as text, so that nobody reads them as floats."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
