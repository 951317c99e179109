"""Fixtures: a sandbox, and a small tour in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import factory
from sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A stand-in for Mapillary on 127.0.0.1."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight good photos in one sequence."""
    return factory.write_tour(tmp_path / "tour", factory.tour(8))
