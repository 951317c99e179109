"""What several test files share: running the program as a process or in this one, and reading what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mapillary_uploader as mu
from sandbox import Sandbox

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "mapillary_uploader.py"
SHARED_PHOTOS = ROOT.parent / "shared" / "photos"


@dataclass(frozen=True)
class Result:
    """A finished run: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The --json document."""
        return dict(json.loads(self.out))


def environment(sandbox: Sandbox | None = None, **changes: str) -> dict[str, str]:
    """A process environment with an empty HOME, no Mapillary variables but the sandbox's, and the changes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAPILLARY_")}
    home = {"HOME": tempfile.mkdtemp(prefix="home-")}
    return kept | home | (sandbox.environment() if sandbox else {}) | changes


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> Result:
    """Run the program as a process, without a terminal."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "timeout": 120, "errors": "surrogateescape"} | options
    done = subprocess.run(command, env=env or environment(), capture_output=True, text=True, **settings)
    return Result(done.returncode, done.stdout, done.stderr)


def upload(folder: Path, sandbox: Sandbox, *arguments: str, env: Mapping[str, str] | None = None) -> Result:
    """`mapillary_uploader.py -d folder -u demo …` against the sandbox, as a process."""
    return run("-d", folder, "-u", "demo", *arguments, env=environment(sandbox, **(env or {})))


class FastClock(mu.Clock):
    """A clock whose waits take a millisecond and count as long as they were meant to be; `waits` lists them."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.waits: list[float] = []

    def now(self) -> int:
        return int(1000 * (time.time() + self.ahead))

    def seconds(self) -> float:
        return time.monotonic() + self.ahead

    def wait(self, seconds: float, stop: threading.Event) -> None:
        self.waits.append(seconds)
        self.ahead += seconds
        super().wait(0.001, stop)


def upload_here(folder: Path, sandbox: Sandbox, clock: mu.Clock | None = None, **options: Any) -> mu.Exit:
    """The same in this process, with a clock of one's own."""
    settings: dict[str, Any] = {"username": "demo", "quiet": True} | options
    return mu.program(mu.Options(directory=folder, **settings), environment(sandbox), clock or FastClock())


def resume_of(folder: Path) -> dict[str, Any]:
    """The folder's resume file."""
    return dict(json.loads((folder / mu.RESUME_NAME).read_bytes()))
