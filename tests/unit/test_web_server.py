"""Slow and hostile clients occupy neither a thread nor a connection, and probes are always answered."""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.errors import SettingsError
from controller.listener import EVERY_INTERFACE
from controller.web.server import MAX_CONNECTIONS, MAX_HEAD_BYTES, THREADS, HttpServer

PATIENCE_SECONDS = 10.0


class Application:
    """Answers `/ok` at once, `/large` with more than a socket's buffer, and `/slow` once `answer_now` is set."""

    def __init__(self) -> None:
        self.answer_now = threading.Event()
        self.slow_requests = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        body = b"ok"
        if environ["PATH_INFO"] == "/large":
            body = b"x" * 8_000_000
        elif environ["PATH_INFO"] == "/slow":
            self.slow_requests.release()
            self.answer_now.wait(PATIENCE_SECONDS)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]


@contextmanager
def serving(application: Application, connection_seconds: float = 10.0) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, application, connection_seconds)
    thread = threading.Thread(target=server.run, name="http")
    thread.start()
    try:
        yield server
    finally:
        application.answer_now.set()
        server.stop()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def application() -> Application:
    return Application()


def client(server: HttpServer) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
    peer.settimeout(PATIENCE_SECONDS)
    return peer


def probe(server: HttpServer, path: str = "/ok", timeout_seconds: float = 1.0) -> tuple[int, bytes]:
    """Asks as the kubelet does: on a new connection, with a timeout of one second."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def closed(peer: socket.socket) -> bool:
    """Returns True if the server ends the connection within PATIENCE_SECONDS."""
    try:
        while peer.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_probe_is_answered(application: Application) -> None:
    with serving(application) as server:
        assert probe(server) == (200, b"ok")


def test_probes_are_answered_beside_clients_that_never_finish_a_request(application: Application) -> None:
    with serving(application) as server, ExitStack() as peers:
        for number in range(4 * MAX_CONNECTIONS):
            peer = peers.enter_context(client(server))
            beginning = b"GET /ok HTTP/1.1\r\nHost: x\r\nX-Slow: " if number % 2 else b""
            try:
                peer.sendall(beginning)
            except ConnectionError:
                continue
            if number % 16 == 0:
                assert probe(server) == (200, b"ok")
        assert probe(server) == (200, b"ok")


def test_client_that_sends_single_bytes_is_disconnected(application: Application) -> None:
    with serving(application, connection_seconds=0.2) as server, client(server) as peer:
        peer.sendall(b"GET /ok HTTP/1.1\r\nX-Slow: ")
        until = time.monotonic() + PATIENCE_SECONDS
        while not select.select([peer], [], [], 0.05)[0]:
            assert time.monotonic() < until, "still connected"
            try:
                peer.sendall(b"x")
            except ConnectionError:
                break
        assert closed(peer)


def test_client_that_does_not_read_its_answer_is_disconnected(application: Application) -> None:
    with serving(application, connection_seconds=0.2) as server, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(PATIENCE_SECONDS)
        peer.connect(("127.0.0.1", server.port))
        peer.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        with client(server) as witness:  # connected later, silent, and therefore ended later
            assert closed(witness)
        got = 0
        with suppress(ConnectionError):  # reset: what was unsent is gone
            while chunk := peer.recv(65536):
                got += len(chunk)
        assert got < 8_000_000


def test_waiting_pages_leave_threads_for_probes(application: Application) -> None:
    with serving(application) as server, ExitStack() as peers:
        for _ in range(THREADS - 1):
            peers.enter_context(client(server)).sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            assert application.slow_requests.acquire(timeout=PATIENCE_SECONDS)
        assert probe(server) == (200, b"ok")
        application.answer_now.set()


def test_connection_carries_one_request(application: Application) -> None:
    with serving(application) as server, client(server) as peer:
        peer.sendall(b"GET /ok HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n" * 3)
        answer = b""
        while chunk := peer.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in answer


def test_large_head_is_refused_before_it_is_complete(application: Application) -> None:
    with serving(application) as server:
        with client(server) as peer:
            peer.sendall(b"GET /ok HTTP/1.1\r\nX-Large: " + b"x" * MAX_HEAD_BYTES)
            assert peer.recv(65536).startswith(b"HTTP/1.0 431 ")
        assert probe(server) == (200, b"ok")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /ok HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n",
        b"POST /ok HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\nxxxx",
    ],
    ids=["large", "small", "chunked"],
)
def test_body_is_refused_before_it_is_sent(application: Application, head: bytes) -> None:
    with serving(application) as server:
        with client(server) as peer:
            peer.sendall(head)
            answer = b""
            while b"413" not in answer:
                chunk = peer.recv(65536)
                assert chunk, answer
                answer += chunk
        assert probe(server) == (200, b"ok")


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\0" * 100, b"\r\n" * 500, b"A" * 9000])
def test_nonsense_is_harmless_and_not_logged(application: Application, nonsense: bytes) -> None:
    with capture_logs() as logged, serving(application) as server:
        for _ in range(10):
            with client(server) as peer:
                peer.sendall(nonsense)
        assert probe(server) == (200, b"ok")
    assert [line["event"] for line in logged if line["log_level"] != "debug"] == ["http.opened"]


def test_answer_does_not_name_the_server(application: Application) -> None:
    with serving(application) as server, client(server) as peer:
        peer.sendall(b"GET /ok HTTP/1.0\r\n\r\n")
        assert b"Server:" not in peer.recv(65536)


def test_stopped_server_frees_its_port_and_may_be_stopped_again(application: Application) -> None:
    with serving(application) as server:
        probe(server)
    server.stop()
    with serving(application), socket.create_server(("127.0.0.1", server.port)):
        pass


def test_server_stopped_before_it_runs_ends_at_once(application: Application) -> None:
    server = HttpServer("127.0.0.1", 0, application)
    server.stop()
    server.run()


@pytest.mark.parametrize("host", ["127.0.0.1", EVERY_INTERFACE])
def test_port_in_use_is_a_settings_error_that_names_the_setting(application: Application, host: str) -> None:
    with serving(application) as server, pytest.raises(SettingsError) as refused:
        HttpServer(host, server.port, application)
    shown = "" if host == EVERY_INTERFACE else host
    assert str(refused.value) == (
        f"BILLING_HTTP_ADDRESS={shown}:{server.port}: can't listen: address already in use;"
        " set another address, or none"
    )
    assert refused.value.exit_status == 2


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "2001:db8::1"])
def test_address_of_another_host_is_a_settings_error(application: Application, host: str) -> None:
    with pytest.raises(SettingsError, match=r"^BILLING_HTTP_ADDRESS=\S+:1: can't listen: [^\n]+$"):
        HttpServer(host, 1, application)


def test_every_interface_includes_loopback(application: Application) -> None:
    server = HttpServer(EVERY_INTERFACE, 0, application)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert probe(server) == (200, b"ok")
    finally:
        server.stop()
        thread.join(PATIENCE_SECONDS)
