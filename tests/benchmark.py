"""Measures this program and mapillary_tools side by side, on the same photos, against the sandbox in its own process.

    python tests/benchmark.py upload --photos 200 --megabytes 2 --delay 80          add --tls: both by way of an nginx
    python tests/benchmark.py upload --photos 300 --megabytes 2
    python tests/benchmark.py upload --photos 200 --megabytes 2 --bandwidth 20 --alone
    python tests/benchmark.py check --photos 20000
    python tests/benchmark.py again --photos 20000         a run with nothing to do
    python tests/benchmark.py save --photos 20000          the share of saving the resume file
    python tests/benchmark.py sandbox                      what the sandbox takes from raw sockets

Whole processes, from start to published, in turn (A B C A B C …); the table gives medians and the ratios of medians.
Machines differ and are noisy: quote ratios, not seconds. `--alone` leaves mapillary_tools out. `--before FILE` measures
another edition of the module in the same rounds: git show COMMIT:mapillary_uploader.py >/tmp/before.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import factory

ROOT = Path(__file__).parent.parent
MINE, BEFORE, THEIRS = "mapillary_uploader", "before", "mapillary_tools"

NGINX = """
daemon off; master_process off; pid pid; error_log error.log; events {}
http {
  access_log off; client_max_body_size 0; client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream sandbox { server SANDBOX; keepalive 64; }
  server {
    listen 127.0.0.1:PORT ssl; ssl_certificate certificate.pem; ssl_certificate_key key.pem;
    location / {
      proxy_pass http://sandbox; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;
    }
  }
}
"""

SAVING = """
import os, sys, time
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import mapillary_uploader as program
spent, save, start = [], program.Resume.save, time.monotonic()
def timed(*given):
    begun = time.monotonic()
    save(*given)
    spent.append(time.monotonic() - begun)
program.Resume.save = timed
program.cli(sys.argv[2:])
total = time.monotonic() - start
print(f"{len(spent)} saves, {sum(spent):.2f} s of {total:.1f} s: {100 * sum(spent) / total:.1f} %")
"""


class Measure(NamedTuple):
    """One run of one program: wall seconds, CPU seconds with all its children, peak memory in MB."""

    wall: float
    cpu: float
    memory: float


Results = dict[str, list[Measure]]


class Bench:
    """The options, and where the programs work: the photos, and a scratch folder."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.photos = scratch / "photos"
        self.resume = self.photos / "mapillary_uploader.json"
        self.programs = [MINE] + [BEFORE] * bool(options.before) + [THEIRS] * (not options.alone)

    def command(self, program: str, *arguments: str) -> list[str]:
        """An edition of this program on the photos."""
        file = self.options.before if program == BEFORE else ROOT / "mapillary_uploader.py"
        return [sys.executable, str(file), "-d", str(self.photos), "-u", "demo", *arguments]

    def theirs(self, *arguments: str) -> list[str]:
        """The official client on the photos."""
        program = [sys.executable, "-c", "from mapillary_tools.commands.__main__ import main; main()"]
        return [*program, *arguments, "--desc_path", str(self.scratch / "description.json"), str(self.photos)]

    def their_environment(self) -> dict[str, str]:
        """A profile and empty caches for the official client."""
        folder = tempfile.mkdtemp(dir=self.scratch)
        token = "user_upload_token = MLY|sandbox|demo-token"
        Path(folder, "config").write_text(f"[demo]\n{token}\nMAPSettingsUserKey = 1001\nMAPSettingsUsername = demo\n")
        places = {"UPLOAD_HISTORY_PATH": "history", "TOOLS_UPLOAD_CACHE_DIR": "cache", "CONFIG_PATH": "config"}
        paths = {f"MAPILLARY_{name}": f"{folder}/{place}" for name, place in places.items()}
        return paths | {"HOME": folder, "MAPILLARY_TOOLS_PROMPT_DISABLED": "YES"}

    def in_turn(self, measure: Callable[[str], Measure], programs: list[str]) -> Results:
        """So many rounds of all programs."""
        results: Results = {program: [] for program in programs}
        for _ in range(self.options.rounds):
            for program in programs:
                results[program].append(measure(program))
        return results


