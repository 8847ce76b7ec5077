"""Requests reach an API server over real HTTP, through the official client, and failures are classified.

The small API server records requests and gives scripted answers. The announcer's tests use it too.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controller.k8s.api import Api, ApiError, FailureKind
from controller.k8s.pod import Pod, find_pod

PATIENCE_SECONDS = 15.0
POD = Pod("billing", "billing-7d4-x2", "pod-uid", "billing")


@dataclass(frozen=True)
class Request:
    """A recorded request."""

    verb: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def kind(self) -> str:
        """pods, deployments, events or selfsubjectaccessreviews."""
        kinds = ("pods", "deployments", "events", "selfsubjectaccessreviews")
        return next(kind for kind in kinds if f"/{kind}" in self.path)


class ApiServer:
    """Answers with `status`, by kind of resource, while `answer_now` is set. `permitted` holds verbs and resources."""

    def __init__(self) -> None:
        self.arrived: queue.Queue[Request] = queue.Queue()
        self.status: dict[str, int] = {}
        self.permitted: set[tuple[str, str]] = set()
        self.answer_now = threading.Event()
        self.answer_now.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length)
                request = Request(
                    self.command,
                    self.path,
                    {name.lower(): value for name, value in self.headers.items()},
                    json.loads(text) if text else None,
                )
                outer.arrived.put(request)
                outer.answer_now.wait(PATIENCE_SECONDS)
                status = outer.status.get(request.kind, 201 if self.command == "POST" else 200)
                body: dict[str, Any] = {"metadata": {"name": "x", "uid": "deployment-uid"}}
                if request.kind == "selfsubjectaccessreviews":
                    asked = request.body["spec"]["resourceAttributes"]
                    body["status"] = {"allowed": (asked["verb"], asked["resource"]) in outer.permitted}
                if status >= 400:
                    body = {"kind": "Status", "message": f"{request.kind} is refused", "code": status}
                answer = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815 - the library's names

            def log_message(self, *_arguments: object) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_arguments: object) -> None:
                """Some tests make a client disconnect."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[ApiServer]:
        """Serves for the length of a block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.answer_now.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join(PATIENCE_SECONDS)

    def next(self, kind: str) -> Request:
        """Returns the next request for a kind of resource, and skips others."""
        while True:
            request = self.arrived.get(timeout=PATIENCE_SECONDS)
            if request.kind == kind:
                return request

    def all(self) -> list[Request]:
        """Returns the requests that no test has taken."""
        found = []
        while not self.arrived.empty():
            found.append(self.arrived.get_nowait())
        return found


def configuration(url: str) -> Any:  # noqa: ANN401 - the client's own type
    """Returns the official client's configuration for a server on this host."""
    from kubernetes.client import Configuration  # noqa: PLC0415 - heavy

    made = Configuration(host=url)
    made.proxy = None
    made.api_key["BearerToken"] = "bearer the-token"
    return made


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer().serving() as running:
        yield running


@pytest.fixture
def api(server: ApiServer) -> Iterator[Api]:
    made = Api(configuration(server.url), POD)
    yield made
    made.close()


def test_role_is_a_merge_patch_of_this_pod(server: ApiServer, api: Api) -> None:
    api.show_role("leader", 100, 3.0)
    (request,) = server.all()
    assert (request.verb, request.path) == ("PATCH", "/api/v1/namespaces/billing/pods/billing-7d4-x2")
    assert request.headers["content-type"] == "application/merge-patch+json"
    assert request.headers["authorization"] == "bearer the-token"
    assert request.body == {
        "metadata": {
            "labels": {"billing.containerstacks.io/role": "leader"},
            "annotations": {"controller.kubernetes.io/pod-deletion-cost": "100"},
        }
    }


def test_former_leader_is_relabelled_only_if_uid_and_label_match(server: ApiServer, api: Api) -> None:
    api.show_former_leader(Pod("billing", "billing-7d4-x1", "its-uid"), 0, 3.0)
    (request,) = server.all()
    assert (request.verb, request.path) == ("PATCH", "/api/v1/namespaces/billing/pods/billing-7d4-x1")
    assert request.headers["content-type"] == "application/json-patch+json"
    label = "/metadata/labels/billing.containerstacks.io~1role"
    assert request.body == [
        {"op": "test", "path": "/metadata/uid", "value": "its-uid"},
        {"op": "test", "path": label, "value": "leader"},
        {"op": "replace", "path": label, "value": "standby"},
        {"op": "replace", "path": "/metadata/annotations/controller.kubernetes.io~1pod-deletion-cost", "value": "0"},
    ]


