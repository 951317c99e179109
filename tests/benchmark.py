"""Measures this program and mapillary_tools side by side, on the same photos, against the sandbox in its own process.

    python tests/benchmark.py upload --photos 200 --megabytes 2 --delay 80
    python tests/benchmark.py check --photos 20000
    python tests/benchmark.py again --photos 20000
    python tests/benchmark.py save --photos 20000
    python tests/benchmark.py sandbox

Whole processes, from start to published, in turn (A B A B …); the table gives medians and the ratio of the pairs'
medians. Machines differ and are noisy: quote ratios, not seconds. `--alone` leaves mapillary_tools out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import factory

ROOT = Path(__file__).parent.parent
MINE, THEIRS = "mapillary_uploader", "mapillary_tools"


@dataclass(frozen=True)
class Measure:
    """One run of one program: wall seconds, CPU seconds with all its children, peak memory in MB."""

    wall: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class Place:
    """Where a round's programs work: the photos, and a scratch folder."""

    photos: Path
    scratch: Path


@contextmanager
def running_sandbox(delay: float, bandwidth: float | None) -> Iterator[dict[str, str]]:
    """The sandbox as a process; its environment variables."""
    command = [sys.executable, str(ROOT / "tests" / "sandbox.py"), "--unhashed", "--delay", str(delay)]
    command += ["--bandwidth", str(bandwidth)] if bandwidth else []
    with subprocess.Popen([*command, "--serve"], stdout=subprocess.PIPE, text=True) as process:
        environment: dict[str, str] = {}
        assert process.stdout
        while "MAPILLARY_ACCESS_TOKEN" not in environment or len(environment) < 3:
            words = shlex.split(process.stdout.readline())
            environment |= dict(word.split("=", 1) for word in words if "=" in word)
        try:
            yield environment
        finally:
            process.terminate()


