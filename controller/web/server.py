"""The HTTP server: waitress, with a bound on everything that a client controls."""

import logging
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

from controller.listener import SETTING, listen

#: More than `status_cache.MAX_WAITING`: the others answer the probes.
THREADS: Final = 4
#: At this many connections, the oldest one without a complete request is closed to make room for the next.
MAX_CONNECTIONS: Final = 64
#: How long a connection lasts, from being accepted to the end of its answer.
CONNECTION_SECONDS: Final = 10.0
MAX_HEAD_BYTES: Final = 8192
#: No path takes a body. Waitress refuses a body of this size or more.
MAX_BODY_BYTES: Final = 1
#: How often the loop looks for expired connections.
POLL_SECONDS: Final = 1.0
#: A client can make a round of the loop fail. More failures in a row than this are a defect of the server.
MAX_FAILURES: Final = 20
#: How long closing waits for the threads that are answering.
CLOSE_SECONDS: Final = 3.0

WSGIApplication = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]

log = structlog.get_logger(part="web")


class _SingleRequestTask(WSGITask):  # type: ignore[misc] # waitress has no types
    """Closes the connection after its first answer, so that no client keeps one."""

    def build_response_header(self) -> bytes:
        self.set_close_on_finish()
        head: bytes = super().build_response_header()
        return head


class _Channel(HTTPChannel):  # type: ignore[misc] # as above
    task_class = _SingleRequestTask

    @property
    def idle(self) -> bool:
        """True if no thread is answering, so that the connection may be closed."""
        return not self.requests


class _Server(TcpWSGIServer):  # type: ignore[misc] # as above
    channel_class = _Channel
    connection_seconds = CONNECTION_SECONDS

    def maintenance(self, now: float) -> None:
        """Does nothing: `close_expired` replaces it."""

    def close_expired(self) -> None:
        """Closes expired connections, and then the oldest idle ones over the limit.

        It doesn't use waitress' `will_close`, which waits until the client has read its answer. It must run between two
        rounds of the loop: within a round, a new connection could reuse the closed descriptor and get its events.
        """
        now = time.time()  # the clock of waitress' `creation_time`
        idle = sorted(
            (channel for channel in self.active_channels.values() if channel.idle),
            key=lambda channel: float(channel.creation_time),
        )
        surplus = len(self.active_channels) - MAX_CONNECTIONS + 1
        for number, channel in enumerate(idle):
            if number < surplus or now - channel.creation_time > self.connection_seconds:
                channel.handle_close()


class HttpServer:
    """Listens once constructed, and answers while `run` runs.

    Args:
        host: a name, an address, or `listener.EVERY_INTERFACE`.
        port: 0 picks a free one; the attribute `port` holds it.
        application: the WSGI application.
        connection_seconds: how long a connection lasts, from being accepted to the end of its answer.
        setting: the setting that holds the address, for the error.

    Raises:
        SettingsError: the server can't listen on the address.
    """

    def __init__(
        self,
        host: str,
        port: int,
        application: WSGIApplication,
        connection_seconds: float = CONNECTION_SECONDS,
        setting: str = SETTING,
    ) -> None:
        listener = listen(host, port, setting)
        self._setting = setting
        self.port: int = listener.getsockname()[1]
        self._map: dict[int, Any] = {}
        self._stopping = threading.Event()
        self._closing = threading.Lock()
        _redirect_log()
        adjustments = Adjustments(
            sockets=[listener],
            threads=THREADS,
            # never reached, because `close_expired` acts earlier; waitress also counts the listener and its trigger
            connection_limit=MAX_CONNECTIONS * 2,
            backlog=MAX_CONNECTIONS,
            max_request_header_size=MAX_HEAD_BYTES,
            max_request_body_size=MAX_BODY_BYTES,
            log_socket_errors=False,
            ident=None,
        )
        self._dispatcher = ThreadedTaskDispatcher()
        self._server = _Server(
            application,
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
        """Runs the loop until `stop`. A client can make a round fail; many failures in a row are raised."""
        self._dispatcher.set_thread_count(THREADS)
        log.info("http.opened", port=self.port, setting=self._setting)
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    self._server.close_expired()
                    wasyncore.loop(timeout=POLL_SECONDS, use_poll=True, map=self._map, count=1)
                    failures = 0
                except Exception as error:
                    failures += 1
                    log.debug("http.round_failed", exc_info=error)
                    if failures > MAX_FAILURES:
                        raise
        finally:
            self._close()

    def stop(self) -> None:
        """Ends the loop at once. May be called from any thread, and repeatedly."""
        with self._closing:  # after closing, the trigger's descriptor may belong to another file
            if not self._stopping.is_set():
                self._stopping.set()
                self._server.pull_trigger()

    def _close(self) -> None:
        with self._closing:
            self._stopping.set()
        self._dispatcher.shutdown(timeout=CLOSE_SECONDS)
        wasyncore.close_all(self._map, ignore_all=True)


class _DebugHandler(logging.Handler):
    """Logs waitress' messages at debug level. Clients cause them: a full queue, a broken connection."""

    def emit(self, record: logging.LogRecord) -> None:
        log.debug("http.reported", reason=record.getMessage())


def _redirect_log() -> None:
    library = logging.getLogger("waitress")
    library.propagate = False
    if not any(isinstance(handler, _DebugHandler) for handler in library.handlers):
        library.addHandler(_DebugHandler())
