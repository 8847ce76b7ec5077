"""Fixtures, time limits and failure reports of the end-to-end suite.

The tests in own/ need no cluster and don't use these fixtures.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest

from tests.chart.toolbox import ToolMissingError, tool
from tests.e2e.cluster import NoCluster, choose, connected
from tests.e2e.installation import Installation
from tests.e2e.kubectl import Kubectl
from tests.e2e.report import dump
from tests.e2e.stage import Stage, staged
from tests.e2e.waiting import scaled

#: Covers a test and the fixtures that it sets up first: images, pods, an installation.
TEST_SECONDS = 1800

OPEN_NAMESPACES = pytest.StashKey[list[Kubectl]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("e2e") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(scaled(TEST_SECONDS)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.get_closest_marker("e2e"):
        for kubectl in item.config.stash.get(OPEN_NAMESPACES, []):
            report.sections += dump(kubectl)
    return report


@pytest.fixture(scope="session")
def stage(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The cluster with a workbench and a PostgreSQL server. Skips the test if there is no cluster."""
    choice = choose(os.environ)
    if isinstance(choice, NoCluster):
        pytest.skip(choice.reason)
    try:
        tool("helm")
        tool("kubectl")
    except ToolMissingError as error:
        pytest.skip(str(error))
    keep = bool(os.environ.get("E2E_KEEP"))
    open_namespaces = pytestconfig.stash.setdefault(OPEN_NAMESPACES, [])
    with ExitStack() as stack:
        name = f"{os.getpid():x}"
        cluster = stack.enter_context(connected(choice, tmp_path_factory.mktemp("e2e"), name, keep=keep))
        yield stack.enter_context(staged(cluster, open_namespaces, keep=keep))


@pytest.fixture(scope="module")
def purpose(request: pytest.FixtureRequest) -> str:
    """The module's PURPOSE, a key of values.PURPOSES."""
    found: str = request.module.PURPOSE
    return found


@pytest.fixture(scope="module")
def shared_release(stage: Stage, purpose: str) -> Iterator[Installation]:
    """A release that all tests of a module share."""
    with stage.installed(purpose) as installed:
        yield installed


@pytest.fixture
def release(shared_release: Installation) -> Iterator[Installation]:
    """The module's release with all its replicas Ready. After the test the audit must be clean."""
    shared_release.wait_for_replicas(int(shared_release.values.get("replicas", 2)))
    yield shared_release
    assert not (found := shared_release.database.audit()), found
