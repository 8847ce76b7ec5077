"""The control socket answers each request once, and no input can harm the controller."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from controller.lifecycle import control
from controller.lifecycle.control import MAX_LINE_BYTES, ControlError, ControlSocket, request_drain
from controller.lifecycle.drain import Drain, DrainSteps
from controller.lifecycle.stop import StopToken
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because macOS allows 104 bytes for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="csb-") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "private" / "control.sock"


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Served:
    """A control socket on its own thread. Its drain runs as soon as it is requested."""

    def __init__(self, path: Path, *, carry_out: bool = True) -> None:
        self.asked = threading.Event()
        self.steps: list[str] = []
        steps = DrainSteps(
            announce=lambda _reason: self.steps.append("announce"),
            wait_for_work=lambda _seconds: True,
            resign=lambda _seconds: True,
        )
        self.drain = Drain(StopToken(), steps, 30.0, lambda: 0.0, self.asked.set)
        self.control = ControlSocket(path, self.drain)
        self.threads = [threading.Thread(target=self.control.run)]
        if carry_out:
            self.threads.append(threading.Thread(target=self._carry_out))
        for thread in self.threads:
            thread.start()
        while self.threads[0].is_alive() and not listens(path):
            self.threads[0].join(0.01)

    def _carry_out(self) -> None:
        while not self.asked.wait(0.1):
            if not self.threads[0].is_alive():
                return
        self.drain.carry_out()

    def stop(self) -> None:
        self.control.stop()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def served(path: Path) -> Iterator[Served]:
    made = Served(path)
    yield made
    made.stop()


def say(path: Path, request: bytes) -> bytes:
    """Sends raw bytes and returns the answer."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        peer.sendall(request)
        peer.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := peer.recv(4096):
            answer += chunk
        return answer


def test_request_is_answered_when_the_drain_is_done(path: Path, served: Served) -> None:
    assert request_drain(path, 5.0) == "completed"
    assert served.drain.reason == "drain command"
    assert served.steps == ["announce"]


