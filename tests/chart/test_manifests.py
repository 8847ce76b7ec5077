"""The files for installations without Helm: kustomize base, example Secret, database role, systemd unit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo

from controller.connection_url import check_url
from controller.sql import load as load_statements
from controller.sql import parse
from tests.chart.golden import BASE, base_files, plain_objects
from tests.chart.toolbox import controller, environment, load, one, run
from tests.support.servers import Server

MANIFESTS = BASE.parent
ROLE = "containerstacks_billing"
ROLE_SQL = (MANIFESTS / "role.sql").read_text("utf-8")
UNIT = MANIFESTS / "systemd" / "containerstacks-billing.service"


def test_base_equals_the_charts_default_objects() -> None:
    files = {path.name: path.read_text("utf-8") for path in BASE.iterdir()}
    assert files == base_files(), "run: python -m tests.chart.golden"


def test_kubectl_builds_the_charts_default_objects_from_the_base() -> None:
    done = run("kubectl", "kustomize", str(BASE))
    assert done.returncode == 0, done.stderr
    built = {o["kind"]: o for o in load(done.stdout)}
    assert built["RoleBinding"]["subjects"][0].pop("namespace") == "billing"
    for o in built.values():
        assert o["metadata"].pop("namespace") == "billing"
        kubernetes_validate.validate(o, "1.29", strict=True)
    assert built == {o["kind"]: o for o in plain_objects()}


def test_overlay_changes_namespace_and_image(tmp_path: Path) -> None:
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "elsewhere",
        "resources": ["base"],
        "images": [{"name": "containerstacks-billing", "newName": "r.example/b", "newTag": "9"}],
    }
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), "utf-8")
    objects = load(run("kubectl", "kustomize", str(tmp_path)).stdout)
    assert {o["metadata"]["namespace"] for o in objects} == {"elsewhere"}
    assert controller(objects)["image"] == "r.example/b:9"
    assert one(objects, "RoleBinding")["subjects"][0]["namespace"] == "elsewhere"


def test_openshift_overlay_sets_no_ids_and_changes_nothing_else() -> None:
    done = run("kubectl", "kustomize", str(MANIFESTS / "overlays" / "openshift"))
    assert done.returncode == 0, done.stderr
    built = {o["kind"]: o for o in load(done.stdout)}
    base = {o["kind"]: o for o in load(run("kubectl", "kustomize", str(BASE)).stdout)}
    context = base["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert [context.pop(name) for name in ("runAsUser", "runAsGroup", "fsGroup")] == [65532] * 3
    assert built == base


def test_base_reads_the_example_secret() -> None:
    (secret,) = load((MANIFESTS / "secret.example.yaml").read_text("utf-8"))
    kubernetes_validate.validate(secret, "1.29", strict=True)
    check_url(secret["stringData"]["DATABASE_URL"], "DATABASE_URL")
    path = environment(controller(plain_objects()))["DATABASE_URL_FILE"]
    assert path.endswith(f"/{secret['metadata']['name']}/{next(iter(secret['stringData']))}")


def test_systemd_accepts_the_unit_and_rates_it_as_hardened(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze: apt-get install systemd")
    # systemd-analyze requires the program, which isn't installed here
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^(Exec\w+)=\S+", r"\1=/bin/true", UNIT.read_text("utf-8")), "utf-8")
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = subprocess.run(
        [analyze, "security", "--no-pager", "--offline=true", "--threshold=15", str(copy)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exposure level above 1.5 of 10:\n{done.stdout[-200:]}"


def test_unit_waits_for_the_drain_and_runs_no_shell() -> None:
    unit = dict(line.split("=", 1) for line in UNIT.read_text("utf-8").splitlines() if re.match(r"[A-Z]\w+=", line))
    assert unit["Type"] == "notify"
    assert int(unit["TimeoutStopSec"]) == 270 + 30
    assert unit["KillMode"] == "mixed"
    assert (unit["WatchdogSec"], unit["Restart"]) == ("30", "on-failure")
    assert unit["ExecStart"].endswith("/containerstacks-billing run")


@pytest.fixture
def as_role(server: Server, database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a migrated database that acts as the role of role.sql."""
    with psycopg.connect(database, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname).as_string(connection)
        text = ROLE_SQL.replace(r"\set ON_ERROR_STOP on", "").replace(':"DBNAME"', name)
        for _ in range(2):  # the script is safe to repeat
            connection.execute(text.encode())
        connection.execute(f"set role {ROLE}".encode())
        yield connection


def test_role_may_run_every_verb_of_the_controllers_statements(as_role: psycopg.Connection[Any]) -> None:
    verbs = {"insert into": "INSERT", "update": "UPDATE", "delete from": "DELETE", "from": "SELECT", "join": "SELECT"}
    tables = {row[0] for row in as_role.execute("select relname from pg_class where relkind = 'r'").fetchall()}
    checked = set()
    owners = parse(  # `migrate` runs as the owner
        (resources.files("controller.postgres") / "sql" / "migrations.sql").read_text("utf-8")
    )
    for statement in (text for name, text in load_statements().items() if name not in owners):
        for verb, table in re.findall(r"\b(insert into|update|delete from|from|join) (\w+)", statement):
            if table not in tables or (table, verb) in checked:
                continue
            checked.add((table, verb))
            may = (
                as_role.execute("select has_any_column_privilege(%s, %s)", (table, verbs[verb]))
                if verb != "delete from"
                else (as_role.execute("select has_table_privilege(%s, 'DELETE')", (table,)))
            )
            assert may.fetchone() == (True,), f"role.sql doesn't allow: {verb} {table}"
    assert len(checked) > 10


@pytest.mark.parametrize("command", [["migrate"], ["bill"], ["audit"], ["status"], ["history"]], ids=" ".join)
def test_role_suffices_for_the_command(command: list[str], as_role: psycopg.Connection[Any], database: str) -> None:
    as_role.execute("reset role")
    as_role.execute(f"alter role {ROLE} password 'x'".encode())
    url = make_conninfo(database, user=ROLE, password="x")
    done = subprocess.run(
        [sys.executable, "-m", "controller", *command],
        env={**os.environ, "DATABASE_URL": url, "BILLING_TAKEOVER_DELAY_SECONDS": "0"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "permission denied" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "forbidden",
    [
        "delete from payment_transactions",
        "update payment_transactions set amount = 0",
        "delete from wallets",
        "update wallets set currency = 'EUR'",
        "insert into wallets (organization_id) select id from organizations",
        "update vps_instances set plan_id = null",
        "update billing_terms set term = 0",
        "delete from billing_runs",
        "delete from billing_prices",
        "select email from users",
        "create table mine (a int)",
        "alter table wallets add column a int",
    ],
)
def test_role_may_do_nothing_else(as_role: psycopg.Connection[Any], forbidden: str) -> None:
    as_role.execute("reset role")
    as_role.execute("revoke create on schema public from public")  # the default from PostgreSQL 15 on
    as_role.execute(f"set role {ROLE}".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role.execute(forbidden.encode())


def test_role_reads_every_table_and_view_of_the_controller(as_role: psycopg.Connection[Any]) -> None:
    rows = as_role.execute(
        "select relname, has_any_column_privilege(oid, 'select') from pg_class"
        " where relkind in ('r', 'v') and relnamespace = 'public'::regnamespace and starts_with(relname, 'billing_')"
    ).fetchall()
    assert len(rows) > 5
    assert {name for name, readable in rows if not readable} == set()
