"""The commands of docs/cutover.md and docs/upgrade.md, after a stand-in for the old daemon has billed for a month.

systemctl, helm and cp are stand-ins too: they change nothing on this host, and start and stop real controllers.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.rows import dict_row

from controller.demo.process import ControllerProcess, clean_environment
from controller.demo.sample import create_schema
from tests.acceptance.program import ROOT, Program
from tests.support.servers import Server, migrate_url, temporary_database

OLD: Final = "web1-4711"
#: Programs that would change this host.
STAND_INS: Final = ("systemctl", "helm", "cp", "rm", "python3", "install", "export")
#: Where docs/systemd.md installs the program.
INSTALLED: Final = "/opt/containerstacks-billing/bin/"

pytestmark = pytest.mark.skipif(shutil.which("psql") is None, reason="no psql")


def commands(document: str, heading: str) -> list[str]:
    """Returns the commands in one section of a document."""
    text = (ROOT / "docs" / document).read_text("utf-8")
    section = re.split(rf"^## {re.escape(heading)}\n", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    return re.findall(r"^\$ (.+)$", section, re.MULTILINE)


@pytest.fixture
def application(server: Server) -> Iterator[str]:
    """The URL of the application's database, with 5 instances that the old daemon has billed for 720 hours."""
    with temporary_database(server) as url, psycopg.connect(url, autocommit=True) as conn:
        create_schema(conn)
        conn.execute(
            """
            create table billing_daemon_status (id serial primary key, daemon_instance_id varchar(255) unique not null,
                status varchar(50) not null, last_run_at timestamptz, last_run_success boolean, instances_billed int,
                total_amount numeric(10, 2), total_hours numeric(10, 2), error_message text, started_at timestamptz,
                heartbeat_at timestamptz, metadata jsonb default '{}', created_at timestamptz default now(),
                updated_at timestamptz default now());
            insert into users (email, password_hash) values ('a@example.com', '!');
            insert into organizations (name, slug, owner_id) select 'A', 'a', id from users;
            insert into wallets (organization_id, balance) select id, 500 from organizations;
            insert into vps_plans (name, provider_plan_id, base_price) values ('P', 'p', 7.30);
            insert into vps_instances (organization_id, plan_id, label, created_at, last_billed_at)
            select o.id, p.id::text, 'vps-' || n, now() - interval '723.5 hours', now() - interval '2.5 hours'
            from organizations o, vps_plans p, generate_series(1, 5) n;
            insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,
                hourly_rate, total_amount, status, created_at)
            select id, organization_id, created_at + h * interval '1 hour', created_at + (h + 1) * interval '1 hour',
                0.01, 0.01, 'billed', created_at + (h + 1) * interval '1 hour'
            from vps_instances, generate_series(1, 720) h;
            """
        )
        conn.execute(
            "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at)"
            " values (%s, 'running', now())",
            (OLD,),
        )
        yield url


