"""Many tours, uploaded under random faults and signals until all is done: is a photo lost, sent twice, or stuck?

    python tests/random_runs.py                 150 tours of each kind
    python tests/random_runs.py faults --tours 20 --seed 7

Not part of the test suite: it takes a quarter of an hour, and prints figures. Kinds: `faults` (the line and Mapillary
fail in every way, in this process, under a fast clock), `signals` (Ctrl-C, SIGTERM and SIGKILL at random moments), and
`both`. After each run a careful operator does what README says: runs again; and gives --republish only for what is
still unconfirmed once everything that was published can be seen. The sandbox is strict: each finish_upload that takes
effect publishes once more.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults import BAD_TOKEN, FINISH, IMAGES, MANIFEST, ME, NO, OFFSET, PHOTO, TRANSIENT, Json, kill, started, states

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox, graph_error
from support import NEVER, FastRun, account, sequences_of, service_of

MOST_RUNS = 40  # that a tour may take
LIMITED = ("ANSWER_SECONDS", "CONNECT_SECONDS")  # how long a call may take in this process
CALM = 8  # runs after which nothing fails any more
LIMITS = [{"status": status, "body": graph_error("", code=code)} for status in (400, 403, 429) for code in (4, 17, 613)]
WITHOUT_EFFECT: list[Json] = [  # what Mapillary never says of a call that has worked
    *LIMITS, {"status": 429, "headers": {"Retry-After": "7"}}, {"status": 400, "body": NO}, {"status": 401, "body": BAD_TOKEN},
    {"status": 400, "body": TRANSIENT}, {"status": 412, "body": NO},
]  # fmt: skip
UNCLEAR: list[Json] = [
    *({"status": status} for status in (404, 408, 409, 421, 425, 499, 500, 502, 503, 504)), {"lost": True}, {"body": {}},
    {"body": b"<html>"}, {"body": {"success": False, "cluster_id": "7", "offset": -1}}, {"status": 302, "headers": {"Location": "/"}},
    {"drop_after": 0}, {"hang": 30}, {"unread": True}, {"status": 403, "body": b"<html>"},
]  # fmt: skip


def random_faults(chance: random.Random) -> Iterator[Fault]:
    """Some faults of any kind, at any call."""
    for _ in range(chance.randint(0, 5)):
        match = chance.choice([PHOTO, PHOTO, PHOTO, OFFSET, MANIFEST, FINISH, FINISH, FINISH, IMAGES, ME])
        kinds = [*UNCLEAR, *WITHOUT_EFFECT] + [{"drop_after": chance.randint(1, 4000)}, {"forget": True}] * 4
        kind = dict(chance.choice(kinds))
        if "status" in kind and kind not in WITHOUT_EFFECT or "body" in kind and kind in UNCLEAR:
            kind["processed"] = chance.random() < 0.5
        yield Fault(match, times=chance.choice([1, 2, 5, 50]), after=chance.choice([0, 0, 1, 4, 8]), **kind)


class Tour:
    """A tour, the stand-in that it is sent to, and what has become of it."""

    def __init__(self, kind: str, seed: int, place: Path, figures: Counter[str]) -> None:
        self.kind, self.chance, self.figures = kind, random.Random(f"{kind} {seed}"), figures
        photos: dict[str, bytes] = {}
        for number in range(self.chance.randint(1, 3)):
            options: Json = {"names": f"{number}_{{}}.jpg", "latitude": 50 + number}
            photos |= factory.tour(self.chance.randint(1, 7), filler=self.chance.choice([500, 60_000]), **options)
        self.folder, self.count = factory.write_tour(place / f"{kind}{seed}", photos), len(photos)
        self.sandbox = Sandbox(retakes=self.chance.random() < 0.5)

    def upload(self) -> list[str]:
        """Upload it until it is done; what is wrong then."""
        with self.sandbox:
            code, unseen = None, self.chance.choice([0, 0, 3])  # runs after which what is published can be seen
            for number in range(MOST_RUNS):
                self.sandbox.live_after = NEVER if number < unseen else 0
                self.sandbox.delay = self.chance.choice([0, 0, 0.02]) if self.kind != "faults" else 0
                calm = number >= CALM
                vars(mu).update(dict.fromkeys(LIMITED, 0.5))  # what hangs here is soon over
                self.sandbox.faults = [*random_faults(self.chance)] if self.kind != "signals" and not calm else []
                if not calm and self.chance.random() < 0.1:
                    self.sandbox.forget_uploads("[0-7].[.]" if self.chance.random() < 0.5 else "")
                known = sequences_of(self.folder)
                stuck = [uuid for uuid in known if known[uuid]["state"] in ("publishing", "unconfirmed")]
                again = frozenset(stuck if number > unseen + 1 else ())
                code = self.run_here(again) if self.kind == "faults" else self.run_process(again, calm)
                self.figures.update({"runs": 1, f"exit {code}": 1, "republished": len(again)})
                if code == 0:
                    break
            self.figures["most runs"] = max(self.figures["most runs"], number + 1)
            self.figures["photos"] += self.count
            self.figures["requests"] += len(self.sandbox.requests)
            return [*self.wrong(code)]

    def run_here(self, republish: frozenset[str]) -> int:
        """A run in this process."""
        counts: Json = {"workers": self.chance.randint(1, 5), "retries": self.chance.randint(0, 3)}
        settings = mu.Settings(**counts, patience=self.chance.choice([0, 0, 1]), republish=republish)
        try:
            owner, run = account(self.sandbox), FastRun()
            tour = mu.check_folder(self.folder, settings, run)
            return int(mu.publish(tour, owner, service_of(self.sandbox), run).code)
        except mu.UploaderError as error:
            return int(error.code)

    def run_process(self, republish: frozenset[str], calm: bool) -> int:
        """A run as a process which, unless it is calm, gets a signal after so many requests."""
        until = len(self.sandbox.requests) + self.chance.randint(1, 4 + 2 * self.count)
        words = ["--quiet", "--retries=1", "--patience=0", *(f"--republish={uuid}" for uuid in sorted(republish))]
        with started(self.folder, self.sandbox, *words) as process:
            latest = time.monotonic() + self.chance.choice([1, 3])  # it may hang before
            while process.poll() is None and (calm or len(self.sandbox.requests) < until and time.monotonic() < latest):
                time.sleep(0.002)
            if process.poll() is None:
                number = self.chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL])
                time.sleep(self.chance.uniform(0, 0.03))
                process.send_signal(number)
                self.figures[f"{number.name} sent"] += 1
            begun = time.monotonic()
            process.communicate(timeout=300)
            self.figures["slowest end (s)"] = max(self.figures["slowest end (s)"], round(time.monotonic() - begun))
            kill(process, self.sandbox)
        return int(process.returncode)

    def wrong(self, code: int | None) -> Iterator[str]:
        """What is wrong in the end."""
        keys = Counter(photo.session_key for photo in self.sandbox.published)
        if code != 0:
            yield f"never done: exit {code}, {states(self.folder)}"
        if len(keys) != self.count:
            yield f"{self.count - len(keys)} of {self.count} photos lost"
        if twice := [key for key in keys if keys[key] > 1]:
            yield f"{len(twice)} photos published twice, {len(self.sandbox.clusters)} clusters"
        if left := [*self.sandbox.corrupt, *map(str, self.folder.glob(".*tmp*"))]:
            yield f"left behind: {left}"
        before = len(self.sandbox.requests)
        self.sandbox.clear_faults()
        vars(mu).update(dict.fromkeys(LIMITED, 30.0))
        if not code and (self.run_here(frozenset()) or [r for r in self.sandbox.requests[before:] if r.path != "/me"]):
            yield "the next run is not idle"


def main() -> int:
    """The figures; 1 where something is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=["faults", "signals", "both"], metavar="KIND")
    parser.add_argument("--tours", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="of the first tour; the others count on")
    given = parser.parse_args()
    mu.Run.clock = FastRun().clock  # of sign-ins
    found = 0
    with tempfile.TemporaryDirectory() as place:
        for kind in given.kinds:
            figures: Counter[str] = Counter()
            for seed in range(given.seed, given.seed + given.tours):
                for text in Tour(kind, seed, Path(place), figures).upload():
                    found += 1
                    print(f"  WRONG: {kind} --seed {seed}: {text}", flush=True)
            print(f"{kind}, {given.tours} tours:", ", ".join(f"{n} {figures[n]}" for n in sorted(figures)), flush=True)
    print("nothing wrong" if not found else f"{found} things wrong")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
