"""kubectl and helm accept every command of the suite: each fails only when it connects to the API server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chart.toolbox import tool
from tests.e2e import manifests
from tests.e2e.helm import Helm
from tests.e2e.installation import DEPLOYMENT, LEADER, REPLICAS
from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.overlay import write_overlay
from tests.e2e.report import dump
from tests.e2e.test_rotation import DIGEST, FILE
from tests.e2e.test_uninstall import KINDS
from tests.e2e.values import RELEASE, values_for
from tests.e2e.workbench import POD, PROGRAM

METHODS: Mapping[str, Callable[[Kubectl], object]] = {
    "apply": lambda k: k.apply(manifests.secret("s", a="b"), manifests.workbench("billing:1")),
    "pods": lambda k: k.pods(REPLICAS),
    "events": Kubectl.events,
    "names": lambda k: k.names(KINDS),
    "logs": lambda k: k.logs("-l", LEADER),
    "wait": lambda k: k.wait("--for", "condition=Ready", f"pod/{POD}", seconds=5),
    "rolled_out": lambda k: k.rolled_out(RELEASE, seconds=5),
    "read": lambda k: k.read("get", "pdb", RELEASE),
    "events of an object": lambda k: k.read("events", "--for", DEPLOYMENT),
    "version": lambda k: k.run("version", "--output", "json"),
}

COMMANDS: list[tuple[str, ...]] = [
    ("delete", "pod", "a", "--wait=false"),
    ("delete", "pod", "a", "--grace-period=0", "--force", "--wait=false"),
    ("delete", "namespace", "a", "--wait=false"),
    ("delete", "namespaces", "--selector", f"{manifests.SESSION_LABEL}=a", "--timeout", "180s"),
    ("rollout", "restart", DEPLOYMENT),
    ("scale", DEPLOYMENT, "--replicas", "3"),
    ("logs", "--tail=-1", DEPLOYMENT, "--container", "migrate"),
    ("logs", "--follow", "--tail=-1", "a", "--container", "controller"),
    ("exec", DEPLOYMENT, "--", "containerstacks-billing", "status", "--json"),
    ("exec", "a", "--container", "controller", "--", "python3", "-c", DIGEST, FILE),
    ("exec", "--stdin", POD, "--", "python3", "-c", PROGRAM),
]

HELM: Mapping[str, Callable[[Helm], object]] = {
    "install": lambda h: h.install(RELEASE, values_for("install", "billing:1")),
    "install, not waiting": lambda h: h.install(RELEASE, values_for("install", "billing:1"), wait=False),
    "upgrade": lambda h: h.upgrade(RELEASE, values_for("upgraded", "billing:1")),
    "test": lambda h: h.test(RELEASE),
    "uninstall": lambda h: h.uninstall(RELEASE),
    "list": Helm.releases,
}

#: Part of the error when the API server can't be reached.
UNREACHED = "refused"


@pytest.mark.parametrize("method", METHODS)
def test_kubectl_accepts_the_command_of_each_method(method: str, kubectl: Kubectl) -> None:
    with pytest.raises(KubectlError, match=UNREACHED):
        METHODS[method](kubectl)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c)[:50].partition("\n")[0])
def test_kubectl_accepts_each_command(command: tuple[str, ...], kubectl: Kubectl) -> None:
    with pytest.raises(KubectlError, match=UNREACHED):
        kubectl.run(*command)


def test_kubectl_accepts_an_eviction(kubectl: Kubectl) -> None:
    done = kubectl.evict("a")
    assert done.returncode != 0
    assert UNREACHED in done.stderr


@pytest.mark.parametrize("command", [("apply",), ("delete", "--timeout", "180s")], ids=lambda c: c[0])
def test_kubectl_accepts_the_overlay(command: tuple[str, ...], kubectl: Kubectl, tmp_path: Path) -> None:
    overlay = str(write_overlay(tmp_path, "elsewhere", "billing:1"))
    with pytest.raises(KubectlError, match=UNREACHED):
        kubectl.run(*command, "--kustomize", overlay)


@pytest.mark.parametrize("method", HELM)
def test_helm_accepts_the_command_of_each_method(method: str, kubectl: Kubectl) -> None:
    helm = Helm(str(tool("helm")), kubectl.environment, "e2e")
    with pytest.raises(AssertionError, match=rf"(?s)helm {method.partition(',')[0]}: .*{UNREACHED}"):
        HELM[method](helm)


def test_dump_of_an_unreachable_cluster_shows_the_errors(kubectl: Kubectl) -> None:
    sections = dump(kubectl)
    assert len(sections) == 4
    assert all(UNREACHED in text for _, text in sections)


def fake_kubectl(folder: Path, program: str) -> Kubectl:
    """A kubectl that runs this Python program."""
    path = folder / "kubectl"
    path.write_text(f"#!{sys.executable}\n{program}", "utf-8")
    path.chmod(0o700)
    return Kubectl(str(path), {}, "e2e")


def test_arguments_begin_with_the_namespace(tmp_path: Path) -> None:
    kubectl = fake_kubectl(tmp_path, "import json, sys; print(json.dumps({'items': [], 'arguments': sys.argv[1:]}))")
    found: dict[str, Any] = kubectl.within("other").read("get", "pods")
    assert found["arguments"] == ["--namespace", "other", "get", "pods", "--output", "json"]


def test_objects_are_applied_in_one_call(tmp_path: Path) -> None:
    kubectl = fake_kubectl(tmp_path, f"import sys; open({str(tmp_path / 'in')!r}, 'w').write(sys.stdin.read())")
    kubectl.apply(manifests.secret("s", key="text"), manifests.namespace("n", "session"))
    applied = json.loads((tmp_path / "in").read_text("utf-8"))
    assert [item["kind"] for item in applied["items"]] == ["Secret", "Namespace"]


def test_error_quotes_the_program_and_shortens_its_arguments(tmp_path: Path) -> None:
    kubectl = fake_kubectl(tmp_path, "import sys; sys.exit('pods \"a\" not found')")
    with pytest.raises(KubectlError) as error:
        kubectl.run("exec", "a", "--", "python3", "-c", "first line\nsecond line")
    assert str(error.value) == 'kubectl exec a -- python3 -c first line: pods "a" not found'


def test_hanging_program_times_out(tmp_path: Path) -> None:
    kubectl = fake_kubectl(tmp_path, "import signal; signal.pause()")
    with pytest.raises(KubectlError, match="timed out"):
        kubectl.run("get", "pods", seconds=0.2)


def test_followed_log_is_complete(tmp_path: Path) -> None:
    kubectl = fake_kubectl(tmp_path, "import sys; print('one', flush=True); print(' '.join(sys.argv[1:]), flush=True)")
    with kubectl.following("pod-1") as log:
        text = log.until_the_end(30)
    assert text.splitlines() == ["one", "--namespace e2e logs --follow --tail=-1 pod-1 --container controller"]


def test_following_ends_with_the_block(tmp_path: Path) -> None:
    kubectl = fake_kubectl(tmp_path, "import signal; print('one', flush=True); signal.pause()")
    with kubectl.following("pod-1") as log:
        process = log.process
        with pytest.raises(AssertionError, match="still running"):
            log.until_the_end(0.1)
    assert process.returncode is not None
