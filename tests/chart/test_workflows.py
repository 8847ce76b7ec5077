"""The workflows run targets that exist and use pinned actions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.chart.test_image import program
from tests.chart.toolbox import ROOT, Manifest, load

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def steps(workflow: Manifest) -> list[Manifest]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_zizmor_finds_nothing() -> None:
    done = subprocess.run(
        [program("zizmor"), "--offline", "--no-progress", "--persona", "auditor", str(ROOT / ".github")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_hash_with_its_version_in_a_comment(path: Path) -> None:
    text = path.read_text("utf-8")
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for used in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", used), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_has_its_own_permissions_and_a_timeout(path: Path) -> None:
    workflow = load(path.read_text("utf-8"))[0]
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["permissions"]["contents"] == "read"
        assert job["timeout-minutes"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_make_target_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    called = set(re.findall(r"\bmake (\w+)", path.read_text("utf-8")))
    assert called
    assert {target for target in called if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_e2e_runs_on_three_consecutive_minors_by_digest() -> None:
    ci = load((ROOT / ".github" / "workflows" / "ci.yaml").read_text("utf-8"))[0]
    matrix = ci["jobs"]["e2e"]["strategy"]["matrix"]["include"]
    minors = [int(entry["kubernetes"].split(".")[1]) for entry in matrix]
    assert minors == [max(minors) - i for i in range(3)]
    for entry in matrix:
        assert re.fullmatch(rf"kindest/node:v{entry['kubernetes']}\.\d+@sha256:[0-9a-f]{{64}}", entry["node"])


def test_release_signs_and_attests_image_and_chart() -> None:
    release = load((ROOT / ".github" / "workflows" / "release.yaml").read_text("utf-8"))[0]
    text = "\n".join(step.get("run", "") for step in steps(release))
    assert text.count("cosign sign --yes") == 2
    assert "--sbom=true --provenance=mode=max" in text
    assert sum("attest-build-provenance" in step.get("uses", "") for step in steps(release)) == 2
