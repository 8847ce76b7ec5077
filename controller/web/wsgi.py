"""What both HTTP servers have in common: the request, the response, and the rules for every answer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from controller.log import WarnOnce
from controller.web.style import STYLE_HASH

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"

#: Forms may only go to the page's own server. The operator's search needs that.
_POLICY: Final = (
    f"default-src 'none'; style-src '{STYLE_HASH}'; img-src data:;"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Content-Security-Policy", _POLICY),
]


@dataclass(frozen=True)
class Identity:
    """How this replica presents itself.

    Attributes:
        instance: the id of this process.
        version: the controller's version.
        lock: the lock's name.
        currency: the currency of all amounts.
        pod: the pod's name, in Kubernetes.
        node: the name of its node, in Kubernetes.
    """

    instance: str
    version: str
    lock: str
    currency: str
    pod: str | None = None
    node: str | None = None


@dataclass(frozen=True)
class Request:
    """A request with GET or HEAD.

    Attributes:
        path: decoded.
        query: the first value of each parameter, at most ten parameters.
        host: the header `Host`; empty if there is none.
    """

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    host: str = ""


@dataclass(frozen=True)
class Response:
    """An answer. `body` is text in UTF-8, or bytes."""

    status: HTTPStatus
    content_type: str
    body: str | bytes
    extra_headers: tuple[tuple[str, str], ...] = ()


def answer(
    environ: dict[str, Any],
    start_response: Callable[..., object],
    route: Callable[[Request], Response],
    failures: WarnOnce,
) -> Iterable[bytes]:
    """Answers one request of the WSGI server.

    Args:
        environ: the request's WSGI environment.
        start_response: takes the status and the headers.
        route: returns the response. If it raises, the client gets 500 without the error's text.
        failures: logs such an error.
    """
    method = environ.get("REQUEST_METHOD", "")
    response = _respond(method, _request(environ), route, failures)
    body = response.body.encode() if isinstance(response.body, str) else response.body
    headers = [("Content-Type", response.content_type), ("Content-Length", str(len(body)))]
    start_response(f"{response.status.value} {response.status.phrase}", [*headers, *_HEADERS, *response.extra_headers])
    return [] if method == "HEAD" else [body]


def _request(environ: dict[str, Any]) -> Request:
    try:
        # WSGI decodes the path as Latin-1
        path = environ.get("PATH_INFO", "").encode("latin-1").decode()
        pairs = parse_qsl(environ.get("QUERY_STRING", ""), max_num_fields=10)
    except ValueError:
        return Request("")
    return Request(path, dict(reversed(pairs)), environ.get("HTTP_HOST", ""))


def _respond(method: str, request: Request, route: Callable[[Request], Response], failures: WarnOnce) -> Response:
    if method not in {"GET", "HEAD"}:
        allow = (("Allow", "GET, HEAD"),)
        return Response(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, "this server only answers GET and HEAD\n", allow)
    kind = request.path[1:].partition("/")[0]
    try:
        response = route(request)
    except Exception as error:  # noqa: BLE001 - a defect in a page must not stop billing
        failures.failed(kind, path=request.path, exc_info=error)
        return Response(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, "internal error; see the log\n")
    failures.worked(kind)
    return response
