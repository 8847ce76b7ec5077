"""The control socket, through which `containerstacks-billing drain` (run by a preStop hook) reaches the controller.

It is a Unix socket in a directory that only this user can enter. Unlike an HTTP path, no other pod can reach it. The
protocol is lines of JSON: the request `{"drain": {"timeout_seconds": 270}}`; at once, `{"accepted": {"bound_seconds":
300}}`; and, once the drain is over, `{"outcome": "completed"}`. A frozen controller never accepts, so `drain` gives up.
"""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import structlog

from controller.errors import BillingError
from controller.lifecycle.drain import Drain
from controller.log import WarnOnce

#: The reason given for a drain that was requested here.
DRAIN_COMMAND = "drain command"
MAX_LINE_BYTES = 4096
CONNECT_TIMEOUT_SECONDS = 5.0
ACCEPT_RETRY_SECONDS = 0.5
#: How long a command may take to read its answer.
ANSWER_SECONDS = 5.0

log = structlog.get_logger(part="lifecycle")


class ControlError(BillingError):
    """The controller can't be reached, or refused the request. Exit status 1."""


class ControlSocket:
    """Accepts requests and answers each on its own thread. All of them share the one drain."""

    def __init__(self, path: Path, drain: Drain) -> None:
        self._path = path
        self._drain = drain
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._refusals = WarnOnce(log, "control.failed")
        self._lock = threading.Lock()
        self._requests: list[threading.Thread] = []

    def run(self) -> None:
        """Serves requests until `stop` is called. If the socket can't be created, logs a warning and returns."""
        try:
            self._listener = self._listen()
        except (OSError, AttributeError) as error:
            log.warning(
                "control.unavailable",
                path=str(self._path),
                error=str(error),
                remedy="set BILLING_CONTROL_SOCKET to a path that this user can write to; SIGTERM still drains",
            )
            return
        own_inode = self._path.stat().st_ino
        with self._listener:
            while not self._stopping.is_set():
                try:
                    peer, _ = self._listener.accept()
                except (TimeoutError, ConnectionError):
                    continue
                except OSError as error:  # no file descriptor is free
                    self._refusals.failed(error=str(error))
                    self._stopping.wait(ACCEPT_RETRY_SECONDS)
                    continue
                self._refusals.worked()
                serving = threading.Thread(target=self._serve, args=(peer,), name="control-peer", daemon=True)
                with self._lock:  # a thread that has not started can't be joined
                    self._requests = [thread for thread in self._requests if thread.is_alive()] + [serving]
                    serving.start()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == own_inode:  # a successor may have replaced it
                self._path.unlink()

    def stop(self) -> None:
        """Ends the loop within half a second."""
        self._stopping.set()

    def wait_until_answered(self) -> None:
        """Waits until each command has read its answer and hung up, for at most ANSWER_SECONDS.

        Call it after the drain.
        """
        give_up_at = time.monotonic() + ANSWER_SECONDS
        with self._lock:
            requests = self._requests
        for thread in requests:
            thread.join(max(give_up_at - time.monotonic(), 0.0))

    def _listen(self) -> socket.socket:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_others(self._path.parent)
        if self._path.exists():
            if not self._path.is_socket():
                raise OSError("a file that is not a socket exists at this path")
            if _answers(self._path):
                raise OSError("another controller on this host listens at this path")
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o177)
        try:
            listener.bind(str(self._path))
            listener.listen(16)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(previous)
        listener.settimeout(0.5)
        return listener

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(CONNECT_TIMEOUT_SECONDS)
            try:
                request = json.loads(_read_line(peer))
                timeout_seconds = _seconds(request["drain"]["timeout_seconds"])
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
                peer.sendall(json.dumps({"error": f"not understood: {error}"}).encode() + b"\n")
                return
            self._drain.request(DRAIN_COMMAND, timeout_seconds)
            peer.sendall(json.dumps({"accepted": {"bound_seconds": self._drain.bound_seconds}}).encode() + b"\n")
            while not self._drain.wait_until_done(1.0):
                pass
            peer.sendall(json.dumps({"outcome": str(self._drain.outcome)}).encode() + b"\n")
            peer.recv(1)  # returns when the command hangs up


def request_drain(path: Path, timeout_seconds: float | None) -> str:
    """Requests a drain of the controller that listens at `path`, waits until it is over, and returns its outcome.

    Args:
        path: the control socket's path.
        timeout_seconds: allowed for the work in hand; None takes the controller's own setting.

    Raises:
        ControlError: no controller listens there, it refused, it did not answer in time, or the socket belongs to
        another user.
    """
    bound_seconds = CONNECT_TIMEOUT_SECONDS
    try:
        owner = _trusted_owner(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(bound_seconds)
            peer.connect(str(path))
            _refuse_stranger(peer, owner)
            peer.sendall(json.dumps({"drain": {"timeout_seconds": timeout_seconds}}).encode() + b"\n")
            with peer.makefile("rb") as answers:
                answer = json.loads(answers.readline(MAX_LINE_BYTES))
                if "accepted" in answer:
                    bound_seconds = float(answer["accepted"]["bound_seconds"]) + CONNECT_TIMEOUT_SECONDS
                    peer.settimeout(bound_seconds)
                    answer = json.loads(answers.readline(MAX_LINE_BYTES))
    except TimeoutError:
        raise ControlError(f"the controller at {path} did not answer within {bound_seconds:g} s") from None
    except (OSError, AttributeError) as error:
        why = error if isinstance(error, PermissionError) and not error.errno else type(error).__name__
        raise ControlError(
            f"no controller listens at {path} ({why});"
            " check that one is running here with the same BILLING_CONTROL_SOCKET"
        ) from None
    except ValueError:
        raise ControlError("the controller ended before it answered") from None
    if "error" in answer:
        raise ControlError(f"the controller refused: {answer['error']}")
    return str(answer["outcome"])


def _refuse_others(path: Path) -> None:
    """Raises PermissionError if another user owns the path and could answer in place of the controller."""
    if hasattr(os, "getuid") and path.exists() and path.stat().st_uid not in {os.getuid(), 0}:
        raise PermissionError(f"{path} belongs to another user")


def _trusted_owner(path: Path) -> int | None:
    """Returns the uid that must listen at a socket; None if there is no socket, or no uids on this system.

    A socket and its directory are trusted if they belong to this user or to root. Root also trusts those of one other
    user, such as the one that systemd creates for the unit, if no one else can write to them.

    Raises:
        PermissionError: another user could answer in place of the controller.
    """
    if not hasattr(os, "getuid") or not path.exists():
        return None
    found = [path.parent.stat(), path.stat()]
    owners = {each.st_uid for each in found}
    one_users = len(owners) == 1 and not any(each.st_mode & 0o022 for each in found)
    if not (owners <= {os.getuid(), 0} or (os.getuid() == 0 and one_users)):
        raise PermissionError(f"{path} belongs to another user")
    return found[1].st_uid


def _refuse_stranger(peer: socket.socket, owner: int | None) -> None:
    """Raises PermissionError if the process at the other end doesn't run as `owner`. Only Linux reports its uid."""
    if owner is not None and hasattr(socket, "SO_PEERCRED"):
        _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != owner:
            raise PermissionError("another user listens at the socket")


def _seconds(value: float | str | None) -> float | None:
    if value is None:
        return None
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError("timeout_seconds is not a duration")
    return seconds


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0


def _read_line(peer: socket.socket) -> str:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
        chunk = peer.recv(MAX_LINE_BYTES)
        if not chunk:
            break
        line += chunk
    return line.decode()
