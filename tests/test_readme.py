"""The README's commands work as written, and what it lists is what the program has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mapillary_uploader as mu
from support import ROOT, environment, run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def command_with(text: str) -> str:
    """The README's indented command line that holds the text."""
    return next(line.strip() for line in README.splitlines() if line.startswith("    ") and text in line)


def test_the_first_command_uploads_the_sample_tour(tmp_path: Path) -> None:
    for name in ("mapillary_uploader.py", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("mapillary_uploader.*", "__pycache__")
    shutil.copytree(ROOT / "tests" / "photos", tmp_path / "tests" / "photos", ignore=ignore)
    shutil.copy(ROOT / "tests" / "sandbox.py", tmp_path / "tests")
    install, _, main_job = command_with("sandbox.py").partition(" && ")
    assert install == "pip install -r requirements.txt"
    command = [sys.executable if word == "python" else word for word in main_job.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.strip() in README
    again = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "0 clusters" in again.stderr


def test_the_second_command_is_what_ci_runs() -> None:
    assert (
        command_with("python -m pytest").replace("pip install", "pip install -q") in (ROOT / ".ci" / "run").read_text()
    )


def test_the_option_list_is_that_of_help() -> None:
    pattern = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    table = {
        name for line in README.splitlines() if line.startswith("| `-") for name in pattern.findall(line.split("|")[1])
    }
    listed = {name for line in run("--help").out.splitlines() for name in pattern.findall(line[:25])}
    assert table == listed


def test_the_exit_codes_are_the_programs() -> None:
    table = README.partition("## Exit codes")[2].partition("## ")[0]
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")}
    assert codes == {int(code) for code in mu.Exit}


def test_the_json_example_has_the_programs_keys(tmp_path: Path) -> None:
    example = README.partition("## The JSON document")[2].partition("Photo states")[0]
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    document = run("-d", tmp_path, "--dry-run", "--json").document
    assert json.loads(example).keys() == document.keys()
    assert json.loads(example)["photos"][0].keys() == document["photos"][0].keys()


@pytest.mark.parametrize("option", ["--check", "--min-age"])
def test_the_cron_lines_are_commands_that_the_program_takes(option: str) -> None:
    line = next(line for line in README.splitlines() if line.strip().startswith(("*/30", "15 7")) and option in line)
    words = line.partition("mapillary_uploader.py ")[2].partition(" >")[0].split()
    assert "no such folder" in run(*words).err.casefold()


def test_the_systemd_service_takes_the_same_options() -> None:
    line = next(line for line in README.splitlines() if line.strip().startswith("ExecStart="))
    assert "no such folder" in run(*line.partition("mapillary_uploader.py ")[2].split()).err


@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
def test_uv_finds_the_scripts_packages() -> None:
    done = subprocess.run(
        ["uv", "export", "--script", "mapillary_uploader.py"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("uv can't resolve packages here")
    assert "requests==" in done.stdout
