"""What several test files share: running the program as a process or from Python, and reading what it leaves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import requests

import factory
import mapillary_uploader as mu
from sandbox import Sandbox

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "mapillary_uploader.py"
RESUME, LOCK = "mapillary_uploader.json", "mapillary_uploader.lock"
LIBC = ctypes.CDLL(None)
NEVER = 10.0**9  # seconds until a photo appears
SHARED_PHOTOS = ROOT.parent / "shared" / "photos"  # real photos, where there are any
Files = dict[str, bytes]


@dataclass(frozen=True)
class Ran:
    """A finished process: exit code, stdout, stderr."""

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


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> Ran:
    """Run the program as a process, without a terminal."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "timeout": 300, "errors": "surrogateescape"} | options
    done = subprocess.run(command, env=env or environment(), capture_output=True, text=True, **settings)
    return Ran(done.returncode, done.stdout, done.stderr)


def upload(folder: Path, sandbox: Sandbox, *arguments: str, env: Mapping[str, str] | None = None) -> Ran:
    """`mapillary_uploader.py -d folder -u demo …` against the sandbox, as a process."""
    return run("-d", folder, "-u", "demo", *arguments, env=environment(sandbox, **(env or {})))


class FastClock(mu.Clock):
    """A clock whose waits take a millisecond and count as long as they were meant to be; `waits` lists them."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        self.waits: list[float] = []

    def now(self) -> int:
        return int(1000 * (time.time() + self.ahead))

    def seconds(self) -> float:
        return time.monotonic() + self.ahead

    def wait(self, seconds: float, stop: Callable[[], bool]) -> None:
        self.waits.append(seconds)
        self.ahead += max(0.0, seconds)
        super().wait(0.001, stop)


class FastRun(mu.Run):
    """A call that keeps its messages, under a fast clock."""

    def __init__(self, clock: FastClock | None = None) -> None:
        super().__init__()
        self.fast = self.clock = clock or FastClock()
        self.messages: list[tuple[str, str]] = []

    def message(self, level: str, text: str) -> None:
        self.messages.append((level, text))


class Later(FastRun):
    """A call some hours from now."""

    def __init__(self, hours: float) -> None:
        super().__init__(FastClock(3600 * hours))


def service_of(sandbox: Sandbox) -> mu.Service:
    """The sandbox as Mapillary."""
    return mu.service_from(sandbox.environment())


def account(sandbox: Sandbox, organization_id: str | None = None) -> mu.Account:
    """The sandbox's first account."""
    return mu.account_of(sandbox.accounts[0].token, organization_id, service_of(sandbox))


def upload_here(folder: Path, sandbox: Sandbox, run: mu.Run | None = None, **settings: Any) -> mu.Result:
    """Check and publish a folder from Python, with a fast clock unless another is given."""
    run = run or FastRun()
    tour = mu.check_folder(folder, mu.Settings(**settings), run)
    return mu.publish(tour, account(sandbox), service_of(sandbox), run)


def redirect_of(address: str) -> str:
    """Where a browser is sent on to from an address."""
    return requests.get(address, allow_redirects=False).headers["Location"]


def resume_of(folder: Path) -> dict[str, Any]:
    """The folder's resume file."""
    return dict(json.loads((folder / RESUME).read_bytes()))


def sequences_of(folder: Path) -> dict[str, Any]:
    """The sequences in the folder's resume file; none where there is no file."""
    return dict(resume_of(folder)["sequences"]) if (folder / RESUME).exists() else {}


def sizes(sandbox: Sandbox) -> list[int]:
    """How many photos each publish that took effect had."""
    return [len(cluster.photos) for cluster in sandbox.clusters]


def add_sequences(folder: Path, *counts: int) -> Path:
    """Write further sequences of so many photos, far from each other: A1.jpg …, B1.jpg …"""
    for name, count, latitude in zip("ABCD", counts, itertools.count(52)):
        factory.write_tour(folder, factory.tour(count, names=name + "{}.jpg", latitude=latitude))
    return folder


@contextlib.contextmanager
def full_disk(first: int, last: float = math.inf) -> Iterator[None]:
    """From the first to the last of the writes that follow there is no room on the disk."""
    writes, fsync = itertools.count(1), os.fsync

    def full(handle: int) -> None:
        if first <= next(writes) <= last:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with mock.patch.object(os, "fsync", full):
        yield


def without_override() -> None:
    """In a new process of root: let the modes of files hold for it too."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
