"""pip, uvx and uv each make a command that runs, from the same list of packages."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import uv

import factory

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "mapillary_uploader.py").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PACKAGES = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
SCRIPT_METADATA = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", SOURCE, re.M)


def output_of(*command: str | Path, cwd: Path, code: int = 0, env: Mapping[str, str] = os.environ) -> str:
    """The stdout of a command that must end with the code, run without the tests' own variables for Python."""
    kept = {name: value for name, value in env.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uv_output_of(*command: str | Path, cwd: Path) -> str:
    """The same for uv, with this Python and a cache of its own."""
    python = {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}
    places = {"UV_CACHE_DIR": str(cwd.parent / "uv"), "TMPDIR": str(cwd.parent)}
    return output_of(uv.find_uv_bin(), *command, cwd=cwd, env=os.environ | python | places)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a package is made of, so that building leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("installing") / "tree"
    copy.mkdir()
    for name in ("mapillary_uploader.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE.txt"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def programs(tree: Path) -> Path:
    """Where the programs of a new virtual environment are. Skips, but for CI, where no package can be had."""
    output_of(sys.executable, "-m", "venv", tree.parent / "environment", cwd=tree)
    folder = tree.parent / "environment" / ("Scripts" if os.name == "nt" else "bin")
    look = [str(folder / "python"), "-m", "pip", "--retries=1", "download", "--no-cache-dir", "--no-deps", "piexif"]
    done = subprocess.run(look, cwd=tree.parent, capture_output=True, text=True)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"the package registry can't be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_script_and_the_package_need_the_same() -> None:
    assert SCRIPT_METADATA
    metadata = re.sub(r"^# ?", "", SCRIPT_METADATA[1], flags=re.M)
    listed = re.search(r"^dependencies = (\[.*?\])", metadata, re.M | re.S)
    assert listed and ast.literal_eval(listed[1]) == PACKAGES
    assert 'dependencies = { file = ["requirements.txt"] }' in PYPROJECT
    pythons = [re.findall(r"^requires-python = .*", text, re.M) for text in (metadata, PYPROJECT)]
    assert pythons[0] == pythons[1] and len(pythons[0]) == 1


def test_pip_installs_the_command_and_its_packages(tree: Path, programs: Path) -> None:
    output_of(programs / "python", "-m", "pip", "install", ".", cwd=tree)
    command = programs / "mapillary-uploader"
    read = "import importlib.metadata, json; print(json.dumps(importlib.metadata.metadata('mapillary-uploader').json))"
    metadata = json.loads(output_of(programs / "python", "-c", read, cwd=tree.parent))
    assert sorted(metadata["requires_dist"]) == sorted(PACKAGES)
    assert metadata["version"] in output_of(command, "--version", cwd=tree.parent)
    assert f'__version__ = "{metadata["version"]}"' in SOURCE
    assert "--directory" in output_of(command, "--help", cwd=tree.parent)
    tour = factory.write_tour(tree.parent / "tour", factory.tour(2))
    output_of(command, "--dry-run", "-d", tour, cwd=tree.parent)
    output_of(command, "--dry-run", "-d", "no such folder", cwd=tree.parent, code=2)


def test_uvx_runs_the_command(tree: Path, programs: Path) -> None:
    assert "--directory" in uv_output_of("tool", "run", "--from", ".", "mapillary-uploader", "--help", cwd=tree)


def test_uv_runs_the_script(tree: Path, programs: Path) -> None:
    assert "--directory" in uv_output_of("run", "mapillary_uploader.py", "--help", cwd=tree)
