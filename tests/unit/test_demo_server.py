"""The ephemeral PostgreSQL starts, restarts and is removed, and its sample data is consistent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest

from controller.demo import server as demo_server
from controller.demo.process import ControllerProcess, ExpectationError
from controller.demo.sample import SampleError, Size, create_data, create_schema, seed
from controller.demo.server import Account, EphemeralServer, Installation, ServerError
from tests.support.servers import Server, StopMode
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
AS_ROOT = sys.platform != "win32" and os.geteuid() == 0
POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

#: Starts a server and a controller, and waits to be killed.
PARENT_PROGRAM = """
import sys
from pathlib import Path
from controller.demo.process import ControllerProcess
from controller.demo.server import Installation
from tests.support.servers import Server

with Server(Installation(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])) as server:
    controller = ControllerProcess(server.url())
    print(server.pid, controller.pid, server.folder, controller.folder, flush=True)
    sys.stdin.read()
"""


def answer(url: str) -> Any:  # noqa: ANN401 - a column of any type
    with psycopg.connect(url) as conn:
        row = conn.execute("select 42").fetchone()
    return row[0] if row else None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    # In a container whose process 1 reaps nothing, an orphan that has ended stays a zombie.
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def test_server_is_reached_by_tcp_and_by_socket(server: Server) -> None:
    assert answer(server.url()) == 42
    if sys.platform != "win32":
        assert answer(server.socket_url()) == 42


def test_server_speaks_the_version_of_its_installation(server: Server, installation: Installation) -> None:
    with psycopg.connect(server.url()) as conn:
        assert conn.info.server_version // 10000 == installation.version


def test_server_never_runs_as_root(server: Server) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_removed_server_leaves_nothing_behind(bare_server: Server) -> None:
    bare_server.start()
    pid, folder = bare_server.pid, bare_server.folder
    bare_server.remove()
    assert not alive(pid)
    assert not folder.exists()
    bare_server.remove()


def test_failed_start_leaves_nothing_behind_and_says_why(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as parent:
        Path(parent).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", parent)
        own = Server(installation, {"shared_buffers": "a pinch"})
        with pytest.raises(ServerError, match=r"did not start: .*a pinch"):
            own.start()
        assert list(Path(parent).iterdir()) == []


@POSIX_ONLY
def test_folder_too_deep_for_a_socket_is_avoided(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="deep-" + 100 * "x") as parent:
        Path(parent).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", parent)
        with Server(installation) as own:
            assert answer(own.socket_url()) == 42
        assert list(Path(parent).iterdir()) == []


@pytest.mark.skipif(not AS_ROOT, reason="only root must run the server under another account")
def test_folder_closed_to_the_server_is_avoided(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as parent:  # only root may enter it
        monkeypatch.setattr(tempfile, "tempdir", parent)
        with Server(installation) as own:
            assert answer(own.url()) == 42
            assert not own.folder.is_relative_to(parent)


def test_options_reach_the_server(installation: Installation) -> None:
    with (
        Server(installation, {"application_name": "it's mine"}) as own,
        psycopg.connect(own.url()) as conn,
    ):
        assert conn.execute("show application_name").fetchone() == ("it's mine",)
        assert conn.execute("show timezone").fetchone() == ("UTC",)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restarted_server_keeps_its_port_and_its_data(bare_server: Server, mode: StopMode) -> None:
    bare_server.start()
    url = bare_server.create_database("kept")
    with psycopg.connect(url) as conn:
        conn.execute("create table kept as select 42 as answer")
    pid = bare_server.pid
    bare_server.restart(mode)
    assert bare_server.pid != pid
    with psycopg.connect(url) as conn:
        assert conn.execute("select answer from kept").fetchone() == (42,)


@POSIX_ONLY
def test_server_killed_by_another_starts_again(bare_server: Server) -> None:
    bare_server.start()
    os.kill(bare_server.pid, signal.SIGKILL)
    eventually(lambda: not bare_server.running, "the server ends")
    with pytest.raises(ServerError, match="does not run"):
        _ = bare_server.pid
    bare_server.start()
    assert answer(bare_server.url()) == 42


@POSIX_ONLY
def test_frozen_server_is_removed_all_the_same(bare_server: Server) -> None:
    bare_server.start()
    pid, folder = bare_server.pid, bare_server.folder
    os.kill(pid, signal.SIGSTOP)
    bare_server.remove()
    assert not alive(pid)
    assert not folder.exists()


@POSIX_ONLY
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_killed_parent_leaves_neither_server_nor_controller_nor_folders_behind(
    installation: Installation, name: str
) -> None:
    arguments = str(installation.bin), str(installation.version), installation.origin
    command = [sys.executable, "-c", PARENT_PROGRAM, *arguments]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=null, text=True) as parent:
        assert parent.stdout is not None
        server_pid, controller_pid, *names = parent.stdout.readline().split()
        pids, folders = (int(server_pid), int(controller_pid)), [Path(name) for name in names]
        assert all(map(alive, pids))
        assert all(folder.is_dir() for folder in folders)
        parent.send_signal(getattr(signal, name))
        parent.wait(20)
    eventually(
        lambda: not any(map(alive, pids)) and not any(folder.exists() for folder in folders),
        "the servers end and their folders are removed",
    )


def test_controller_that_ends_early_is_reported_with_what_it_printed() -> None:
    process = ControllerProcess("not a URL at all")
    try:
        with pytest.raises(ExpectationError, match=r"logs leader\.elected: it ended; its log: .*DATABASE_URL"):
            process.wait_for("leader.elected")
        assert process.wait() == 2
    finally:
        process.remove()
    assert not process.folder.exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root must run the server under another account")
def test_programs_in_a_closed_folder_are_copied_for_root(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installation.origin != "embedded":
        pytest.skip("installed programs are in folders that are open to all")
    reaches = Account.reaches

    def closed(account: Account, path: Path) -> bool:
        return not path.is_relative_to(installation.bin) and reaches(account, path)

    monkeypatch.setattr(Account, "reaches", closed)
    with Server(installation) as own:
        assert own.installation.bin.is_relative_to(own.folder)
        assert answer(own.url()) == 42


def test_missing_postgresql_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_server, "find_installations", lambda: iter(()))
    with pytest.raises(ServerError, match=r"pip install 'containerstacks-billing\[demo\]'"):
        EphemeralServer()


def test_url_quotes_names(server: Server) -> None:
    url = server.create_database("odd/na?me")
    try:
        with psycopg.connect(url) as conn:
            assert conn.info.dbname == "odd/na?me"
    finally:
        server.drop_database("odd/na?me")


def test_sample_is_made_once_however_often_it_is_asked_for(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        assert seed(conn, Size(organizations=4, instances=5))
        assert not seed(conn, Size(organizations=8, instances=80))
        assert conn.execute("select count(*) from vps_instances").fetchone() == (5,)


@pytest.mark.parametrize("table", ["users", "organizations", "vps_billing_cycles"])
def test_sample_refuses_a_database_with_a_table_of_the_application_and_leaves_it_alone(
    empty_database: str, table: str
) -> None:
    tables = "select table_name::text from information_schema.tables where table_schema = 'public'"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(f"create table {table} (id int)".encode())
        for attempt in (lambda: create_schema(conn), lambda: seed(conn, Size())):
            with pytest.raises(SampleError, match=f'relation "{table}" already exists'):
                attempt()
        assert conn.execute(tables).fetchall() == [(table,)]


def test_sample_schema_sets_updated_at_and_ids(conn: psycopg.Connection[Any]) -> None:
    create_data(conn, Size(organizations=4, instances=4))
    conn.execute("update wallets set balance = balance")
    assert conn.execute("select bool_and(updated_at > now() - interval '1 minute') from wallets").fetchone() == (True,)
    assert conn.execute("select uuid_generate_v4() <> uuid_generate_v4()").fetchone() == (True,)


def test_sample_wallets_are_the_sum_of_completed_transactions(
    conn: psycopg.Connection[Any],
) -> None:
    create_data(conn, Size(organizations=60, instances=900))
    rows = conn.execute(
        "select wallets.organization_id from wallets left join payment_transactions as paid"
        " on paid.organization_id = wallets.organization_id and paid.status = 'completed'"
        " group by wallets.id having wallets.balance is distinct from coalesce(sum(amount), 0)"
    ).fetchall()
    assert rows == []


def test_sample_has_exactly_its_peculiar_rows(conn: psycopg.Connection[Any]) -> None:
    create_data(conn, Size(organizations=60, instances=900))
    assert conn.execute(
        "select count(*) from organizations"
        " where not exists (select from wallets where organization_id = organizations.id)"
    ).fetchone() == (1,)
    known = "exists (select from vps_plans where vps_plans.id::text = plan_id)"
    named = "exists (select from vps_plans where provider_plan_id = plan_id)"
    assert conn.execute(
        f"select count(*) filter (where not {known} and not {named}),"  # noqa: S608 - constants
        f" count(*) filter (where {named}), count(*) from vps_instances"
    ).fetchone() == (1, 1, 900)
    never_billed = conn.execute("select count(*) from vps_instances where last_billed_at is null").fetchone()
    assert never_billed is not None
    assert 0 < never_billed[0] < 150
    largest = conn.execute(
        "select count(*) from vps_instances group by organization_id order by 1 desc limit 1"
    ).fetchone()
    assert largest is not None
    assert largest[0] > 5 * 900 / 60


def test_sample_has_short_wallets_and_covered_ones(conn: psycopg.Connection[Any]) -> None:
    create_data(conn, Size(organizations=60, instances=900))
    row = conn.execute(
        """
        with owed as (
            select
                organization_id,
                sum(
                    coalesce(base_price + markup_price, 0) / 730 * floor(
                        extract(epoch from now() - coalesce(last_billed_at, i.created_at)) / 3600
                    )
                ) as due
            from vps_instances as i
            left join vps_plans on vps_plans.id::text = plan_id
            group by organization_id
        )
        select count(*) filter (where balance < due), count(*) filter (where balance > due)
        from wallets inner join owed using (organization_id)
        """
    ).fetchone()
    assert row == (5, 54)


def test_sample_of_one_seed_is_always_the_same(server: Server, template: str) -> None:
    def fingerprint(number: int) -> Any:  # noqa: ANN401 - a row
        url = server.create_database("seeded", template)
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                create_data(conn, Size(organizations=20, instances=200, seed=number))
                return conn.execute(
                    "select md5(string_agg(concat(id, plan_id, organization_id), '' order by id)),"
                    " (select sum(balance) from wallets) from vps_instances"
                ).fetchone()
        finally:
            server.drop_database("seeded")

    first = fingerprint(7)
    assert fingerprint(7) == first
    assert fingerprint(8) != first
