"""The operator's pages, on an address apart from the HTTP port. They name customers and ask for no password.

- They listen on loopback unless BILLING_PAGE_ADDRESS says otherwise. `kubectl port-forward` and `ssh -L` reach them.
- A website can point its own name at 127.0.0.1 and read a page on loopback through its visitor's browser (DNS
  rebinding). The browser then sends that name as `Host`, so names other than ours are refused.
- Each explanation is read under the session's statement timeout, and at most MAX_EXPLAINING at once.
"""

import ipaddress
import threading
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol
from uuid import UUID

import structlog

from controller.billing.answers import Explanation, NameNotFoundError, Subject
from controller.billing.page_facts import OperatorFacts
from controller.errors import BillingError
from controller.listener import EVERY_INTERFACE
from controller.log import WarnOnce
from controller.web import explain_page, operator_page
from controller.web.health import Vitals
from controller.web.status_cache import StatusCache
from controller.web.wsgi import HTML, TEXT, Identity, Request, Response, answer

#: The page reloads at this interval.
REFRESH_SECONDS: Final = 30
#: Fewer than the server's threads, so that the overview is always answered.
MAX_EXPLAINING: Final = 2
#: Every name of loopback that a browser on this host or behind a port-forward uses.
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

log = structlog.get_logger(part="web")


class Explainer(Protocol):
    """Reads explanations in bounded time. Both methods raise DatabaseUnreachableError if the database can't be read."""

    def find(self, name: str) -> Sequence[Subject]:
        """Returns the organizations and instances that a name may refer to."""

    def explain(self, subject: UUID) -> Explanation:
        """Explains an organization or an instance. Raises NameNotFoundError if there is none with the id."""


class OperatorRoutes:
    """The application that a server calls from any of its threads.

    Args:
        identity: this replica's identity.
        vitals: returns this replica's vitals at once.
        failed_checks: returns why this replica is not live or not ready, from its vitals.
        status_cache: reads the operator's facts.
        explainer: reads explanations.
        host: the host that the server listens on, as `listener.parse_address` returns it.
    """

    def __init__(
        self,
        identity: Identity,
        vitals: Callable[[], Vitals],
        failed_checks: Callable[[Vitals], Sequence[str]],
        status_cache: StatusCache[OperatorFacts],
        explainer: Explainer,
        *,
        host: str,
    ) -> None:
        self._identity = identity
        self._vitals = vitals
        self._failed_checks = failed_checks
        self._status_cache = status_cache
        self._explainer = explainer
        self._host = host
        self._explaining = threading.BoundedSemaphore(MAX_EXPLAINING)
        self._failures = WarnOnce(log, "page.failed", level="error")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """Answers one request; the WSGI entry point."""
        return answer(environ, start_response, self._route, self._failures)

    def _route(self, request: Request) -> Response:
        if not is_expected_host(request.host, self._host):
            text = "this server answers only to localhost and to its own address; see BILLING_PAGE_ADDRESS\n"
            return Response(HTTPStatus.MISDIRECTED_REQUEST, TEXT, text)
        match request.path.split("/"):
            case ["", ""]:
                return self._overview(reload=request.query.get("reload") != "off")
            case ["", "explain"]:
                return self._bounded(lambda: self._find(request.query.get("name", "").strip()))
            case ["", "explain", subject]:
                return self._bounded(lambda: self._explain(subject))
        return _error(HTTPStatus.NOT_FOUND, "There is no such page", None)

    def _overview(self, *, reload: bool) -> Response:
        snapshot = self._status_cache.get()
        vitals = self._vitals()
        seconds = REFRESH_SECONDS if reload else None
        body = operator_page.render(
            self._identity, vitals, self._failed_checks(vitals), snapshot, refresh_seconds=seconds
        )
        headers = (("Refresh", str(REFRESH_SECONDS)),) if reload else ()
        ok = snapshot.facts is not None
        return Response(HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE, HTML, body, headers)

    def _bounded(self, read: Callable[[], Response]) -> Response:
        if not self._explaining.acquire(blocking=False):
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "Other explanations are being read; try again", None)
        try:
            return read()
        except NameNotFoundError as error:
            return _error(HTTPStatus.NOT_FOUND, "There is no such organization or instance", str(error))
        except BillingError as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "The database can't answer", str(error))
        finally:
            self._explaining.release()

    def _find(self, name: str) -> Response:
        found = self._explainer.find(name) if name else ()
        if len(found) == 1:
            target = f"/explain/{found[0].instance_id or found[0].organization_id}"
            return Response(HTTPStatus.SEE_OTHER, TEXT, "", (("Location", target),))
        status = HTTPStatus.OK if found else HTTPStatus.NOT_FOUND
        return Response(status, HTML, explain_page.render_choice(name, found))

    def _explain(self, subject: str) -> Response:
        try:
            wanted = UUID(subject)
        except ValueError:
            return _error(HTTPStatus.NOT_FOUND, "There is no such page", "an explanation's address ends with an id")
        body = explain_page.render(self._explainer.explain(wanted), self._identity.currency)
        return Response(HTTPStatus.OK, HTML, body)


def is_expected_host(header: str, listening_on: str) -> bool:
    """Returns True if a request with this `Host` was meant for this server, not for a website whose name points here.

    Args:
        header: the value of `Host`. Its port may differ from the server's, because a port-forward may change it.
        listening_on: the server's host. If that is every interface, any literal address is accepted too, because DNS
            rebinding needs a name.
    """
    host, bracket, _ = header.removeprefix("[").partition("]") if header.startswith("[") else header.partition(":")
    host = host.lower().removesuffix(".")
    if header.startswith("[") and not bracket:
        return False
    if host in LOOPBACK or host == listening_on.lower():
        return True
    return _is_every_interface(listening_on) and _address(host) is not None


def _is_every_interface(host: str) -> bool:
    address = _address(host)
    return host == EVERY_INTERFACE or (address is not None and address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _error(status: HTTPStatus, title: str, detail: str | None) -> Response:
    return Response(status, HTML, explain_page.render_error(title, detail))
