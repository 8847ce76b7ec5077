"""checkov finds nothing in any rendering, except for the checks that are skipped here with a reason.

checkov is not a development dependency: it brings 70 packages, needs a minute of CPU to install, and holds others back.
`make checkov` installs it once into `.cache/checkov`. From then on `make test` runs this test too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.chart.golden import BASE, VALUE_SETS, dump
from tests.chart.toolbox import ROOT, render, run

INSTALLED: Final = ROOT / ".cache" / "checkov" / "bin" / "checkov"

#: By check: the objects that may fail it, and why.
SKIPPED: Final = {
    "CKV_K8S_8": (r"Pod\..*-test .*|StatefulSet\..*-demo-db .*", "the pod ends; the demo need not heal itself"),
    "CKV_K8S_9": (r"Pod\..*-test .*", "no Service selects this pod"),
    "CKV_K8S_11": (r".*", "a CPU limit throttles the leader's pings; `resources` can set one"),
    "CKV_K8S_15": (r".*", "a replica must start while the registry is unreachable; `image.pullPolicy` can be Always"),
    "CKV_K8S_35": (r"StatefulSet\..*-demo-db .*", "the demo's password is public"),
    "CKV_K8S_38": (r"Deployment\..*", "replicas label their pod; `kubernetes.enabled=false` takes the token away"),
    "CKV_K8S_40": (r".* /(full|openshift).yaml|StatefulSet\..*-demo-db .*", "OpenShift or the image chooses the user"),
    "CKV_K8S_43": (r".*", "`image.digest` names one; the chart's default can't"),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkov() -> str:
    found = os.environ.get("CHECKOV") or shutil.which("checkov") or (str(INSTALLED) if INSTALLED.exists() else None)
    if found is None:
        pytest.skip("no checkov: make checkov")
    return found


@pytest.mark.timeout(300)
def test_checkov_finds_nothing_but_what_is_skipped_with_a_reason(checkov: str, tmp_path: Path) -> None:
    for name, values in VALUE_SETS.items():
        (tmp_path / f"{name}.yaml").write_text(dump(render(values)), "utf-8")
    for overlay in (BASE, BASE.parent / "overlays" / "openshift"):
        (tmp_path / f"{overlay.name}.yaml").write_text(run("kubectl", "kustomize", str(overlay)).stdout, "utf-8")
    done = subprocess.run(
        [checkov, "--directory", str(tmp_path), "--framework", "kubernetes", "--skip-download", "--output", "json"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["summary"]["resource_count"] > 40, done.stderr
    failed = [
        (f["check_id"], f["resource"], f["file_path"], f["check_name"]) for f in report["results"]["failed_checks"]
    ]
    unexplained = [f for f in failed if not re.fullmatch(SKIPPED.get(f[0], ("", ""))[0], f"{f[1]} {f[2]}")]
    assert unexplained == []
    assert SKIPPED.keys() - {f[0] for f in failed} == set(), "these skips are no longer needed"