class Host:
    """A host on which an operator types the commands of a document."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.conn = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self.unit: ControllerProcess | None = None
        self.typed: list[str] = []
        self._program = Program(folder, {"DATABASE_URL": url})

    def rows(self, query: str) -> list[dict[str, Any]]:
        return self.conn.execute(query.encode()).fetchall()

    def type(self, command: str) -> str:
        """Runs one command and returns what it printed. If the command fails, the test fails."""
        self.typed.append(command)
        command = command.removeprefix(INSTALLED)
        program, *arguments = command.split()
        if program == "systemctl":
            self._systemctl(*arguments)
        elif program == "pip":
            assert arguments == ["install", "."]  # test_wheel.py installs it
        elif program == "helm":
            assert (ROOT / arguments[2]).is_dir()
        elif program == "cp":
            assert (ROOT / arguments[0]).exists() or not arguments[0].startswith("manifests")
        elif program == "containerstacks-billing":
            socket = {"BILLING_CONTROL_SOCKET": str(self.unit.folder / "control.sock")} if self.unit else {}
            done = self._program(
                *(re.sub(r'"', "", word) for word in re.findall(r'"[^"]*"|\S+', command)[1:]), **socket
            )
            assert done.status == 0, done
            return done.out + done.err
        elif program == "psql":
            return self._psql(command)
        else:
            assert program in STAND_INS, command
        return ""

    def _psql(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=clean_environment({"OWNER_URL": self.url}),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def _systemctl(self, verb: str, *_arguments: str) -> None:
        if verb == "disable" and self.unit is None:  # the old daemon says that it has stopped
            self.conn.execute(
                "update billing_daemon_status set status = 'stopped' where daemon_instance_id = %s", (OLD,)
            )
        elif verb == "disable" and self.unit is not None:
            self.unit.signal(signal.SIGTERM)
            assert self.unit.wait() == 0
            self.unit.remove()
            self.unit = None
        elif verb == "enable":
            self.unit = ControllerProcess(self.url)

    def close(self) -> None:
        if self.unit is not None:
            self.unit.remove()
        self.conn.close()


@pytest.fixture
def host(application: str, tmp_path: Path) -> Iterator[Host]:
    opened = Host(tmp_path, application)
    yield opened
    opened.close()


def hours_that_are_not_billed_once(host: Host) -> list[dict[str, Any]]:
    """Returns instances that have an hour billed twice or not at all, up to last_billed_at."""
    return host.rows(
        """
        select i.label from vps_instances i join vps_billing_cycles c on c.vps_instance_id = i.id
        where c.status = 'billed'
        group by i.id, i.label, i.last_billed_at
        having max(c.billing_period_end) <> i.last_billed_at
            or sum(c.billing_period_end - c.billing_period_start)
                <> max(c.billing_period_end) - min(c.billing_period_start)
        """
    )


def test_cutover_from_the_old_daemon_and_back_bills_every_hour_once(host: Host) -> None:
    migrate, dry_run, accept, role = commands("cutover.md", "Prepare")
    host.type(migrate)
    assert f"another billing daemon is alive: {OLD}" in host.type(dry_run)
    host.type(accept)
    host.type(role)
    assert host.rows("select count(*) as n from vps_billing_cycles") == [{"n": 3600}]
    for command in commands("cutover.md", "From the old daemon, on the same host"):
        if command.endswith(" status"):
            assert host.unit is not None
            host.unit.wait_for("cycle.completed")
        host.type(command)
    assert hours_that_are_not_billed_once(host) == []
    assert host.rows("select count(*) as n from vps_billing_cycles where billing_is_ours(metadata)") == [{"n": 5}]
    host.type("containerstacks-billing audit")
    (untouched,) = host.rows("select status from billing_daemon_status where not billing_is_our_status(metadata)")
    assert untouched["status"] == "stopped"
    stop, *others = commands("cutover.md", "The way back")
    host.type(stop)
    (row,) = host.rows("select status from billing_daemon_status order by heartbeat_at desc limit 1")
    assert row["status"] == "stopped"
    assert [command.split()[0] for command in others] == ["cp", "systemctl", "systemctl"]
    for section in ("Retire a host", "From built-in billing"):
        assert commands("cutover.md", section)


def test_move_to_kubernetes_hands_over(host: Host) -> None:
    host.type("systemctl disable --now containerstacks-billing")
    host.type("containerstacks-billing migrate")
    host.unit = ControllerProcess(host.url)
    host.unit.wait_for("cycle.completed")
    pod = ControllerProcess(host.url)
    try:
        pod.wait_for("election.joined")
        for command in commands("cutover.md", "To Kubernetes"):
            if command.endswith(" status"):
                pod.wait_for("leader.elected")
            host.type(command)
    finally:
        pod.remove()


def test_resume_of_the_document_is_a_command(host: Host) -> None:
    host.type("containerstacks-billing migrate")
    (command,) = commands("cutover.md", "Later versions of the application")
    assert "the next leader will carry it out" in host.type(command)


def test_installed_unit_is_operated_as_described(host: Host) -> None:
    host.type("systemctl disable --now containerstacks-billing")
    host.type("containerstacks-billing migrate")
    for command in commands("systemd.md", "Install"):
        host.type(command)
    assert host.unit is not None
    host.unit.wait_for("cycle.completed")
    for command in commands("systemd.md", "Operate"):
        host.type(command)
    assert host.unit.wait() == 0
    unit = (ROOT / "manifests" / "systemd" / "containerstacks-billing.service").read_text("utf-8")
    document = (ROOT / "docs" / "systemd.md").read_text("utf-8")
    for path in (INSTALLED, "/etc/containerstacks-billing/database-url", "/run/containerstacks-billing/control.sock"):
        assert path in unit, path
        assert path in document, path
    assert "Restart=on-failure" in unit


# --- upgrade and uninstall


#: Everything in the database that has a name, and columns with their types.
CATALOG: Final = """
    select 'relation' as kind, relname::text as name from pg_class where relnamespace = 'public'::regnamespace
    union all
    select 'function', p.oid::regprocedure::text from pg_proc p where pronamespace = 'public'::regnamespace
    union all
    select 'trigger', tgname::text from pg_trigger where not tgisinternal
    union all
    select 'constraint', conname::text from pg_constraint where connamespace = 'public'::regnamespace
    order by 1, 2
"""


def test_upgrade_commands_work(host: Host) -> None:
    host.type("systemctl disable --now containerstacks-billing")
    for command in commands("upgrade.md", "Upgrade"):
        host.type(command)


def test_uninstall_leaves_what_the_application_had(host: Host) -> None:
    before = host.rows(CATALOG)
    host.type("systemctl disable --now containerstacks-billing")
    migrate_url(host.url)
    (uninstall,) = commands("upgrade.md", "Uninstall")
    host.unit = ControllerProcess(host.url)
    host.unit.wait_for("cycle.completed")
    with pytest.raises(RuntimeError, match="a controller holds the lock: stop every replica first"):
        host.type(uninstall)
    host.unit.kill()
    with pytest.raises(RuntimeError, match="a controller wrote a heartbeat in the last 3 minutes"):
        host.type(uninstall)
    host.rows("update billing_daemon_status set heartbeat_at = now() - interval '181 seconds' returning 1")
    host.type(uninstall)
    left = host.rows(CATALOG)
    added = [each for each in left if each not in before]
    # Migration 012 would have created these with the table, had the application not created it.
    assert {each["name"] for each in added} <= {
        "idx_billing_daemon_status_heartbeat",
        "idx_billing_daemon_status_instance",
    }, "list each new object in manifests/uninstall.sql"
    assert [each for each in before if each not in left] == []
    assert host.rows("select daemon_instance_id as name from billing_daemon_status") == [{"name": OLD}]
    assert host.rows("select count(*) as n from vps_billing_cycles") == [{"n": 3605}], "billed rows stay"
    with pytest.raises(RuntimeError, match="is not installed"):
        host.type(uninstall)