@pytest.mark.parametrize("status", [404, 422])
def test_former_leader_that_has_gone_or_has_another_label_is_not_a_failure(
    server: ApiServer, api: Api, status: int
) -> None:
    server.status["pods"] = status
    api.show_former_leader(Pod("billing", "billing-7d4-x1", "its-uid"), 0, 3.0)


def test_deployment_is_read_by_name(server: ApiServer, api: Api) -> None:
    assert api.deployment_uid("billing", 3.0) == "deployment-uid"
    (request,) = server.all()
    assert (request.verb, request.path, request.body) == (
        "GET",
        "/apis/apps/v1/namespaces/billing/deployments/billing",
        None,
    )


def test_event_is_created_in_the_pods_namespace(server: ApiServer, api: Api) -> None:
    api.create_event({"metadata": {"name": "x"}}, 3.0)
    (request,) = server.all()
    assert (request.verb, request.path) == ("POST", "/apis/events.k8s.io/v1/namespaces/billing/events")
    assert request.headers["content-type"] == "application/json"


def test_event_that_exists_is_not_a_failure(server: ApiServer, api: Api) -> None:
    server.status["events"] = 409
    api.create_event({"metadata": {"name": "x"}}, 3.0)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, FailureKind.FORBIDDEN),
        (403, FailureKind.FORBIDDEN),
        (404, FailureKind.NOT_FOUND),
        (409, FailureKind.UNAVAILABLE),
        (422, FailureKind.REJECTED),
        (429, FailureKind.UNAVAILABLE),
        (500, FailureKind.UNAVAILABLE),
        (503, FailureKind.UNAVAILABLE),
    ],
)
def test_status_is_classified_and_costs_one_request(
    server: ApiServer, api: Api, status: int, kind: FailureKind
) -> None:
    server.status["pods"] = status
    with pytest.raises(ApiError, match=f"^{status} pods is refused$") as refused:
        api.show_role("leader", 100, 3.0)
    assert refused.value.kind is kind
    assert len(server.all()) == 1


def test_server_that_does_not_answer_is_given_up_in_time(server: ApiServer, api: Api) -> None:
    server.answer_now.clear()
    with pytest.raises(ApiError, match="Timeout") as hung:
        api.show_role("leader", 100, 0.2)
    assert hung.value.transient
    assert len(server.all()) == 1


def test_server_that_refuses_connections_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ApiError, match=r"^[^\n]*refused[^\n]*$") as away:
        Api(configuration(url), POD).show_role("leader", 100, 1.0)
    assert away.value.kind is FailureKind.UNAVAILABLE


def test_rotated_token_is_used(server: ApiServer, tmp_path: Path) -> None:
    from kubernetes.client import Configuration  # noqa: PLC0415 - heavy
    from kubernetes.config.incluster_config import InClusterConfigLoader  # noqa: PLC0415

    class Loader(InClusterConfigLoader):
        """The official loader with plain HTTP, because this server has no certificate."""

        def _load_config(self) -> None:
            super()._load_config()  # type: ignore[no-untyped-call]
            self.host = self.host.replace("https:", "http:")

    token, certificate = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first")
    certificate.write_text("not asked for")
    address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": server.url.rpartition(":")[2]}
    loader = Loader(str(token), str(certificate), environ=address)  # type: ignore[no-untyped-call]
    loader._token_refresh_period = timedelta(0)
    made = Configuration()
    loader.load_and_set(made)  # type: ignore[no-untyped-call]
    made.proxy = None
    api = Api(made, POD)
    api.show_role("leader", 100, 3.0)
    token.write_text("second\n")
    api.show_role("standby", 0, 3.0)
    assert [request.headers["authorization"] for request in server.all()] == ["bearer first", "bearer second"]
    token.unlink()
    with pytest.raises(ApiError, match="FileNotFoundError"):
        api.show_role("standby", 0, 3.0)


def test_pod_is_found_only_in_a_cluster_with_a_token_and_a_name(tmp_path: Path) -> None:
    in_cluster = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}

    def find(environment: dict[str, str], name: str | None = "pod") -> Pod | str:
        return find_pod(environment, namespace="billing", name=name, deployment="d", service_account=tmp_path)

    assert find({}) == "not in a cluster"
    assert find(in_cluster) == "no service account token"
    (tmp_path / "token").write_text("x")
    assert find(in_cluster, name=None) == "POD_NAME or POD_NAMESPACE is not set"
    assert find(in_cluster) == Pod("billing", "pod", None, "d")
