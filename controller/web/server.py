"""The HTTP server: waitress, with bounds on everything that a client decides."""

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

from controller.errors import SettingsError

SETTING: Final = "BILLING_HTTP_ADDRESS"
#: How `settings.parse_address` says "every interface".
EVERY_INTERFACE: Final = "*"

#: More than may wait for the database (`reading.MAX_WAITING`): the others are for the probes.
THREADS: Final = 4
#: From this many open connections on the oldest without a complete request makes room for the next.
MAX_CONNECTIONS: Final = 64
#: From accepting a connection to the end of its one answer, whatever the client does meanwhile.
CONNECTION_SECONDS: Final = 10.0
MAX_HEAD_BYTES: Final = 8192
#: Nothing here takes a body; waitress refuses one of this size or more.
MAX_BODY_BYTES: Final = 1
#: The loop wakes up so often to look for connections that are over.
LOOK_SECONDS: Final = 1.0
#: So many rounds of the loop may fail in a row before it is no longer a client's doing.
MAX_FAILURES: Final = 20
#: Each thread of the server has so long to finish the answer that it has in hand.
CLOSE_SECONDS: Final = 3.0

WSGIApplication = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]

log = structlog.get_logger(part="web")


class _OnlyTask(WSGITask):  # type: ignore[misc] # waitress has no types
    """The first answer is the last: a connection that is kept is a connection that a client holds."""

    def build_response_header(self) -> bytes:
        self.set_close_on_finish()
        head: bytes = super().build_response_header()
        return head


class _Channel(HTTPChannel):  # type: ignore[misc] # as above
    task_class = _OnlyTask

    @property
    def over(self) -> bool:
        """Whether it may be closed without leaving a thread in the middle of an answer."""
        return not self.requests


class _Server(TcpWSGIServer):  # type: ignore[misc] # as above
    channel_class = _Channel
    connection_seconds = CONNECTION_SECONDS

    def maintenance(self, now: float) -> None:
        """Nothing: see `make_room`."""

    def make_room(self) -> None:
        """Closes what has had its time, also when a byte has trickled a moment ago, and the oldest of too many.

        At once, while waitress' `will_close` waits until the client takes what is to be sent; and between two rounds
        of the loop: in one, the next connection could get the descriptor that was closed, and the blame.
        """
        now = time.time()  # as waitress has it in `creation_time`
        waiting = sorted(
            (channel for channel in self.active_channels.values() if channel.over),
            key=lambda channel: float(channel.creation_time),
        )
        surplus = len(self.active_channels) - MAX_CONNECTIONS + 1
        for place, channel in enumerate(waiting):
            if place < surplus or now - channel.creation_time > self.connection_seconds:
                channel.handle_close()


class HttpServer:
    """Listens from its construction on; answers as long as `run` runs.

    Args:
        host: a name, an address, or EVERY_INTERFACE.
        port: 0 takes a free one; see `port`.
        site: the WSGI application.
        connection_seconds: from accepting a connection to the end of its answer.

    Raises:
        SettingsError: the address can't be listened on; names BILLING_HTTP_ADDRESS.
    """

    def __init__(
        self,
        host: str,
        port: int,
        site: WSGIApplication,
        connection_seconds: float = CONNECTION_SECONDS,
    ) -> None:
        listener = _listen(host, port)
        self.port: int = listener.getsockname()[1]
        self._map: dict[int, Any] = {}
        self._stopping = threading.Event()
        self._closing = threading.Lock()
        _quieten()
        adjustments = Adjustments(
            sockets=[listener],
            threads=THREADS,
            # never reached, since room is made before; waitress counts the listener and its trigger as well
            connection_limit=MAX_CONNECTIONS * 2,
            backlog=MAX_CONNECTIONS,
            max_request_header_size=MAX_HEAD_BYTES,
            max_request_body_size=MAX_BODY_BYTES,
            log_socket_errors=False,
            ident=None,
        )
        self._dispatcher = ThreadedTaskDispatcher()
        self._server = _Server(
            site,
            self._map,
            True,
            listener,
            dispatcher=self._dispatcher,
            adj=adjustments,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
        )
        self._server.connection_seconds = connection_seconds

    def run(self) -> None:
        """The loop, until `stop`. A round that fails is a client's doing; many in a row are not, and are raised."""
        self._dispatcher.set_thread_count(THREADS)
        log.info("http.opened", port=self.port)
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    self._server.make_room()
                    wasyncore.loop(timeout=LOOK_SECONDS, use_poll=True, map=self._map, count=1)
                    failures = 0
                except Exception as error:
                    failures += 1
                    log.debug("http.round_failed", exc_info=error)
                    if failures > MAX_FAILURES:
                        raise
        finally:
            self._close()

    def stop(self) -> None:
        """Ends the loop, at once. Any thread, any number of times."""
        with self._closing:  # once closed, the trigger's descriptor may be someone else's
            if not self._stopping.is_set():
                self._stopping.set()
                self._server.pull_trigger()

    def _close(self) -> None:
        with self._closing:
            self._stopping.set()
        self._dispatcher.shutdown(timeout=CLOSE_SECONDS)
        wasyncore.close_all(self._map, ignore_all=True)


class _ToDebug(logging.Handler):
    """What the library has to say (a full queue, a broken connection) is a client's doing and none of our log's."""

    def emit(self, record: logging.LogRecord) -> None:
        log.debug("http.noted", reason=record.getMessage())


def _quieten() -> None:
    library = logging.getLogger("waitress")
    library.propagate = False
    if not any(isinstance(handler, _ToDebug) for handler in library.handlers):
        library.addHandler(_ToDebug())


def _listen(host: str, port: int) -> socket.socket:
    shown = f"{SETTING}={'' if host == EVERY_INTERFACE else f'[{host}]' if ':' in host else host}:{port}"
    try:
        listener = _bind(host, port)
    except OSError as error:
        # the system's own words carry the address once more
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise SettingsError(
            f"{shown} can't be listened on: {str(reason).lower()}; give another address, or none"
        ) from None
    listener.setblocking(False)
    return listener


def _bind(host: str, port: int) -> socket.socket:
    if host == EVERY_INTERFACE:
        try:
            return _bind("::", port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
        host = "0.0.0.0"  # noqa: S104 - IPv6 is switched off
    if host == "::" and socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((str(address[0]), port), family=family)
