"""Measures this program and mapillary_tools side by side, on the same photos, against the sandbox in its own process.

    python tests/benchmark.py upload --photos 200 --megabytes 2 --delay 80          add --tls: both by way of an nginx
    python tests/benchmark.py upload --photos 300 --megabytes 2
    python tests/benchmark.py upload --photos 200 --megabytes 2 --bandwidth 20 --alone
    python tests/benchmark.py check --photos 20000
    python tests/benchmark.py again --photos 20000         a run with nothing to do
    python tests/benchmark.py save --photos 20000          the share of saving the resume file
    python tests/benchmark.py sandbox                      what the sandbox takes from plain connections

Whole processes, from start to published, in turn (A B C A B C …); the table gives medians and the ratios of medians.
Machines differ and are noisy: quote ratios, not seconds. `--alone` leaves mapillary_tools out. `--before FILE` measures
another edition of the module in the same rounds: git show COMMIT:mapillary_uploader.py >/tmp/before.py
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import requests

import factory

ROOT = Path(__file__).parent.parent
MINE, BEFORE, THEIRS = "mapillary_uploader", "before", "mapillary_tools"
CERTIFICATE = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=benchmark"
CERTIFICATE += " -addext subjectAltName=IP:127.0.0.1 -keyout certificate -out certificate"
NGINX = """
daemon off; master_process off; pid pid; error_log error.log; events {}
http {
  access_log off; client_max_body_size 0; client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream sandbox { server SANDBOX; keepalive 64; }
  server {
    listen 127.0.0.1:PORT ssl; ssl_certificate certificate; ssl_certificate_key certificate;
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
spent, save, start = [], program.save_resume, time.monotonic()
def timed(*given):
    begun = time.monotonic()
    save(*given)
    spent.append(time.monotonic() - begun)
program.save_resume = timed
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
        self.options, self.scratch, self.photos = options, scratch, scratch / "photos"
        self.resume = self.photos / "mapillary_uploader.json"
        self.programs = [MINE] + [BEFORE] * bool(options.before) + [THEIRS] * (not options.alone)

    def command(self, program: str, *arguments: str) -> list[str]:
        """An edition of this program on the photos."""
        file = self.options.before if program == BEFORE else ROOT / "mapillary_uploader.py"
        return [sys.executable, str(file), "-d", str(self.photos), "-u", "demo", *arguments]

    def theirs(self, folder: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """The official client on the photos, with a profile and empty caches; and its environment."""
        token = "user_upload_token = MLY|sandbox|demo-token"
        Path(folder, "config").write_text(f"[demo]\n{token}\nMAPSettingsUserKey = 1001\nMAPSettingsUsername = demo\n")
        places = {"UPLOAD_HISTORY_PATH": "history", "TOOLS_UPLOAD_CACHE_DIR": "cache", "CONFIG_PATH": "config"}
        paths = {f"MAPILLARY_{name}": f"{folder}/{place}" for name, place in places.items()}
        program = [sys.executable, "-c", "from mapillary_tools.commands.__main__ import main; main()", *arguments]
        command = [*program, "--desc_path", f"{folder}/description.json", str(self.photos)]
        return command, paths | {"HOME": folder, "MAPILLARY_TOOLS_PROMPT_DISABLED": "YES"}

    def run(self, program: str, ours: str = "", theirs: str = "", **environment: str) -> Measure:
        """Run a program to its end, with the arguments that are its own, and measure it; it must succeed."""
        command = self.command(program, *ours.split())
        if program == THEIRS:
            command, own = self.theirs(tempfile.mkdtemp(dir=self.scratch), *theirs.split())
            environment |= own
        with open(self.scratch / "errors", "wb") as errors:
            started = time.monotonic()
            process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=errors)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{shlex.join(command)} failed:\n{(self.scratch / 'errors').read_text()[-2000:]}")
        return Measure(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)

    def in_turn(self, measure: Callable[[str], Measure], programs: list[str]) -> Results:
        """So many rounds of all programs."""
        rounds = [{program: measure(program) for program in programs} for _ in range(self.options.rounds)]
        return {program: [each[program] for each in rounds] for program in programs}

    @contextmanager
    def sandbox(self) -> Iterator[dict[str, str]]:
        """The environment variables of the sandbox, which is a process of its own; of --tls, those of an nginx before it."""
        with ExitStack() as stack:

            def started(*command: str) -> subprocess.Popen[str]:
                process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                stack.callback(process.terminate)
                return process

            line = (f"--delay={self.options.delay}", f"--bandwidth={self.options.bandwidth}")
            process = started(sys.executable, str(ROOT / "tests" / "sandbox.py"), "--unhashed", *line, "--serve")
            exports = [shlex.split(export)[1].partition("=") for export in islice(process.stdout or (), 3)]
            environment = {name: value for name, _, value in exports}
            if self.options.tls:
                sandbox = environment["MAPILLARY_GRAPH_API_ENDPOINT"].removeprefix("http://").removesuffix("/graph")
                (folder := self.scratch / "nginx").mkdir()
                subprocess.run(CERTIFICATE.split(), cwd=folder, check=True, capture_output=True)
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                (folder / "nginx.conf").write_text(NGINX.replace("PORT", str(port)).replace("SANDBOX", sandbox))
                program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or sys.exit(
                    "no nginx is installed"
                )
                nginx = started(program, "-e", "error.log", "-p", str(folder), "-c", "nginx.conf")
                while nginx.poll() is None and not (folder / "pid").exists():  # written when it listens
                    time.sleep(0.05)
                tls = f"https://127.0.0.1:{port}"
                environment = {name: value.replace(f"http://{sandbox}", tls) for name, value in environment.items()}
                environment["REQUESTS_CA_BUNDLE"] = f"{folder}/certificate"
            yield environment


def make_photos(folder: Path, count: int, megabytes: float) -> None:
    """`count` photos of about so many megabytes, in sequences of 1,000; no two have the same picture."""
    filler = max(100, int(megabytes * 1_000_000) - 4_000)
    for first in range(0, count, 1000):
        start = f"2021:07:{first // 1000 % 28 + 1:02d} 09:00:00Z"
        own: dict[str, Any] = {"names": "GS{:06d}_calculated.jpg", "sequence_id": f"benchmark{first}", "start": start}
        factory.write_tour(folder, factory.tour(min(1000, count - first), first=first, filler=filler, **own))


def emptied(sandbox: dict[str, str]) -> int:
    """Forget all that was published; how many photos it was."""
    address = sandbox["MAPILLARY_GRAPH_API_ENDPOINT"].removesuffix("/graph") + "/sandbox/reset"
    return int(requests.post(address, verify=sandbox.get("REQUESTS_CA_BUNDLE", True)).json()["photos"])


def upload(bench: Bench) -> Results:
    """From start to published."""
    with bench.sandbox() as environment:

        def measure(program: str) -> Measure:
            bench.resume.unlink(missing_ok=True)
            words = (f"--workers {bench.options.workers}", "process_and_upload --user_name demo")
            found = bench.run(program, *words, **environment)
            if (photos := emptied(environment)) != bench.options.photos:
                sys.exit(f"{program} published {photos} of {bench.options.photos} photos")
            return found

        return bench.in_turn(measure, bench.programs)


def check(bench: Bench) -> Results:
    """Reading, checking and describing, without a network."""
    return bench.in_turn(lambda program: bench.run(program, "--dry-run", "process"), bench.programs)


def again(bench: Bench) -> Results:
    """A run over a folder that is published already."""
    done: dict[str, bytes] = {}
    with bench.sandbox() as environment:

        def measure(program: str) -> Measure:
            bench.resume.write_bytes(done[program])
            return bench.run(program, **environment)

        programs = [program for program in bench.programs if program != THEIRS]
        for program in programs:
            bench.run(program, **environment)
            done[program] = bench.resume.read_bytes()
            bench.resume.unlink()
            emptied(environment)
        return bench.in_turn(measure, programs)


def save(bench: Bench) -> Results:
    """The share of a run that goes into saving the resume file."""
    with bench.sandbox() as environment:
        command = [sys.executable, "-c", SAVING, *bench.command(MINE, "--quiet")[1:]]
        subprocess.run(command, env=os.environ | environment, stdout=sys.stdout, check=True)
    return {}


def plain_speed(bench: Bench) -> Results:
    """What the sandbox takes from four plain connections: photos of 2 MB, as fast as they can."""
    photo = random.Random("raw").randbytes(2_000_000)
    with bench.sandbox() as environment:
        host, _, path = environment["MAPILLARY_UPLOAD_ENDPOINT"].removeprefix("http://").partition("/")
        token = {"Authorization": f"OAuth {environment['MAPILLARY_ACCESS_TOKEN']}", "Offset": "0"}

        def write(writer: int) -> None:
            connection = HTTPConnection(host)
            for key in (f"raw_{writer}_{number}" for number in range(200)):
                connection.request("POST", f"/{path}/{key}", photo, token | {"X-Entity-Name": key})
                connection.getresponse().read()

        started = time.monotonic()
        with ThreadPoolExecutor(4) as writers:
            list(writers.map(write, range(4)))
        print(f"plain connections: {4 * 200 * len(photo) / 1e6 / (time.monotonic() - started):,.0f} MB/s")
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
    measures = {"upload": upload, "check": check, "again": again, "save": save, "sandbox": plain_speed}
    parser.add_argument("what", choices=measures)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=0.0, help="size of a photo; 0: a few KB")
    parser.add_argument("--delay", type=float, default=0.0, help="round trip in ms")
    parser.add_argument("--bandwidth", type=float, default=0.0, help="MB/s of the line, in all; 0: no limit")
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
