"""The progress line on a terminal whose results go elsewhere, and usage errors of --recursive."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from sandbox import Sandbox
from support import PROGRAM, environment, run


def test_the_progress_line_fits_the_terminal_also_where_stdout_is_a_file(sandbox: Sandbox, folder: Path) -> None:
    columns, sandbox.delay = 40, 0.2
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", "--workers", "1", "--json"]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment(sandbox), timeout=60, check=True)
    os.close(theirs)
    drawn = [line.split("\x1b")[0] for line in os.read(ours, 1 << 16).decode().split("\r") if line.startswith("[")]
    os.close(ours)
    assert drawn and max(map(len, drawn)) < columns


@pytest.mark.parametrize("arguments", [["--nosuch"], []], ids=["unknown option", "no folder"])
def test_usage_errors_of_recursive_have_its_document_too(arguments: list[str]) -> None:
    result = run("--recursive", "--json", *arguments)
    document = json.loads(result.out)
    assert result.code == document["exit_code"] == 2
    assert document["folders"][0]["error"].endswith(". See --help") and ".." not in document["folders"][0]["error"]