def measured(command: list[str], environment: dict[str, str]) -> Measure:
    """Run a command to its end and measure it; it must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = threading.Thread(target=lambda: tail.append(process.stderr.read() if process.stderr else b""))
    tail: list[bytes] = []
    errors.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    errors.join()
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{shlex.join(command)} failed:\n{tail[0].decode()[-2000:]}")
    return Measure(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def mine(place: Place, *arguments: str) -> list[str]:
    """This program on the photos."""
    return [sys.executable, str(ROOT / "mapillary_uploader.py"), "-d", str(place.photos), "-u", "demo", *arguments]


def theirs(place: Place, command: str) -> list[str]:
    """The official client on the photos."""
    account = ["--user_name", "demo"] if command != "process" else []
    program = [sys.executable, "-c", "from mapillary_tools.commands.__main__ import main; main()"]
    return [*program, command, *account, "--desc_path", str(place.scratch / "description.json"), str(place.photos)]


def their_environment(scratch: Path) -> dict[str, str]:
    """A profile and empty caches for the official client."""
    scratch.mkdir(parents=True, exist_ok=True)
    token = "user_upload_token = MLY|sandbox|demo-token"
    (scratch / "config").write_text(f"[demo]\n{token}\nMAPSettingsUserKey = 1001\nMAPSettingsUsername = demo\n")
    folders = {"MAPILLARY_UPLOAD_HISTORY_PATH": "history", "MAPILLARY_TOOLS_UPLOAD_CACHE_DIR": "cache", "HOME": "home"}
    environment = {name: str(scratch / folder) for name, folder in folders.items()}
    return environment | {"MAPILLARY_CONFIG_PATH": str(scratch / "config"), "MAPILLARY_TOOLS_PROMPT_DISABLED": "YES"}


def make_photos(folder: Path, count: int, megabytes: float) -> Path:
    """`count` photos of about so many megabytes, in sequences of 1,000."""
    filler = max(0, int(megabytes * 1_000_000) - 4_000)
    for first in range(0, count, 1000):
        names = [f"GS{number:06d}_calculated.jpg" for number in range(first, min(first + 1000, count))]
        start = f"2021:07:{first // 1000 % 28 + 1:02d} 09:00:00Z"
        sequence = factory.identifier("benchmark", first)
        photos = factory.tour(len(names), names=names, start=start, sequence_id=sequence, filler=filler)
        factory.write_tour(folder, photos)
    return folder


def forget(folder: Path) -> None:
    """Remove what a run left."""
    for name in ("mapillary_uploader.json", "mapillary_uploader.lock"):
        (folder / name).unlink(missing_ok=True)


def reset(environment: dict[str, str]) -> dict[str, float]:
    """What the sandbox has counted; it forgets it all."""
    base = environment["MAPILLARY_GRAPH_API_ENDPOINT"].removesuffix("/graph")
    with urllib.request.urlopen(f"{base}/sandbox/stats") as answer:
        stats: dict[str, float] = json.load(answer)
    urllib.request.urlopen(urllib.request.Request(f"{base}/sandbox/reset", method="POST", data=b"")).close()
    return stats


def upload(arguments: argparse.Namespace, place: Place) -> dict[str, list[Measure]]:
    """From start to published."""
    results: dict[str, list[Measure]] = {MINE: [], THEIRS: []}
    with running_sandbox(arguments.delay, arguments.bandwidth) as environment:
        for number in range(arguments.rounds):
            forget(place.photos)
            results[MINE].append(measured(mine(place, "--workers", str(arguments.workers)), environment))
            published = reset(environment)["photos"]
            if published != arguments.photos:
                sys.exit(f"{MINE} published {published} of {arguments.photos} photos")
            if not arguments.alone:
                scratch = Place(place.photos, place.scratch / f"theirs{number}")
                own = environment | their_environment(scratch.scratch)
                results[THEIRS].append(measured(theirs(scratch, "process_and_upload"), own))
                reset(environment)
    return results


def check(arguments: argparse.Namespace, place: Place) -> dict[str, list[Measure]]:
    """Reading, checking and describing, without a network."""
    results: dict[str, list[Measure]] = {MINE: [], THEIRS: []}
    for number in range(arguments.rounds):
        results[MINE].append(measured(mine(place, "--dry-run"), {}))
        if not arguments.alone:
            scratch = Place(place.photos, place.scratch / f"theirs{number}")
            results[THEIRS].append(measured(theirs(scratch, "process"), their_environment(scratch.scratch)))
    return results


def again(arguments: argparse.Namespace, place: Place) -> dict[str, list[Measure]]:
    """A run over a folder that is published already."""
    with running_sandbox(0, None) as environment:
        measured(mine(place), environment)
        return {MINE: [measured(mine(place), environment) for _ in range(arguments.rounds)]}


def save(arguments: argparse.Namespace, place: Place) -> dict[str, list[Measure]]:
    """The share of a run that goes into saving the resume file (wall, CPU: of the saves alone)."""
    code = (
        "import sys, time, mapillary_uploader as m; spent = []; old = m.Resume.save\n"
        "def save(self):\n    a, b = time.monotonic(), time.process_time(); old(self)\n"
        "    spent.append((time.monotonic() - a, time.process_time() - b))\n"
        "m.Resume.save = save; start = time.monotonic(); m.cli(sys.argv[1:])\n"
        "wall = sum(one for one, _ in spent); total = time.monotonic() - start\n"
        "print(f'{len(spent)} saves, {wall:.2f} s of {total:.1f} s: {100 * wall / total:.1f} %')"
    )
    with running_sandbox(arguments.delay, arguments.bandwidth) as environment:
        command = [sys.executable, "-c", code, *mine(place, "--quiet")[2:]]
        subprocess.run(command, env=os.environ | environment, cwd=ROOT, check=True)
    return {}


def raw_speed(arguments: argparse.Namespace, place: Place) -> dict[str, list[Measure]]:
    """What the sandbox takes from four raw socket writers: photos of 2 MB, as fast as they can."""
    photo = factory.noise(2_000_000, "raw")
    with running_sandbox(0, None) as environment:
        address = environment["MAPILLARY_UPLOAD_ENDPOINT"]
        host, path = address.removeprefix("http://").split("/", 1)
        machine, port = host.split(":")

        def write(writer: int) -> None:
            with socket.create_connection((machine, int(port))) as connection:
                for number in range(200):
                    head = f"POST /{path}/raw_{writer}_{number} HTTP/1.1\r\nHost: {host}\r\nOffset: 0\r\n"
                    head += f"Authorization: OAuth {environment['MAPILLARY_ACCESS_TOKEN']}\r\n"
                    head += f"X-Entity-Name: raw_{writer}_{number}\r\nContent-Length: {len(photo)}\r\n\r\n"
                    connection.sendall(head.encode() + photo)
                    connection.recv(65536)

        started = time.monotonic()
        writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        print(f"raw socket writers: {4 * 200 * len(photo) / 1e6 / (time.monotonic() - started):,.0f} MB/s")
    return {}


def table(results: dict[str, list[Measure]], photos: int) -> str:
    """Medians and ratios as a Markdown table."""
    lines = ["| | wall s | CPU ms a photo | peak MB |", "|---|---|---|---|"]
    medians = {}
    for program, runs in results.items():
        if runs:
            columns = zip(*((run.wall, run.cpu, run.memory) for run in runs))
            wall, cpu, memory = (statistics.median(column) for column in columns)
            medians[program] = (wall, cpu, memory)
            lines.append(f"| {program} ({len(runs)} runs) | {wall:.2f} | {1000 * cpu / photos:.2f} | {memory:.0f} |")
    if len(medians) == 2:
        ratios = (other / own for own, other in zip(medians[MINE], medians[THEIRS]))
        lines.append("| ratio, theirs ÷ ours | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)


def against_limits(arguments: argparse.Namespace, runs: list[Measure]) -> str:
    """How near an upload comes to what the line allows: its round trips alone (photos, /me, manifest, publish), its rate."""
    wall = statistics.median(run.wall for run in runs)
    lines = []
    if arguments.delay:
        trips = -(-arguments.photos // arguments.workers) + 3
        lines.append(f"ours ÷ {trips} round trips: {1000 * wall / (trips * arguments.delay):.2f}")
    if arguments.bandwidth:
        rate = arguments.photos * arguments.megabytes / wall
        lines.append(f"ours: {100 * rate / arguments.bandwidth:.0f} % of the line's rate")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, make the photos, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {"upload": upload, "check": check, "again": again, "save": save, "sandbox": raw_speed}
    parser.add_argument("what", choices=measures)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=0.0, help="size of a photo; 0: a few KB")
    parser.add_argument("--delay", type=float, default=0.0, help="round trip in ms")
    parser.add_argument("--bandwidth", type=float, help="MB/s of the line, in all")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="without mapillary_tools")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        if arguments.what != "sandbox":
            # In a process of its own: a child's peak memory counts from what its parent had
            maker = multiprocessing.Process(target=make_photos, args=(photos, arguments.photos, arguments.megabytes))
            maker.start()
            maker.join()
        place = Place(photos, Path(scratch))
        results = measures[arguments.what](arguments, place)
        if results:
            print(table(results, arguments.photos))
            print(against_limits(arguments, results[MINE]))
        shutil.rmtree(photos, ignore_errors=True)


if __name__ == "__main__":
    main()
