"""The WSGI application: maps each path to its answer."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog

from controller.billing.verdict import verdict
from controller.log import WarnOnce
from controller.web.health import Vitals, why_not_live, why_not_ready
from controller.web.status_cache import Snapshot, StatusCache
from controller.web.status_page import STYLE_HASH, render
from controller.wording import json_value

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"

#: The page reloads at this interval.
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
    """How this replica presents itself.

    Attributes:
        instance: the id of this process.
        version: of the controller.
        lock: the lock's name.
        currency: of all amounts.
        pod: name of the pod, in Kubernetes.
        node: name of its node, in Kubernetes.
    """

    instance: str
    version: str
    lock: str
    currency: str
    pod: str | None = None
    node: str | None = None


@dataclass(frozen=True)
class _Response:
    status: HTTPStatus
    content_type: str
    body: str | bytes
    extra_headers: tuple[tuple[str, str], ...] = ()


class Routes:
    """The application that a server calls from any of its threads.

    Args:
        identity: of this replica.
        vitals: returns this replica's vitals at once.
        status_cache: reads the database.
        metrics: renders the metrics for Prometheus, in bounded time.
        session_timeout_seconds: the server ends a lock session that is silent for longer.
        separate_worker_url: True if the workers use another connection string than the lock session.
    """

    def __init__(
        self,
        identity: Identity,
        vitals: Callable[[], Vitals],
        status_cache: StatusCache,
        metrics: Callable[[], bytes],
        session_timeout_seconds: float,
        *,
        separate_worker_url: bool = False,
    ) -> None:
        self._identity = identity
        self._vitals = vitals
        self._status_cache = status_cache
        self._metrics = metrics
        self._session_timeout_seconds = session_timeout_seconds
        self._separate_worker_url = separate_worker_url
        self._failures = WarnOnce(log, "page.failed", level="error")
        self._handlers: dict[str, Callable[[], _Response]] = {
            "/": self._page,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics_text,
            "/status.json": self._status_json,
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """Answers one request; the WSGI entry point."""
        response = self._respond(environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", ""))
        body = response.body.encode() if isinstance(response.body, str) else response.body
        start_response(
            f"{response.status.value} {response.status.phrase}",
            [
                ("Content-Type", response.content_type),
                ("Content-Length", str(len(body))),
                *_HEADERS,
                *response.extra_headers,
            ],
        )
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _respond(self, method: str, path: str) -> _Response:
        handler = self._handlers.get(path)
        if handler is None:
            return _Response(HTTPStatus.NOT_FOUND, TEXT, f"not found; try {' '.join(self._handlers)}\n")
        if method not in {"GET", "HEAD"}:
            allow = (("Allow", "GET, HEAD"),)
            return _Response(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, "this server only answers GET and HEAD\n", allow)
        try:
            response = handler()
        except Exception as error:  # noqa: BLE001 - a defect in a page must not stop billing
            self._failures.failed(path, path=path, exc_info=error)
            return _Response(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, "internal error; see the log\n")
        self._failures.worked(path)
        return response

    def _livez(self) -> _Response:
        return _probe(why_not_live(self._vitals(), self._session_timeout_seconds))

    def _readyz(self) -> _Response:
        vitals = self._vitals()
        passed = "ok"
        if vitals.halted:
            passed = f"billing is halted: {vitals.halted}\n"
        if vitals.draining:
            passed = "draining: this replica is stopping\n"
        return _probe(self._why_not_ready(vitals), passed)

    def _why_not_ready(self, vitals: Vitals) -> list[str]:
        unreachable = self._status_cache.why_never_read() if self._separate_worker_url else None
        return why_not_ready(vitals, self._session_timeout_seconds, unreachable)

    def _metrics_text(self) -> _Response:
        return _Response(HTTPStatus.OK, METRICS, self._metrics())

    def _status_json(self) -> _Response:
        snapshot = self._status_cache.get()
        vitals = self._vitals()
        replica = asdict(self._identity) | {
            "role": vitals.role,
            "leads_in_term": vitals.term,
            "draining": vitals.draining,
            "silent_seconds": round(vitals.silent_seconds, 3),
            "not_live": why_not_live(vitals, self._session_timeout_seconds),
            "not_ready": self._why_not_ready(vitals),
        }
        body = json.dumps(_status_fields(snapshot) | {"replica": replica}, default=json_value)
        return _Response(_http_status(snapshot), JSON, body + "\n")

    def _page(self) -> _Response:
        snapshot = self._status_cache.get()
        vitals = self._vitals()
        failed_checks = why_not_live(vitals, self._session_timeout_seconds) or self._why_not_ready(vitals)
        body = render(asdict(self._identity), vitals, failed_checks, snapshot)
        return _Response(_http_status(snapshot), HTML, body, (("Refresh", str(REFRESH_SECONDS)),))


def _probe(reasons: list[str], passed: str = "ok") -> _Response:
    if reasons:
        return _Response(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, "\n".join(reasons) + "\n")
    return _Response(HTTPStatus.OK, TEXT, passed)


def _http_status(snapshot: Snapshot) -> HTTPStatus:
    return HTTPStatus.OK if snapshot.status is not None else HTTPStatus.SERVICE_UNAVAILABLE


def _status_fields(snapshot: Snapshot) -> dict[str, Any]:
    """Returns the status and the runs, or the error. The last run comes from the runs, which are redacted."""
    if snapshot.status is None:
        return {"error": snapshot.error}
    finished = next((dict(run) for run in snapshot.runs if run["outcome"] != "running"), None)
    judged = verdict(snapshot.status)
    return (
        {"verdict": judged.level, "reasons": judged.reasons}
        | snapshot.status.as_dict()
        | {"last_run": finished, "runs": [dict(run) for run in snapshot.runs]}
    )
