"""Skips the chart's tests where helm or kubectl is missing, and says what to install."""

from __future__ import annotations

import pytest

from tests.chart.toolbox import ToolMissingError, tool


@pytest.fixture(autouse=True, scope="package")
def programs() -> None:
    try:
        tool("helm")
        tool("kubectl")
    except ToolMissingError as error:
        pytest.skip(str(error))
