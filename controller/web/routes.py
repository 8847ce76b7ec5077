"""The public HTTP port: probes, metrics and status. None of its answers names a customer."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

import structlog

from controller.billing.page_facts import PublicFacts
from controller.billing.verdict import verdict
from controller.log import WarnOnce
from controller.web.health import Vitals, why_not_live, why_not_ready
from controller.web.status_cache import Snapshot, StatusCache
from controller.web.status_page import render
from controller.web.wsgi import HTML, JSON, METRICS, TEXT, Identity, Request, Response, answer
from controller.wording import json_value

#: The page reloads at this interval.
REFRESH_SECONDS: Final = 30

log = structlog.get_logger(part="web")


class Routes:
    """The application that a server calls from any of its threads.

    Args:
        identity: this replica's identity.
        vitals: returns this replica's vitals at once.
        status_cache: reads the public facts.
        metrics: renders the metrics for Prometheus, in bounded time.
        session_timeout_seconds: the server ends a lock session that is silent for longer.
        separate_worker_url: True if the workers' connection string differs from the lock session's.
    """

    def __init__(
        self,
        identity: Identity,
        vitals: Callable[[], Vitals],
        status_cache: StatusCache[PublicFacts],
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
        self._handlers: dict[str, Callable[[], Response]] = {
            "/": self._page,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics_text,
            "/status.json": self._status_json,
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """Answers one request; the WSGI entry point."""
        return answer(environ, start_response, self._route, self._failures)

    def _route(self, request: Request) -> Response:
        handler = self._handlers.get(request.path)
        if handler is None:
            return Response(HTTPStatus.NOT_FOUND, TEXT, f"not found; try {' '.join(self._handlers)}\n")
        return handler()

    def _livez(self) -> Response:
        return _probe(why_not_live(self._vitals(), self._session_timeout_seconds))

    def _readyz(self) -> Response:
        vitals = self._vitals()
        passed = "ok"
        if vitals.halted:
            passed = f"billing is halted: {vitals.halted}\n"
        if vitals.draining:
            passed = "draining: this replica is stopping\n"
        return _probe(self._why_not_ready(vitals), passed)

    def failed_checks(self, vitals: Vitals) -> list[str]:
        """Returns why this replica is not live, or not ready; one line for each failed check."""
        return why_not_live(vitals, self._session_timeout_seconds) or self._why_not_ready(vitals)

    def _why_not_ready(self, vitals: Vitals) -> list[str]:
        unreachable = self._status_cache.why_never_read() if self._separate_worker_url else None
        return why_not_ready(vitals, self._session_timeout_seconds, unreachable)

    def _metrics_text(self) -> Response:
        return Response(HTTPStatus.OK, METRICS, self._metrics())

    def _status_json(self) -> Response:
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
        return Response(_http_status(snapshot), JSON, body + "\n")

    def _page(self) -> Response:
        snapshot = self._status_cache.get()
        vitals = self._vitals()
        body = render(self._identity, vitals, self.failed_checks(vitals), snapshot)
        return Response(_http_status(snapshot), HTML, body, (("Refresh", str(REFRESH_SECONDS)),))


def _probe(reasons: list[str], passed: str = "ok") -> Response:
    if reasons:
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, "\n".join(reasons) + "\n")
    return Response(HTTPStatus.OK, TEXT, passed)


def _http_status(snapshot: Snapshot[PublicFacts]) -> HTTPStatus:
    return HTTPStatus.OK if snapshot.facts is not None else HTTPStatus.SERVICE_UNAVAILABLE


def _status_fields(snapshot: Snapshot[PublicFacts]) -> dict[str, Any]:
    """Returns the status and the runs, or the error."""
    facts = snapshot.facts
    if facts is None:
        return {"error": snapshot.error}
    finished = next((run for run in facts.runs if run["outcome"] != "running"), None)
    judged = verdict(facts.status)
    return (
        {"verdict": judged.level, "reasons": judged.reasons}
        | facts.status.as_dict()
        | {"last_run": finished, "runs": list(facts.runs)}
    )
