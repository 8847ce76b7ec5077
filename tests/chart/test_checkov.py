"""checkov finds nothing in any rendering, except for the checks that are skipped here with a reason.

checkov is not a development dependency, because it holds others back. `make test` installs it into a separate folder,
without the packages that only its other checks need.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.chart.golden import BASE, VALUE_SETS, dump
from tests.chart.toolbox import ROOT, render, run

INSTALLED: Final = ROOT / ".cache" / "checkov"

#: Prints a JSON list of the failed checks, and the number of objects. checkov's own program would import much more.
PROGRAM: Final = """
import json, sys
from checkov.kubernetes.runner import Runner
from checkov.runner_filter import RunnerFilter

report = Runner().run(root_folder=sys.argv[1], runner_filter=RunnerFilter(framework=["kubernetes"]))
failed = [(f.check_id, f.resource, f.file_path, f.check_name) for f in report.failed_checks]
print(json.dumps([failed, report.get_summary()["resource_count"]]))
"""

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


def test_checkov_finds_nothing_but_what_is_skipped_with_a_reason(tmp_path: Path) -> None:
    if not (INSTALLED / ".made").exists():
        pytest.skip("no checkov: make .cache/checkov/.made")
    for name, values in VALUE_SETS.items():
        (tmp_path / f"{name}.yaml").write_text(dump(render(values)), "utf-8")
    for overlay in (BASE, BASE.parent / "overlays" / "openshift"):
        (tmp_path / f"{overlay.name}.yaml").write_text(run("kubectl", "kustomize", str(overlay)).stdout, "utf-8")
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, str(tmp_path)],  # -S: without the development environment's packages
        env={"PYTHONPATH": str(INSTALLED), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failed, objects = json.loads(done.stdout)
    assert objects > 40, done.stderr
    unexplained = [f for f in failed if not re.fullmatch(SKIPPED.get(f[0], ("", ""))[0], f"{f[1]} {f[2]}")]
    assert unexplained == []
    assert SKIPPED.keys() - {f[0] for f in failed} == set(), "these skips are no longer needed"
