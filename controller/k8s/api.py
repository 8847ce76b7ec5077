"""Three requests to the API server, by the official client; every failure is an ApiError of some kind."""

import json
from collections.abc import Callable
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from controller.errors import BillingError, one_line
from controller.k8s.pod import Pod

#: For connecting and for the answer together.
REQUEST_SECONDS: Final = 3.0
#: Characters of an error's text; a proxy may answer with a whole page.
MAX_ERROR: Final = 300

ROLE_LABEL: Final = "billing.containerstacks.io/role"
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"


class Trouble(StrEnum):
    """What is wrong, sorted by what can be done about it."""

    AWAY = "the API server does not answer, or is too busy"
    FORBIDDEN = "not permitted: see the permissions in the chart's README"
    MISSING = "not found"
    REFUSED = "the request was refused"


class ApiError(BillingError):
    """A request failed; the text is one line."""

    def __init__(self, trouble: Trouble, detail: str) -> None:
        super().__init__(detail)
        self.trouble = trouble

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed soon."""
        return self.trouble is Trouble.AWAY


def in_cluster_configuration() -> Any:  # noqa: ANN401 - imported where it is called
    """The official client's, from the service account that the kubelet mounted; it re-reads the token as it rotates.

    Raises:
        kubernetes.config.ConfigException: there is none.
    """
    from kubernetes.client import Configuration  # noqa: PLC0415 - heavy, and only for this thread
    from kubernetes.config import load_incluster_config  # noqa: PLC0415

    configuration = Configuration()
    load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call] # the client's
    return configuration


class Api:
    """The requests. Of one thread; blocks for REQUEST_SECONDS at most.

    Args:
        configuration: the official client's.
        place: whose pod, in which namespace.
    """

    def __init__(self, configuration: Any, place: Pod) -> None:  # noqa: ANN401 - the client's own type
        import urllib3  # noqa: PLC0415 - comes with the client
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415
        from kubernetes.client.rest import RESTClientObject  # noqa: PLC0415
        from kubernetes.config import ConfigException  # noqa: PLC0415

        configuration.retries = False  # the announcer decides when to try again; urllib3 would also log each try
        self._configuration = configuration
        self._place = place
        self._connection: Any = RESTClientObject(configuration)
        self._answered_badly: type[Exception] = ApiException
        self._failures = (urllib3.exceptions.HTTPError, ApiException, ConfigException, OSError, ValueError)

    def show_role(self, role: str, deletion_cost: int, seconds: float) -> None:
        """Sets this pod's label and annotation."""
        metadata = {"labels": {ROLE_LABEL: role}, "annotations": {DELETION_COST: str(deletion_cost)}}
        path = f"/api/v1/namespaces/{_quoted(self._place.namespace)}/pods/{_quoted(self._place.pod)}"
        self._request("PATCH", path, seconds, {"metadata": metadata}, content_type="application/merge-patch+json")

    def deployment_uid(self, name: str, seconds: float) -> str:
        """Of a Deployment in this pod's namespace."""
        path = f"/apis/apps/v1/namespaces/{_quoted(self._place.namespace)}/deployments/{_quoted(name)}"
        uid = self._request("GET", path, seconds).get("metadata", {}).get("uid")
        if not isinstance(uid, str):
            raise ApiError(Trouble.REFUSED, "the answer has no metadata.uid")
        return uid

    def create_event(self, body: dict[str, Any], seconds: float) -> None:
        """Creates an Event. One of this name that is there already was made by an earlier try."""
        path = f"/apis/events.k8s.io/v1/namespaces/{_quoted(self._place.namespace)}/events"
        self._request("POST", path, seconds, body, accept=(HTTPStatus.CONFLICT,))

    def close(self) -> None:
        """Closes its connections."""
        self._connection.pool_manager.clear()

    def _request(
        self,
        method: str,
        path: str,
        seconds: float,
        body: dict[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        accept: tuple[HTTPStatus, ...] = (),
    ) -> dict[str, Any]:
        try:
            status, text = self._exchange(method, path, seconds, body, content_type)
        except self._failures as error:
            raise ApiError(Trouble.AWAY, one_line(f"{type(error).__name__}: {error}")[:MAX_ERROR]) from None
        answer = _parsed(text)
        if status not in accept and not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise ApiError(_sort(status), one_line(f"{status} {answer.get('message', '')}")[:MAX_ERROR])
        return answer

    def _exchange(
        self,
        method: str,
        path: str,
        seconds: float,
        body: dict[str, Any] | None,
        content_type: str,
    ) -> tuple[int, bytes]:
        headers = {"Accept": "application/json", "User-Agent": "containerstacks-billing"}
        if body is not None:
            headers["Content-Type"] = content_type
        for auth in self._configuration.auth_settings().values():
            headers[auth["key"]] = auth["value"].strip()
        try:
            response = self._connection.request(
                method,
                self._configuration.host + path,
                headers=headers,
                body=body,
                _request_timeout=min(seconds, REQUEST_SECONDS),
            )
        except self._answered_badly as error:  # older releases raise here for every status that is not 2xx
            status = getattr(error, "status", None)
            if not status:
                raise
            return int(status), _bytes(getattr(error, "body", b""))
        read: Callable[[], object] | None = getattr(response, "read", None)
        return int(response.status), _bytes(read() if read else response.data)


def _sort(status: int) -> Trouble:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Trouble.FORBIDDEN
    if status == HTTPStatus.NOT_FOUND:
        return Trouble.MISSING
    busy = status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS}
    return Trouble.AWAY if busy or status >= HTTPStatus.INTERNAL_SERVER_ERROR else Trouble.REFUSED


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _parsed(text: bytes) -> dict[str, Any]:
    """The object in an answer; a proxy on the way may answer with something else."""
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _bytes(data: object) -> bytes:
    return data if isinstance(data, bytes) else str(data or "").encode()
