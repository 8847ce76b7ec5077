"""Loads settings in tests."""

from __future__ import annotations

import pytest

from controller import settings


def load(**environment: str) -> settings.Settings:
    """Loads the settings from these variables alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return settings.load()
