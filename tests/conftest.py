"""Fixtures: a sandbox, and a small tour in a folder of its own; and how hypothesis works."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import factory
from sandbox import Sandbox

settings.register_profile("on any machine", max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("on any machine")


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Homes of processes, too, are where pytest clears up."""
    tempfile.tempdir = str(tmp_path_factory.getbasetemp())


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A stand-in for Mapillary on 127.0.0.1."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight good photos in one sequence."""
    return factory.write_tour(tmp_path / "tour", factory.tour(8))
