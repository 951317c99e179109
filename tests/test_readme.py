"""The README's commands work as written, and what it lists is what the program has."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import mapillary_uploader as mu
from support import ROOT, environment, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "tests" / "result.schema.json").read_text())
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
OURS = "mapillary_uploader.py "
COMMANDS = [line for kind, block in BLOCKS if kind != "text" for line in block.splitlines() if OURS in line]
MOST_CHARACTERS = 15_526


def section(title: str) -> str:
    """What stands under a heading."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def bash(command: str, cwd: Path) -> tuple[int, str, str]:
    """Run a command as a person does who is in that folder: exit code, stdout, stderr."""
    env = environment(PATH=f"{Path(sys.executable).parent}:{environment()['PATH']}")
    done = subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def undated(text: str) -> list[str]:
    """Lines without times of the log."""
    return [re.sub(r"^20\d\d-\S+Z ", "", line) for line in text.splitlines()]


def test_the_first_command_uploads_the_sample_tour_as_shown(tmp_path: Path) -> None:
    for name in ("mapillary_uploader.py", "requirements.txt", "tests/sandbox.py", "tests/factory.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tests/photos", tmp_path / "tests/photos", ignore=shutil.ignore_patterns("mapillary_upl*"))
    command = next(line for line in COMMANDS if "sandbox.py" in line)
    install, _, command = command.partition(" && ")
    assert install == "pip install -r requirements.txt"
    code, out, err = bash(command, tmp_path)
    assert code == 0, err
    shown = next(undated(block) for kind, block in BLOCKS if kind == "text")
    assert [line for line in undated(err) + undated(out) if line not in shown] == []
    assert [line for line in shown if line not in undated(err) + undated(out)] == []
    again = bash(command, tmp_path)
    assert again[0] == 0 and "nothing new: 8 published before" in again[1] and "sandbox: 0 clusters" in again[2]
    clean = re.search(r"`(rm [^`]*)`", section("Try it"))
    assert clean and bash(clean[1], tmp_path)[0] == 0
    assert {path.suffix for path in (tmp_path / "tests/photos").iterdir()} == {".jpg"}


def test_the_second_command_is_what_ci_runs() -> None:
    assert "pip install -r tests/requirements.txt && python -m pytest" in [block.strip() for _, block in BLOCKS]
    assert "tests/requirements.txt" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one_that_the_program_takes(line: str) -> None:
    words = shlex.split(re.split(r" >|  #| \|", line.partition(OURS)[2])[0])
    if "-d" in words and "{}" not in words and "$" not in line:
        words[words.index("-d") + 1] = "missing"
        result = run(*words)
        assert result.code == 2 and "no such folder: missing" in result.err


def test_the_option_table_is_that_of_help() -> None:
    name = re.compile(r"(?<![\w-])-{1,2}[a-z][a-z-]*")
    rows = [line.split("|")[1] for line in section("Options").splitlines() if line.startswith("| `-")]
    helped = re.findall(r"^  (-.*?)(?:  |$)", run("--help").out, re.M)
    assert sorted(option for row in rows for option in name.findall(row)) == sorted(
        option for line in helped for option in name.findall(line)
    )


def test_the_exit_codes_are_the_programs() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", section("Exit codes"), re.M)
    assert {int(code) for row in rows for code in row.split(",")} == {int(code) for code in mu.Exit}
    assert "130/143, 5, 2, 4, 6, 1, 3" in section("Exit codes")


def test_the_json_example_is_a_document(tmp_path: Path) -> None:
    example = json.loads(next(block for kind, block in BLOCKS if kind == "json"))
    jsonschema.validate(example, SCHEMA)
    definitions = SCHEMA["$defs"]
    for kind, plural in (("photo", "Photos"), ("sequence", "sequences")):
        states = re.search(rf"{plural} (?:are )?([\w, ]+) or (\w+)", section("Options"))
        assert states and {*states[1].split(", "), states[2]} == {*definitions[kind]["properties"]["state"]["enum"]}


def test_fenced_blocks_have_a_language_and_links_lead_somewhere() -> None:
    fences = re.findall(r"^```.*$", README, re.M)
    assert all(re.fullmatch(r"```\w+", fence) for fence in fences[::2]) and set(fences[1::2]) == {"```"}
    anchors = [
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall("^## (.*)$", README, re.M)
    ]
    contents = re.findall(r"\]\(#([^)]*)\)", README)
    assert contents == anchors
    files = re.findall(r"\]\((?!https?:|#)([^)]*)\)", README)
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert all(link.startswith("https://") for link in re.findall(r"https?:[^)>\s`\"]*", README))


def test_it_is_finished_and_no_longer_than_it_was() -> None:
    assert re.findall(r"^[A-Z_]+$", README, re.M) == []  # what is still to be written
    assert len(README) <= MOST_CHARACTERS
