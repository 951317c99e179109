"""The linter, the type checker and the size of things, so that one command runs all checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "mapillary_uploader.py").read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
MOST_LINES = 3_615  # of the module
LONGEST = 40  # lines of a function
CHECKS = {
    "format": ("ruff", "format", "--check", "."),
    "lint": ("ruff", "check", "."),
    "types": ("mypy", "--strict", "mapillary_uploader.py", "tests"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_checks_pass(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", *CHECKS[name]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_module_and_its_functions_are_short() -> None:
    functions = [node for node in ast.walk(TREE) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {f.name: n for f in functions if (n := (f.end_lineno or 0) - f.lineno + 1) > LONGEST} == {}
    assert SOURCE.count("\n") <= MOST_LINES


def test_public_things_have_docstrings() -> None:
    classes = [node for node in TREE.body if isinstance(node, ast.ClassDef)]
    bodies: list[list[ast.stmt]] = [TREE.body, *(node.body for node in classes)]
    things = [node for body in bodies for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert [node.name for node in things if not node.name.startswith("_") and not ast.get_docstring(node)] == []


def test_nothing_outside_the_repository_is_referred_to() -> None:
    files = [ROOT / "mapillary_uploader.py", ROOT / "README.md", *ROOT.glob("tests/*.py")]
    words = ("DESIGN" + ".md", "mapillary" + "-api.md", "bug" + "-reports", "/work" + "/", "the " + "contract")
    found = [(path.name, word) for path in files for word in words if word in path.read_text(encoding="utf-8")]
    assert found == []