@contextmanager
def running_sandbox(delay: float = 0, bandwidth: float | None = None) -> Iterator[dict[str, str]]:
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


def address_of(sandbox: dict[str, str]) -> str:
    """http://127.0.0.1:PORT."""
    return sandbox["MAPILLARY_GRAPH_API_ENDPOINT"].removesuffix("/graph")


@contextmanager
def by_tls(sandbox: dict[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """The sandbox's variables, by way of an nginx on 127.0.0.1 that ends TLS and has a certificate of its own."""
    folder.mkdir()
    certificate = f"{folder}/certificate.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=benchmark"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder}/key.pem", "-out", certificate]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machine = address_of(sandbox).removeprefix("http://")
    (folder / "nginx.conf").write_text(NGINX.replace("PORT", str(port)).replace("SANDBOX", machine))
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or sys.exit("nginx is not installed")
    with subprocess.Popen([program, "-e", "error.log", "-p", folder, "-c", "nginx.conf"]) as process:
        while process.poll() is None and not (folder / "pid").exists():  # written when it listens
            time.sleep(0.05)
        try:
            http, https = f"http://{machine}", f"https://127.0.0.1:{port}"
            yield {n: v.replace(http, https) for n, v in sandbox.items()} | {"REQUESTS_CA_BUNDLE": certificate}
        finally:
            process.terminate()


def measured(command: list[str], environment: dict[str, str]) -> Measure:
    """Run a command to its end and measure it; it must succeed."""
    with tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{shlex.join(command)} failed:\n{errors.read().decode()[-2000:]}")
    return Measure(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def make_photos(folder: Path, count: int, megabytes: float) -> None:
    """`count` photos of about so many megabytes, in sequences of 1,000; no two have the same picture."""
    filler = max(100, int(megabytes * 1_000_000) - 4_000)
    for first in range(0, count, 1000):
        names = [f"GS{number:06d}_calculated.jpg" for number in range(first, min(first + 1000, count))]
        start = f"2021:07:{first // 1000 % 28 + 1:02d} 09:00:00Z"
        sequence = str(uuid.uuid5(uuid.NAMESPACE_URL, f"benchmark {first}"))
        photos = factory.tour(len(names), names=names, start=start, sequence_id=sequence, filler=filler)
        factory.write_tour(folder, photos)


def published(sandbox: dict[str, str]) -> int:
    """How many photos the sandbox has; it forgets them."""
    with urllib.request.urlopen(f"{address_of(sandbox)}/sandbox/stats") as answer:
        photos = int(json.load(answer)["photos"])
    reset = urllib.request.Request(f"{address_of(sandbox)}/sandbox/reset", method="POST", data=b"")
    urllib.request.urlopen(reset).close()
    return photos


def upload(bench: Bench) -> Results:
    """From start to published."""
    options = bench.options
    with contextlib.ExitStack() as running:
        sandbox = running.enter_context(running_sandbox(options.delay, options.bandwidth))
        tls = by_tls(sandbox, bench.scratch / "nginx") if options.tls else contextlib.nullcontext(sandbox)
        environment = running.enter_context(tls)

        def measure(program: str) -> Measure:
            bench.resume.unlink(missing_ok=True)
            if program == THEIRS:
                measure = measured(
                    bench.theirs("process_and_upload", "--user_name", "demo"), environment | bench.their_environment()
                )
            else:
                measure = measured(bench.command(program, "--workers", str(options.workers)), environment)
            if (photos := published(sandbox)) != options.photos:
                sys.exit(f"{program} published {photos} of {options.photos} photos")
            return measure

        return bench.in_turn(measure, bench.programs)


def check(bench: Bench) -> Results:
    """Reading, checking and describing, without a network."""

    def measure(program: str) -> Measure:
        if program == THEIRS:
            return measured(bench.theirs("process"), bench.their_environment())
        return measured(bench.command(program, "--dry-run"), {})

    return bench.in_turn(measure, bench.programs)


def again(bench: Bench) -> Results:
    """A run over a folder that is published already."""
    done: dict[str, bytes] = {}
    with running_sandbox() as environment:

        def measure(program: str) -> Measure:
            bench.resume.write_bytes(done[program])
            return measured(bench.command(program), environment)

        programs = [program for program in bench.programs if program != THEIRS]
        for program in programs:
            measured(bench.command(program), environment)
            done[program] = bench.resume.read_bytes()
            bench.resume.unlink()
        return bench.in_turn(measure, programs)


def save(bench: Bench) -> Results:
    """The share of a run that goes into saving the resume file."""
    with running_sandbox(bench.options.delay, bench.options.bandwidth) as environment:
        command = [sys.executable, "-c", SAVING, *bench.command(MINE, "--quiet")[1:]]
        subprocess.run(command, env=os.environ | environment, stdout=sys.stdout, check=True)
    return {}


def raw_speed(bench: Bench) -> Results:
    """What the sandbox takes from four raw socket writers: photos of 2 MB, as fast as they can."""
    photo = random.Random("raw").randbytes(2_000_000)
    with running_sandbox() as environment:
        host, path = environment["MAPILLARY_UPLOAD_ENDPOINT"].removeprefix("http://").split("/", 1)
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
        with ThreadPoolExecutor(4) as writers:
            list(writers.map(write, range(4)))
        print(f"raw socket writers: {4 * 200 * len(photo) / 1e6 / (time.monotonic() - started):,.0f} MB/s")
    return {}


def table(options: argparse.Namespace, results: Results) -> Iterator[str]:
    """Medians and ratios as a Markdown table, then how near an upload comes to what the line allows."""
    yield from ("| | wall s | CPU ms a photo | peak MB |", "|---|---|---|---|")
    medians = {program: Measure(*map(statistics.median, zip(*runs))) for program, runs in results.items()}
    ours = medians[MINE]
    for program, (wall, cpu, memory) in medians.items():
        name = f"{program} ({len(results[program])} runs)"
        yield f"| {name} | {wall:.2f} | {1000 * cpu / options.photos:.2f} | {memory:.0f} |"
    for program in list(medians)[1:]:
        ratios = (f"{other / own:.2f}" for own, other in zip(ours, medians[program]))
        yield f"| ratio, {program} ÷ ours | {' | '.join(ratios)} |"
    if options.delay:
        trips = -(-options.photos // options.workers) + 3  # and /me, the manifest, the publish
        yield f"ours ÷ {trips} round trips: {1000 * ours.wall / (trips * options.delay):.2f}"
    if options.bandwidth:
        rate = options.photos * options.megabytes / ours.wall
        yield f"ours: {100 * rate / options.bandwidth:.0f} % of the line's rate"


def main() -> None:
    """Parse the command line, make the photos, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {"upload": upload, "check": check, "again": again, "save": save, "sandbox": raw_speed}
    parser.add_argument("what", choices=measures)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=0.0, help="size of a photo; 0: a few KB")
    parser.add_argument("--delay", type=float, default=0.0, help="round trip in ms")
    parser.add_argument("--bandwidth", type=float, help="MB/s of the line, in all")
    parser.add_argument("--tls", action="store_true", help="by way of an nginx that ends TLS")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="without mapillary_tools")
    parser.add_argument("--before", type=Path, metavar="FILE", help="another edition of the module to compare with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        if options.what != "sandbox":
            # In a process of its own: a child's peak memory counts from what its parent had
            making = (bench.photos, options.photos, options.megabytes)
            maker = multiprocessing.Process(target=make_photos, args=making)
            maker.start()
            maker.join()
        if results := measures[options.what](bench):
            print(*table(options, results), sep="\n")


if __name__ == "__main__":
    main()
