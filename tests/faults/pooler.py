"""A PgBouncer between replicas and a server, from Debian's package."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from controller.demo.server import Account
from tests.support.servers import Server
from tests.support.waiting import eventually

PROGRAM: Final = shutil.which("pgbouncer") or next(
    (str(path) for path in [Path("/usr/sbin/pgbouncer")] if path.exists()), None
)
WAIT_SECONDS: Final = 10.0

Mode = Literal["session", "transaction"]


class Pooler:
    """PgBouncer in one pool mode in front of `server`, for the duration of the context.

    Args:
        server: reached over TCP.
        mode: of every pool.
        backends: in the pool of one database and role.
    """

    def __init__(self, server: Server, mode: Mode, backends: int = 20) -> None:
        assert PROGRAM is not None
        self._account = Account.unprivileged()  # PgBouncer refuses to run as root
        self._folder = self._account.make_folder()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        users, settings = self._folder / "users.txt", self._folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n', encoding="utf-8")
        settings.write_text(
            f"""[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {backends}
server_reset_query = DISCARD ALL
ignore_startup_parameters = extra_float_digits
""",
            encoding="utf-8",
        )
        for file in (users, settings):
            file.chmod(0o644)
        with (self._folder / "log").open("wb") as log:
            self._process = self._account.popen([PROGRAM, str(settings)], stdout=log.fileno())

    def __enter__(self) -> Self:
        try:
            eventually(self._answers, "PgBouncer accepts connections", WAIT_SECONDS)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Ends PgBouncer and removes its folder."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text(errors="replace")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
