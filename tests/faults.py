"""What the tests of failures share: events to wait for and to hold back, processes to end, and what must come out."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mapillary_uploader as mu
from sandbox import Fault, Request, Sandbox, graph_error
from support import PROGRAM, FastClock, FastRun, environment, sequences_of

PHOTO, MANIFEST, OFFSET, FINISH = "POST /mly.*jpg", "POST /mly.*json", "GET /mly", "POST /finish_upload"
IMAGES, ME = "GET /images", "GET /me"
NO = graph_error("no")  # as the Graph API says it, for good
BAD_TOKEN = graph_error("no", code=190)
TRANSIENT = graph_error("no", code=2, is_transient=True)
Json = dict[str, Any]


class Watched(FastRun):
    """A call under a fast clock, or a clock of one's own, with its waits that took time, in seconds."""

    @property
    def waits(self) -> list[float]:
        return [wait for wait in self.fast.waits if wait]

    @property
    def pauses(self) -> list[float]:
        """The waits that are longer than any retry's: those of an outage."""
        return [wait for wait in self.waits if wait > 16]

    def told(self, level: str) -> list[str]:
        return [text for kind, text in self.messages if kind == level]


class Waiting(FastClock):
    """A clock that does something first where a wait is at least so long; it can ask whether the run has ended."""

    def __init__(self, seconds: float, do: Callable[[Callable[[], bool]], object]) -> None:
        super().__init__()
        self.least, self.do = seconds, do

    def wait(self, seconds: float, stop: Callable[[], bool]) -> None:
        if seconds >= self.least:
            self.do(stop)
        super().wait(seconds, stop)


@dataclass
class Held(Fault):
    """A request that is answered as it would be, or with another fault of its own, but only after something else."""

    until: Callable[[], object] = bool

    @property
    def replaces(self) -> bool:
        wait_until(self.until)
        return super().replaces


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it doesn't happen"
        time.sleep(0.01)


def was_asked(sandbox: Sandbox, match: str, times: int = 1) -> bool:
    """Whether so many such requests have come."""
    return sum(1 for request in list(sandbox.requests) if re.search(match, request.target)) >= times


def when_asked(match: str, do: Callable[[], object], received: int = 0) -> Fault:
    """No fault, but what happens on this machine as soon as so many bytes of the first such request have come."""
    seen: list[Request] = []

    def later() -> None:
        wait_until(lambda: seen[0].body_size >= received)
        do()

    def asked(request: Request) -> bool:
        if re.search(match, request.target) and not seen:
            seen.append(request)
            threading.Thread(target=later).start() if received else do()
        return False

    return Fault(asked)


@contextlib.contextmanager
def started(folder: Path, sandbox: Sandbox, *arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """The program as a process, which doesn't outlive the block."""
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", *arguments]
    pipes: Json = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    with subprocess.Popen(command, env=environment(sandbox), text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[str], sandbox: Sandbox) -> None:
    """Kill a run; whatever it had asked for is over then."""
    process.kill()
    process.wait(60)
    wait_until(lambda: all(request.ended < math.inf for request in list(sandbox.requests)))


def states(folder: Path) -> list[str]:
    """States of the sequences in the resume file, in its order; none where there is no file."""
    return [sequence["state"] for sequence in sequences_of(folder).values()]


def keys_of(folder: Path) -> dict[str, str]:
    """The session keys of a folder's photos, by file name: mly_tools_<MD5 of the bytes that are sent>.jpg."""
    digests = {p.file: hashlib.md5(b"".join(mu.sent_bytes(folder, p))) for p in mu.check_folder(folder).photos}
    return {file: f"mly_tools_{digest.hexdigest()}.jpg" for file, digest in digests.items()}


def assert_published_once(sandbox: Sandbox, count: int) -> None:
    """So many photos arrived and were published, each once and as it was described."""
    keys = {photo.session_key for photo in sandbox.published}
    assert len(keys) == len(sandbox.published) == count and sandbox.published_twice == sandbox.corrupt == []
