"""Five requests to the API server, through the official client. Every failure is an ApiError."""

import json
from collections.abc import Callable
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from controller.errors import BillingError, one_line
from controller.k8s.pod import Pod

#: The bound on a whole request, from connecting to the answer.
REQUEST_SECONDS: Final = 3.0
#: The longest text of an error, in characters. A proxy may answer with a whole page.
MAX_ERROR: Final = 300

ROLE_LABEL: Final = "billing.containerstacks.io/role"
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"


class FailureKind(StrEnum):
    """What is wrong, classified by the remedy."""

    UNAVAILABLE = "the API server does not answer or is too busy"
    FORBIDDEN = "not permitted; see the permissions in the chart's README"
    NOT_FOUND = "not found"
    REJECTED = "the API server rejected the request"


class ApiError(BillingError):
    """A request failed. The text is one line."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind

    @property
    def transient(self) -> bool:
        """True if the same request may succeed soon."""
        return self.kind is FailureKind.UNAVAILABLE


def in_cluster_configuration() -> Any:  # noqa: ANN401 - the client is imported only here
    """Returns the official client's configuration for the mounted service account. It follows the token's rotation.

    Raises:
        kubernetes.config.ConfigException: there is no service account.
    """
    from kubernetes.client import Configuration  # noqa: PLC0415 - a large import that only a cluster needs
    from kubernetes.config import load_incluster_config  # noqa: PLC0415

    configuration = Configuration()
    load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call] # the client has no types
    return configuration


class Api:
    """Sends the requests, for one thread. A request blocks for at most REQUEST_SECONDS.

    Args:
        configuration: the official client's configuration.
        pod: the pod to label; its namespace is used for every request.
    """

    def __init__(self, configuration: Any, pod: Pod) -> None:  # noqa: ANN401 - the client has no types
        import urllib3  # noqa: PLC0415 - comes with the client
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415
        from kubernetes.client.rest import RESTClientObject  # noqa: PLC0415
        from kubernetes.config import ConfigException  # noqa: PLC0415

        configuration.retries = False  # the announcer retries; urllib3 would also log each attempt
        self._configuration = configuration
        self._pod = pod
        self._connection: Any = RESTClientObject(configuration)
        self._status_error: type[Exception] = ApiException
        self._failures = (urllib3.exceptions.HTTPError, ApiException, ConfigException, OSError, ValueError)

    def show_role(self, role: str, deletion_cost: int, seconds: float) -> None:
        """Sets the pod's label and annotation, within `seconds`."""
        metadata = {"labels": {ROLE_LABEL: role}, "annotations": {DELETION_COST: str(deletion_cost)}}
        path = f"/api/v1/namespaces/{_quoted(self._pod.namespace)}/pods/{_quoted(self._pod.name)}"
        self._request("PATCH", path, seconds, {"metadata": metadata}, content_type="application/merge-patch+json")

    def show_former_leader(self, former: Pod, deletion_cost: int, seconds: float) -> None:
        """Labels another pod as a standby if its label still says `leader`. Takes at most `seconds`.

        The API server compares the pod's uid and label in the same step. If the pod is gone, is a new pod with the same
        name, or has another label, there is nothing to do.
        """
        role, cost = f"/metadata/labels/{_pointer(ROLE_LABEL)}", f"/metadata/annotations/{_pointer(DELETION_COST)}"
        patch: list[dict[str, Any]] = [
            {"op": "test", "path": "/metadata/uid", "value": former.uid},
            {"op": "test", "path": role, "value": "leader"},
            {"op": "replace", "path": role, "value": "standby"},
            {"op": "replace", "path": cost, "value": str(deletion_cost)},
        ]
        path = f"/api/v1/namespaces/{_quoted(former.namespace)}/pods/{_quoted(former.name)}"
        nothing_to_do = HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY
        self._request("PATCH", path, seconds, patch, content_type="application/json-patch+json", accept=nothing_to_do)

    def deployment_uid(self, name: str, seconds: float) -> str:
        """Returns the uid of a Deployment in the pod's namespace, within `seconds`."""
        path = f"/apis/apps/v1/namespaces/{_quoted(self._pod.namespace)}/deployments/{_quoted(name)}"
        uid = self._request("GET", path, seconds).get("metadata", {}).get("uid")
        if not isinstance(uid, str):
            raise ApiError(FailureKind.REJECTED, "the answer has no metadata.uid")
        return uid

    def create_event(self, body: dict[str, Any], seconds: float) -> None:
        """Creates an Event, within `seconds`. If it exists, an earlier attempt created it."""
        path = f"/apis/events.k8s.io/v1/namespaces/{_quoted(self._pod.namespace)}/events"
        self._request("POST", path, seconds, body, accept=(HTTPStatus.CONFLICT,))

    def may(self, verb: str, group: str, resource: str, name: str | None, seconds: float) -> bool:
        """Returns True if this service account has a permission in the pod's namespace. Changes nothing."""
        attributes = {
            "namespace": self._pod.namespace,
            "verb": verb,
            "group": group,
            "resource": resource,
            "name": name,
        }
        spec = {"resourceAttributes": {key: value for key, value in attributes.items() if value is not None}}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(self._request("POST", path, seconds, {"spec": spec}).get("status", {}).get("allowed"))

    def close(self) -> None:
        """Closes the connections."""
        self._connection.pool_manager.clear()

    def _request(
        self,
        method: str,
        path: str,
        seconds: float,
        body: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        content_type: str = "application/json",
        accept: tuple[HTTPStatus, ...] = (),
    ) -> dict[str, Any]:
        try:
            status, text = self._exchange(method, path, seconds, body, content_type)
        except self._failures as error:
            raise ApiError(FailureKind.UNAVAILABLE, one_line(f"{type(error).__name__}: {error}")[:MAX_ERROR]) from None
        answer = _parsed(text)
        if status not in accept and not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise ApiError(_failure_kind(status), one_line(f"{status} {answer.get('message', '')}")[:MAX_ERROR])
        return answer

    def _exchange(
        self,
        method: str,
        path: str,
        seconds: float,
        body: dict[str, Any] | list[dict[str, Any]] | None,
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
        except self._status_error as error:  # older releases raise for every status other than 2xx
            status = getattr(error, "status", None)
            if not status:
                raise
            return int(status), _bytes(getattr(error, "body", b""))
        read: Callable[[], object] | None = getattr(response, "read", None)
        return int(response.status), _bytes(read() if read else response.data)


def _failure_kind(status: int) -> FailureKind:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return FailureKind.FORBIDDEN
    if status == HTTPStatus.NOT_FOUND:
        return FailureKind.NOT_FOUND
    busy = status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS}
    return FailureKind.UNAVAILABLE if busy or status >= HTTPStatus.INTERNAL_SERVER_ERROR else FailureKind.REJECTED


def _pointer(name: str) -> str:
    """Escapes a key for a JSON Pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _parsed(text: bytes) -> dict[str, Any]:
    """Returns the JSON object in an answer; an empty object if a proxy sent something other than JSON."""
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _bytes(data: object) -> bytes:
    return data if isinstance(data, bytes) else str(data or "").encode()
