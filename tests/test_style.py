"""The linter and the type checker, so that one command runs all checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKS = {
    "format": ("ruff", "format", "--check", "."),
    "lint": ("ruff", "check", "."),
    "types": ("mypy", "--strict", "mapillary_uploader.py", "tests"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_checks_pass(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", *CHECKS[name]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_function_is_over_35_lines_and_public_ones_have_docstrings() -> None:
    tree = ast.parse((ROOT / "mapillary_uploader.py").read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 35] == []
    public = [f for f in tree.body if isinstance(f, (ast.FunctionDef, ast.ClassDef)) and not f.name.startswith("_")]
    assert [f.name for f in public if not ast.get_docstring(f)] == []


def test_script_metadata_and_requirements_name_the_same_packages() -> None:
    source = (ROOT / "mapillary_uploader.py").read_text(encoding="utf-8")
    line = next(line for line in source.splitlines() if line.startswith("# dependencies = "))
    assert ast.literal_eval(line.removeprefix("# dependencies = ")) == (ROOT / "requirements.txt").read_text().split()
