"""Reviewed renderings of the chart, and the files that are generated from it. After an intended change, run

    python -m tests.chart.golden

and review the diff. The command writes `golden/`, `manifests/base/` and the table of values in the chart's README.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.chart.toolbox import CHART, MINIMAL, ROOT, Manifest, Values, leaves, load, render

GOLDEN: Final = Path(__file__).parent / "golden"
VALUES: Final = Path(__file__).parent / "values"
BASE: Final = ROOT / "manifests" / "base"
DASHBOARD: Final = CHART / "dashboards" / "containerstacks-billing.json"
TABLE: Final = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- /values -->)", re.DOTALL)

#: Labels that Helm relies on. The kustomize base leaves them out.
HELM_LABELS: Final = ("app.kubernetes.io/managed-by", "helm.sh/chart")


def read_values(name: str) -> Values:
    """The values in `values/NAME.yaml`."""
    read: Values = yaml.safe_load((VALUES / f"{name}.yaml").read_text("utf-8"))
    return read


#: Sets of values with a golden rendering.
GOLDEN_NAMES: Final = sorted(path.stem for path in VALUES.glob("*.yaml"))
#: The same sets, and the default values. The default values need no golden rendering, because the demo's contains the
#: same objects (test_objects.py checks that), and so does `manifests/base`.
VALUE_SETS: Final[Mapping[str, Values]] = {"default": MINIMAL} | {name: read_values(name) for name in GOLDEN_NAMES}


def rendering(name: str) -> str:
    """The objects of a set of values, sorted and formatted so that a diff shows only changes of content."""
    objects = render(VALUE_SETS[name])
    for o in objects:
        if o["metadata"]["name"].endswith("-dashboard"):
            assert o["data"] == {DASHBOARD.name: DASHBOARD.read_text("utf-8").rstrip()}
            o["data"] = {DASHBOARD.name: f"({DASHBOARD.relative_to(ROOT)})"}
    return dump(sorted(objects, key=lambda o: (o["kind"], o["metadata"]["name"])))


def dump(objects: list[Manifest]) -> str:
    """Formats objects as a stream of YAML documents."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def plain_objects() -> list[Manifest]:
    """The chart's default objects without hooks, Helm's labels and namespaces: what kubectl applies."""
    objects = [o for o in render(MINIMAL) if "helm.sh/hook" not in o["metadata"].get("annotations", {})]
    for o in objects:
        del o["metadata"]["namespace"]  # kustomize sets it
        for name in HELM_LABELS:
            del o["metadata"]["labels"][name]
        for subject in o.get("subjects", []):
            del subject["namespace"]
    return objects


def base_files() -> dict[str, str]:
    """The files of the kustomize base, by name."""
    order = [
        "ServiceAccount", "Role", "RoleBinding", "Service", "Deployment", "PodDisruptionBudget",
    ]  # fmt: skip
    note = "# Generated from the chart by `python -m tests.chart.golden`. Change the chart, not this file.\n"
    objects = {o["kind"]: o for o in plain_objects()}
    assert sorted(objects) == sorted(order)
    files = {f"{kind.lower()}.yaml": note + dump([objects[kind]]) for kind in order}
    kustomization: Manifest = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "billing",
        "resources": list(files),
    }
    return {"kustomization.yaml": note + dump([kustomization]), **files}


@cache
def schema() -> Manifest:
    """The parsed values.schema.json."""
    read: Manifest = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    return read


@cache
def default_values() -> Manifest:
    """The parsed values.yaml."""
    return load((CHART / "values.yaml").read_text("utf-8"))[0]


def described(path: tuple[str, ...]) -> Manifest:
    """The schema of a value, or of the nearest mapping around it that declares no properties."""
    node = schema()
    for key in path:
        if key not in node.get("properties", {}):
            break
        node = node["properties"][key]
    return node


def values_table() -> str:
    """The README's table: every value with its default and its description in the schema."""
    lines = ["| value | default | description |", "|---|---|---|"]
    seen = set()
    for path, _ in leaves(default_values()):
        depth = _documented_depth(path)
        if path[:depth] in seen:
            continue
        seen.add(path[:depth])
        default: Any = default_values()
        for key in path[:depth]:
            default = default[key]
        shown = json.dumps(default, ensure_ascii=False)
        lines.append(f"| `{'.'.join(path[:depth])}` | `{shown}` | {described(path)['description']} |")
    return "\n".join(lines) + "\n"


def _documented_depth(path: tuple[str, ...]) -> int:
    node = schema()
    for depth, key in enumerate(path):
        if key not in node.get("properties", {}):
            return depth
        node = node["properties"][key]
    return len(path)


def main() -> None:
    """Writes every generated file."""
    for name in GOLDEN_NAMES:
        (GOLDEN / f"{name}.yaml").write_text(rendering(name), "utf-8")
    BASE.mkdir(parents=True, exist_ok=True)
    for file, text in base_files().items():
        (BASE / file).write_text(text, "utf-8")
    readme = CHART / "README.md"
    text = readme.read_text("utf-8")
    readme.write_text(TABLE.sub(lambda _: values_table(), text), "utf-8")


if __name__ == "__main__":
    main()