def test_concurrent_requests_are_all_answered_by_one_drain(path: Path, served: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: request_drain(path, 5.0), range(8))) == {"completed"}
    assert served.steps == ["announce"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00\n",
        b"null\n",
        b"[]\n",
        b'"drain"\n',
        b'{"drain": 1}\n',
        b'{"drain": {}}\n',
        b'{"drain": {"timeout_seconds": -1}}\n',
        b'{"drain": {"timeout_seconds": NaN}}\n',
        b'{"drain": {"timeout_seconds": Infinity}}\n',
        b'{"drain": {"timeout_seconds": "soon"}}\n',
        b'{"drain": {"timeout_seconds": [1]}}\n',
        b'{"drain": {"timeout_seconds": 1' + b"0" * 400 + b"}}\n",
        b'{"drain": {"timeout_seconds": 1} \n',
        b"[" * 4000 + b"\n",
    ],
    ids=lambda request: repr(request[:40]),
)
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_garbage_is_refused_and_starts_no_drain(path: Path, served: Served, request_bytes: bytes) -> None:
    answer = json.loads(say(path, request_bytes))
    assert answer["error"].startswith("not understood")
    assert not served.drain.requested
    assert request_drain(path, 1.0) == "completed", "it still serves"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"x" * (3 * MAX_LINE_BYTES),
        b'{"drain": {"timeout_seconds": null}, "x": "' + b"x" * MAX_LINE_BYTES + b'"}\n',
    ],
    ids=["noise", "JSON"],
)
def test_overlong_line_is_not_read_to_its_end(path: Path, served: Served, request_bytes: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # it may be closed before it is answered
        assert b"not understood" in say(path, request_bytes)
    assert not served.drain.requested
    assert request_drain(path, 1.0) == "completed", "it still serves"


def test_silent_client_does_not_delay_others(path: Path, served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.connect(str(path))
        assert request_drain(path, 1.0) == "completed"


def test_client_that_disconnects_during_the_drain_does_no_harm(path: Path) -> None:
    served = Served(path, carry_out=False)
    with socket.socket(socket.AF_UNIX) as hasty:
        hasty.connect(str(path))
        hasty.sendall(b'{"drain": {"timeout_seconds": null}}\n')
        assert served.asked.wait(10)
    served.drain.carry_out()
    assert request_drain(path, 1.0) == "completed"
    served.stop()


def test_request_may_arrive_in_pieces(path: Path, served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        for byte in b'{"drain": {"timeout_seconds": null}}\n':
            peer.sendall(bytes([byte]))
        with peer.makefile("rb") as lines:
            accepted, outcome = map(json.loads, lines)
    assert accepted == {"accepted": {"bound_seconds": 60.0}}
    assert outcome == {"outcome": "completed"}


def test_only_this_user_can_enter_the_sockets_directory(path: Path, served: Served) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_socket_is_removed_on_stop(path: Path) -> None:
    Served(path).stop()
    assert not path.exists()


def test_socket_of_a_killed_controller_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    served = Served(path)
    assert request_drain(path, 1.0) == "completed"
    served.stop()


def test_socket_of_a_running_controller_is_left_alone(path: Path, served: Served) -> None:
    with capture_logs() as logs:
        ControlSocket(path, served.drain).run()
    assert [line["event"] for line in logs] == ["control.unavailable"]
    assert request_drain(path, 1.0) == "completed", "the first one still answers"


def test_file_that_is_not_a_socket_is_not_removed(folder: Path, served: Served) -> None:
    file = folder / "precious"
    file.write_text("data")
    with capture_logs() as logs:
        other = ControlSocket(file, served.drain)
        other.stop()
        other.run()
    assert file.exists()
    assert file.read_text() == "data"
    assert [line["event"] for line in logs] == ["control.unavailable"]


@pytest.mark.parametrize("name", ["file/control.sock", "x" * 200])
def test_impossible_path_is_one_warning_with_a_remedy(folder: Path, served: Served, name: str) -> None:
    (folder / "file").touch()
    with capture_logs() as logs:
        ControlSocket(folder / name, served.drain).run()
    (told,) = logs
    assert (told["event"], told["log_level"]) == ("control.unavailable", "warning")
    assert "BILLING_CONTROL_SOCKET" in told["remedy"]


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_directory_is_one_warning(folder: Path, served: Served) -> None:
    closed = folder / "closed"
    closed.mkdir(0o500)
    with capture_logs() as logs:
        ControlSocket(closed / "control.sock", served.drain).run()
    assert [line["event"] for line in logs] == ["control.unavailable"]


def test_request_without_a_controller_is_one_line_with_the_path(path: Path) -> None:
    with pytest.raises(ControlError, match="no controller listens at") as refused:
        request_drain(path, 1.0)
    assert str(path) in str(refused.value)
    assert refused.value.exit_status == 1


def test_controller_that_ends_without_answering_is_an_error(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        asking = ThreadPoolExecutor(1).submit(request_drain, path, 5.0)
        peer, _ = listener.accept()
        peer.recv(4096)
        peer.close()
        with pytest.raises(ControlError, match="ended before it answered"):
            asking.result(10)


@pytest.mark.parametrize(
    ("answer", "bound"), [(b"", "0.2 s"), (b'{"accepted": {"bound_seconds": 0.1}}\n', "0.3 s")], ids=["frozen", "late"]
)
def test_drain_of_a_frozen_controller_ends_within_its_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, bound: str
) -> None:
    monkeypatch.setattr(control, "CONNECT_TIMEOUT_SECONDS", 0.2)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        asking = ThreadPoolExecutor(1).submit(request_drain, path, None)
        peer, _ = listener.accept()
        peer.sendall(answer)
        with peer, pytest.raises(ControlError, match=f"did not answer within {re.escape(bound)}"):
            asking.result(10)


@pytest.mark.skipif(not hasattr(os, "chown"), reason="files have no owners here")
@pytest.mark.parametrize("foreign", ["folder", "socket"])
def test_impostor_in_somebody_elses_folder_is_refused(
    path: Path, served: Served, monkeypatch: pytest.MonkeyPatch, foreign: str
) -> None:
    if os.geteuid() == 0:
        os.chown(path.parent if foreign == "folder" else path, 4711, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(ControlError, match="belongs to another user"):
        request_drain(path, 1.0)
    assert not served.drain.requested


OTHER_USER = 4711
#: Listens at a path as another user, in a folder of that user, and answers a drain.
SERVICE = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
listener = socket.socket(socket.AF_UNIX)
os.umask(0o177)
listener.bind(sys.argv[2])
listener.listen(1)
print("listens", flush=True)
peer, _ = listener.accept()
peer.recv(4096)
peer.sendall(b'{"outcome": "completed"}\\n')
"""


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root reaches other users' sockets")
@pytest.mark.parametrize(
    ("mode", "listener", "trusted"), [(0o700, OTHER_USER, True), (0o720, OTHER_USER, False), (0o700, 0, False)]
)
def test_root_drains_the_controller_of_a_user_who_alone_could_have_made_its_socket(
    mode: int,
    listener: int,
    trusted: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    with tempfile.TemporaryDirectory() as reachable:
        Path(reachable).chmod(0o755)  # the other user passes through it
        folder = Path(reachable) / "run"
        folder.mkdir()
        os.chown(folder, OTHER_USER, OTHER_USER)
        folder.chmod(mode)
        path = folder / "control.sock"
        with subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(listener), str(path)], stdout=subprocess.PIPE, cwd=reachable
        ) as service:
            assert service.stdout is not None
            assert service.stdout.readline() == b"listens\n"
            os.chown(path, OTHER_USER, OTHER_USER)
            try:
                if trusted:
                    assert request_drain(path, 1.0) == "completed"
                else:
                    with pytest.raises(ControlError, match="another user"):
                        request_drain(path, 1.0)
            finally:
                service.kill()


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can give a folder away")
def test_controller_opens_no_socket_in_somebody_elses_folder(path: Path, served: Served) -> None:
    os.chown(path.parent, 4711, -1)
    with capture_logs() as logs:
        ControlSocket(path, served.drain).run()
    assert [line["event"] for line in logs] == ["control.unavailable"]


def drain_without_descriptors(path: Path) -> None:
    """Requests a drain when the process has no descriptor left for the connection, then frees some."""
    import resource  # noqa: PLC0415 - not on Windows

    served, taken = Served(path), list[int]()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack, socket.socket(socket.AF_UNIX) as peer, capture_logs() as logs:
        stack.callback(served.stop)
        # the connection that `Served` has made would free its descriptor later
        eventually(lambda: bool(served.control._requests), "the first connection")
        served.control.wait_until_answered()
        peer.settimeout(10)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        peer.connect(str(path))
        eventually(lambda: any(line["event"] == "control.failed" for line in logs), "a failed accept")
        for descriptor in taken:
            os.close(descriptor)
        peer.sendall(b'{"drain": {"timeout_seconds": null}}\n')
        with peer.makefile("rb") as answer:
            assert b"completed" in answer.read()


def test_lack_of_descriptors_delays_a_request_and_ends_no_thread(path: Path) -> None:
    """It runs in a separate process, where no other test opens or closes a descriptor."""
    program = (
        "import sys, pathlib; from tests.unit import test_control;"
        "test_control.drain_without_descriptors(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_controller_waits_for_a_command_until_it_has_its_answer_and_no_longer(path: Path) -> None:
    served = Served(path)
    with socket.socket(socket.AF_UNIX) as command:
        command.connect(str(path))
        command.sendall(b'{"drain": {"timeout_seconds": 1}}\n')
        with command.makefile("rb") as answers:
            assert [next(iter(json.loads(answers.readline()))) for _ in range(2)] == ["accepted", "outcome"]
        assert any(thread.is_alive() for thread in served.control._requests)
    served.control.wait_until_answered()
    assert not any(thread.is_alive() for thread in served.control._requests)
    served.stop()
