"""Upload and publish against a Mapillary that fails in every way there is: nothing lost, nothing published twice."""

from __future__ import annotations

import errno
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import PROGRAM, FastClock, environment, resume_of, upload, upload_here

PHOTO = "POST /mly"
FINISH = "POST /finish_upload"
RATE_LIMIT = {"debug_info": {"type": "RequestRateLimitedError", "retriable": False}, "backoff": 13_000}
WRONG_OFFSET = {"debug_info": {"type": "OffsetInvalidError", "retriable": True}}

PASSING_FAULTS: dict[str, tuple[dict[str, Any], float]] = {  # fault, the longest wait that it must lead to
    "500 twice": ({"match": PHOTO, "status": 500, "times": 2}, 1),
    "503 with Retry-After": ({"match": PHOTO, "status": 503, "headers": {"Retry-After": "7"}}, 7),
    "reset in mid-body": ({"match": PHOTO, "drop_after": 1000, "times": 3}, 1),
    "answer lost after the whole body": ({"match": PHOTO, "lost": True, "times": 2}, 1),
    "429 with backoff": ({"match": PHOTO, "status": 429, "body": {"backoff": 13_000}}, 12),
    "429 with Retry-After": ({"match": PHOTO, "status": 429, "headers": {"Retry-After": "9"}}, 8),
    "429 with a date": (
        {"match": PHOTO, "status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}},
        800,
    ),
    "429 without a word": ({"match": PHOTO, "status": 429}, 9),
    "400 RequestRateLimitedError": ({"match": PHOTO, "status": 400, "body": RATE_LIMIT}, 12),
    "412": ({"match": PHOTO, "status": 412, "body": WRONG_OFFSET}, 0),
    "offset back to 0": ({"match": PHOTO, "drop_after": 2000, "forget": True, "times": 2}, 1),
    "400 retriable": ({"match": PHOTO, "status": 400, "body": {"debug_info": {"retriable": True}}}, 1),
    "200 without h": ({"match": PHOTO, "status": 200, "body": b"{}", "processed": True}, 1),
    "200 with HTML": ({"match": PHOTO, "status": 200, "body": b"<html>", "processed": True}, 1),
    "429 on publish": ({"match": FINISH, "status": 429, "headers": {"Retry-After": "3"}}, 2),
    "503 with Retry-After on publish": ({"match": FINISH, "status": 503, "headers": {"Retry-After": "3"}}, 3),
    "500 on /me": ({"match": "GET /me", "status": 500}, 1),
}


def published(sandbox: Sandbox) -> list[str]:
    """Session keys of all published photos; each once, or the test fails."""
    keys = [photo.session_key for cluster in sandbox.clusters for photo in cluster.photos]
    assert len(keys) == len(set(keys)) and sandbox.corrupt == []
    return keys


def states(folder: Path) -> set[str]:
    """States of the sequences in the resume file."""
    return {sequence["state"] for sequence in resume_of(folder)["sequences"].values()}


@pytest.mark.parametrize("name", PASSING_FAULTS)
def test_a_passing_fault_is_outlasted(sandbox: Sandbox, folder: Path, name: str) -> None:
    fault, longest = PASSING_FAULTS[name]
    sandbox.faults.append(Fault(**fault))
    clock = FastClock()
    assert upload_here(folder, sandbox, clock) == 0
    assert len(published(sandbox)) == 8 and len(sandbox.clusters) == 1
    assert max(clock.waits, default=0) >= longest


def test_a_broken_upload_goes_on_from_the_servers_offset(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=PHOTO, drop_after=1000))
    assert upload_here(folder, sandbox, workers=1) == 0
    first = next(iter(sandbox.uploads.values()))
    assert first.posts == 2 and first.received == first.size


def test_a_retry_that_made_progress_does_not_count(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults += [Fault(match=PHOTO, drop_after=600, times=6)]
    assert upload_here(folder, sandbox, workers=1, retries=1) == 0
    assert len(published(sandbox)) == 8


def test_retries_end(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=PHOTO, status=500, times=None))
    assert upload_here(folder, sandbox, workers=1, retries=2, patience=0) == 1
    posts = Counter(request.path for request in sandbox.requests if request.method == "POST")
    assert {*posts.values()} == {3} and len(posts) <= 3  # after two photos it is an outage, with one more under way


def test_a_final_refusal_costs_one_request_and_stops_no_other(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=PHOTO, status=400, body={"debug_info": {"message": "odd photo"}}))
    result = upload(folder, sandbox)
    assert result.code == 1 and "odd photo" in result.err and sandbox.clusters == []
    assert len([request for request in sandbox.requests if request.method == "POST"]) == 8


def test_with_skip_invalid_a_refused_photo_counts_as_rejected(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=PHOTO, status=400))
    assert upload_here(folder, sandbox, skip_invalid=True) == 3
    assert len(published(sandbox)) == 7


def test_an_offset_beyond_the_size_fails_the_photo_with_that_reason(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults += [Fault(match=PHOTO, status=500), Fault(match="GET /mly", answer_offset=10**9, times=None)]
    result = upload(folder, sandbox)
    assert result.code == 1 and "more than the" in result.err


def test_one_photo_that_always_fails_holds_back_its_sequence_and_alone_is_tried_again(
    sandbox: Sandbox, folder: Path
) -> None:
    assert upload_here(folder, sandbox) == 0
    bad = published(sandbox)[3]
    (folder / mu.RESUME_NAME).unlink()
    sandbox.reset()
    sandbox.faults.append(Fault(match=bad, status=500, times=None))
    assert upload_here(folder, sandbox) == 1 and sandbox.clusters == []
    before = len(sandbox.requests)
    assert upload_here(folder, sandbox) == 1
    assert {request.path for request in sandbox.requests[before:]} == {"/me", "/" + bad}
    sandbox.clear_faults()
    assert upload_here(folder, sandbox) == 0 and len(published(sandbox)) == 8


def test_a_token_refused_midway_stops_at_once_and_a_good_one_goes_on(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=PHOTO, after=3, status=401, times=None))
    result = upload(folder, sandbox, "--json")
    assert result.code == 4 and not [p for p in result.document["photos"] if p["state"] == "failed"]
    assert len([request for request in sandbox.requests if request.method == "POST"]) <= 3 + 4
    sandbox.clear_faults()
    assert upload_here(folder, sandbox) == 0 and len(published(sandbox)) == 8


def test_an_outage_costs_a_handful_of_requests_and_ends_when_the_patience_does(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    folder = factory.write_tour(tmp_path / "many", factory.tour(200))
    sandbox.faults.append(Fault(match=PHOTO, status=500, times=None))
    clock = FastClock()
    assert upload_here(folder, sandbox, clock, patience=2) == 1
    assert len(sandbox.requests) < 200 and sum(wait for wait in clock.waits if wait > 16) == pytest.approx(120)


def test_a_run_finishes_by_itself_when_the_line_comes_back(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match="/mly", status=500, times=60))
    assert upload_here(folder, sandbox) == 0 and len(published(sandbox)) == 8


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("published", [True, False], ids=["while another is published", "alone"])
def test_an_outage_is_waited_out_with_fewer_photos_than_workers_too(
    sandbox: Sandbox, tmp_path: Path, count: int, published: bool
) -> None:
    folder = factory.write_tour(tmp_path / "few", factory.tour(count))
    if published:
        factory.write_tour(folder, factory.tour(1, sequence_id="A", names="A{}.jpg", latitude=52))
    sandbox.faults += [Fault(match=FINISH, delay=1.0), Fault(match="/mly.*jpg", after=published, status=500, times=30)]
    clock = FastClock()
    assert upload_here(folder, sandbox, clock) == 0 and len(sandbox.clusters) == 1 + published
    assert 30 in clock.waits


def test_an_outage_that_others_see_the_end_of_fails_no_photo(sandbox: Sandbox, folder: Path) -> None:
    sandbox.delay = 0.2  # the first four are under way together
    sandbox.faults.append(Fault(match=PHOTO, status=502, times=4))
    assert upload_here(folder, sandbox, retries=0) == 0 and len(published(sandbox)) == 8


def test_a_token_refused_in_an_outage_leaves_no_photo_failed(sandbox: Sandbox, folder: Path) -> None:
    sandbox.delay = 0.2
    sandbox.faults += [Fault(match=PHOTO, status=502, times=4), Fault(match=PHOTO, status=401, times=None)]
    result = upload(folder, sandbox, "--json", "--retries", "0")
    assert result.code == 4 and {photo["state"] for photo in result.document["photos"]} == {"ready"}


def test_without_retries_a_part_that_the_server_holds_is_no_failure(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=PHOTO, drop_after=1000))
    assert upload_here(folder, sandbox, retries=0) == 1
    assert upload_here(folder, sandbox, retries=0) == 0 and len(published(sandbox)) == 8


def test_a_second_signal_while_the_run_ends_saves_too(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise mu.Stopped(mu.Exit.TERMINATED)

    monkeypatch.setattr(mu.Uploading, "take_last_results", interrupted)
    sandbox.faults.append(Fault(match=PHOTO, after=3, status=401, delay=0.3, times=None))
    assert upload_here(folder, sandbox, workers=1) == mu.Exit.TERMINATED
    assert sum(len(sequence["photos"]) for sequence in resume_of(folder)["sequences"].values()) == 3


def test_a_photo_that_can_no_longer_be_read_stops_no_other(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = factory.write_tour(tmp_path / "two", factory.tour(3))
    factory.write_tour(folder, factory.tour(3, sequence_id="B", names="X{}.jpg", latitude=52))
    open_photo = mu.open_photo

    def opened(path: Path) -> BinaryIO:
        if path.name != "X2.jpg" or not any(folder.glob("*.json")):  # the checks could still read it
            return open_photo(path)
        monkeypatch.setattr(BadDisk, "size", path.stat().st_size)
        return BadDisk(path, "rb")

    monkeypatch.setattr(mu, "open_photo", opened)
    assert upload_here(folder, sandbox) == 1
    assert [len(cluster.photos) for cluster in sandbox.clusters] == [3]
    assert sorted(states(folder)) == ["published", "uploading"]


class BadDisk(io.FileIO):
    """A file whose second half can't be read."""

    size = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() + (size or 0) > self.size // 2:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size) or b""


def test_a_folder_that_ends_early_does_not_end_the_next(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, latitude in (("a", 51), ("b", 52)):
        factory.write_tour(tmp_path / name, factory.tour(3, sequence_id=name, latitude=latitude))
    save = mu.Resume.save

    def full(resume: mu.Resume) -> None:
        if resume.path.parent.name == "a" and any(record.photos for record in resume.sequences.values()):
            raise mu.UploaderError("full")
        save(resume)

    monkeypatch.setattr(mu.Resume, "save", full)
    assert upload_here(tmp_path, sandbox, recursive=True) == 1
    assert [len(cluster.photos) for cluster in sandbox.clusters] == [3] and states(tmp_path / "b") == {"published"}


def test_no_connection_is_no_publication_and_goes_on(sandbox: Sandbox, folder: Path) -> None:
    port = sandbox.environment()
    sandbox.stop()
    assert mu.program(mu.Options(directory=folder, username="demo", quiet=True), port, FastClock()) == 1
    assert not (folder / mu.RESUME_NAME).exists()


@pytest.mark.parametrize("answer", ["lost", "500", "502", "503", "504", "{}", "HTML"])
def test_a_publish_without_a_clear_answer_is_unconfirmed_until_its_photos_are_found(
    sandbox: Sandbox, folder: Path, answer: str
) -> None:
    fault = {"{}": {"status": 200, "body": b"{}"}, "HTML": {"status": 200, "body": b"<html>"}, "lost": {"lost": True}}
    sandbox.faults.append(Fault(match=FINISH, **(fault.get(answer) or {"status": int(answer)})))  # type: ignore[arg-type]
    result = upload(folder, sandbox)
    assert result.code == 1 and states(folder) == {"unconfirmed"} and "it is not known whether" in result.err
    happened = len(sandbox.clusters)
    assert upload_here(folder, sandbox) == (0 if happened else 1)
    assert len(sandbox.finish_calls) == happened
    assert upload_here(folder, sandbox, republish=True) == 0
    assert len(sandbox.clusters) == 1 and len(published(sandbox)) == 8


def test_republish_with_expired_handles_sends_all_anew_and_says_so(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=FINISH, status=500))
    assert upload_here(folder, sandbox) == 1
    resume = folder / mu.RESUME_NAME
    resume.write_text(resume.read_text().replace('"uploaded_at": "20', '"uploaded_at": "19'))
    sandbox.forget_uploads()
    result = upload(folder, sandbox, "--republish")
    assert result.code == 0 and "second copy" in result.err and len(published(sandbox)) == 8


@pytest.mark.parametrize(("status", "code"), [(400, 1), (401, 4), (403, 4), (404, 1)])
def test_a_definite_no_leaves_nothing_unconfirmed(sandbox: Sandbox, folder: Path, status: int, code: int) -> None:
    sandbox.faults.append(Fault(match=FINISH, status=status))
    assert upload_here(folder, sandbox) == code and states(folder) == {"uploading"}
    assert upload_here(folder, sandbox) == 0 and len(published(sandbox)) == 8


KILL_POINTS = {  # what the killed run was about to do -> state that the file must show, clusters that may exist
    "before the intent is saved": ("m.Uploading.publish", "uploading", 0),
    "after the intent, before the call": ("m.Finish.__call__", "publishing", 0),
    "after the call, before the result is saved": ("m.Uploading.finished", "publishing", 1),
}


@pytest.mark.parametrize("moment", KILL_POINTS)
def test_killed_between_the_steps_of_publishing(sandbox: Sandbox, folder: Path, moment: str) -> None:
    step, state, clusters = KILL_POINTS[moment]
    code = f"import os, sys, mapillary_uploader as m; {step} = lambda *_: os._exit(9); m.cli(sys.argv[1:])"
    command = [sys.executable, "-c", code, "-d", str(folder), "-u", "demo"]
    done = subprocess.run(command, env=environment(sandbox), cwd=PROGRAM.parent, capture_output=True)
    assert done.returncode == 9 and len(sandbox.clusters) == clusters
    assert states(folder) <= {state}
    assert upload_here(folder, sandbox) == (1 if state == "publishing" and not clusters else 0)
    assert upload_here(folder, sandbox, republish=True) == 0
    assert len(sandbox.clusters) == 1 and len(published(sandbox)) == 8


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_until_done(sandbox: Sandbox, tmp_path: Path, seed: int) -> None:
    options = {"names": "B{:04d}.jpg", "start": "2021:08:01 10:00:00Z"}
    photos = factory.tour(12, filler=40_000) | factory.tour(12, sequence_id="two", filler=40_000, **options)  # type: ignore[arg-type]
    folder = factory.write_tour(tmp_path / "tour", photos)
    sandbox.delay, sandbox.bandwidth = 0.02, 30_000
    moments, kills = random.Random(seed), 0
    known: dict[str, int] = {}  # session key -> how many requests there had been when the resume file knew its handle
    while True:
        command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", "--republish", "--quiet"]
        process = subprocess.Popen(command, env=environment(sandbox))
        try:
            process.wait(timeout=moments.uniform(0.3, 0.9))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        if (folder / mu.RESUME_NAME).exists():
            sequences = resume_of(folder)["sequences"].values()
            keys = [entry["session_key"] for sequence in sequences for entry in sequence["photos"].values()]
            known |= {key: len(sandbox.requests) for key in keys if key not in known}
        if process.returncode == 0:
            break
        if kills >= 26:
            sandbox.delay, sandbox.bandwidth = 0, None
    assert kills >= 26 and len(published(sandbox)) == 24 and len(sandbox.clusters) == 2
    for key in sandbox.uploads:  # after its first request a photo is only sent once its offset has been asked for
        methods = [request.method for request in sandbox.requests if request.path == f"/{key}"]
        assert [pair for pair in zip(methods, methods[1:]) if pair == ("POST", "POST")] == []
    for key, since in known.items():
        assert [r for r in sandbox.requests[since:] if r.route == f"POST /{key}" and r.body_size] == []
    assert sorted(path.name for path in folder.iterdir() if "tmp" in path.name) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_even_on_a_hung_server(
    sandbox: Sandbox, folder: Path, number: signal.Signals, code: int
) -> None:
    sandbox.faults.append(Fault(match=PHOTO, hang=60, times=None))
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", "--json"]
    process = subprocess.Popen(
        command, env=environment(sandbox), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any(request.method == "POST" for request in sandbox.requests):
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=8)
    assert (process.returncode, json.loads(out)["exit_code"]) == (code, code) and "Traceback" not in err
    assert resume_of(folder)["closed"] is False
    sandbox.clear_faults()
    assert upload(folder, sandbox).code == 0 and len(published(sandbox)) == 8


def test_ten_runs_at_once_one_works(sandbox: Sandbox, folder: Path) -> None:
    sandbox.delay = 0.5
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", "--quiet"]
    runs = [subprocess.Popen(command, env=environment(sandbox), stderr=subprocess.DEVNULL) for _ in range(10)]
    assert sorted(run.wait(timeout=60) for run in runs) == [0] + [5] * 9
    assert len(published(sandbox)) == 8 and len(sandbox.clusters) == 1


def test_a_full_disk_stops_the_run_and_loses_nothing(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[int] = []

    def full(handle: int) -> None:
        saves.append(handle)
        if len(saves) > 2:  # a save syncs the file and the folder
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert upload_here(folder, sandbox) == 1
    assert resume_of(folder)["closed"] is False and not (folder / mu.TEMPORARY_NAME).exists()
    assert sandbox.clusters == []
    received = {key: item.received for key, item in sandbox.uploads.items()}
    assert upload_here(folder, sandbox) == 0
    assert {key: sandbox.uploads[key].received for key in received if key.endswith("jpg")} == {
        key: size for key, size in received.items() if key.endswith("jpg")
    }


def unconfirmed_and_expired(folder: Path, sandbox: Sandbox) -> None:
    """A publish whose answer was lost, days ago."""
    sandbox.forgetful, sandbox.live_after = True, 10**9
    sandbox.faults.append(Fault(match=FINISH, lost=True))
    assert upload_here(folder, sandbox) == 1 and len(sandbox.clusters) == 1
    resume = folder / mu.RESUME_NAME
    resume.write_text(resume.read_text().replace('"uploaded_at": "20', '"uploaded_at": "19'))


@pytest.mark.parametrize("trouble", ["rejected photo", "upload fails", "manifest refused", "publish refused"])
def test_a_republish_that_does_not_come_through_stays_unconfirmed(sandbox: Sandbox, folder: Path, trouble: str) -> None:
    unconfirmed_and_expired(folder, sandbox)
    if trouble == "rejected photo":
        (folder / "bad.jpg").write_bytes(b"")
    match = {"upload fails": r"/mly\w+.jpg", "manifest refused": r"/mly\w+.json", "publish refused": FINISH}.get(
        trouble, "never"
    )
    sandbox.faults.append(Fault(match=match, status=400, times=None))
    assert upload_here(folder, sandbox, republish=True) == 1
    sandbox.clear_faults()
    (folder / "bad.jpg").unlink(missing_ok=True)
    assert upload_here(folder, sandbox) == 1 and len(sandbox.clusters) == 1
    assert states(folder) == {"unconfirmed"}
    assert len(next(iter(resume_of(folder)["sequences"].values()))["photos"]) == 8
    assert upload_here(folder, sandbox, republish=True) == 0 and len(sandbox.clusters) == 2


def test_republish_does_nothing_without_the_look_up(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=FINISH, lost=True))
    assert upload_here(folder, sandbox) == 1
    sandbox.faults.append(Fault(match="GET /images", status=500, times=None))
    assert upload_here(folder, sandbox, republish=True) == 1 and len(sandbox.finish_calls) == 1
    assert states(folder) == {"unconfirmed"}


def test_republish_anew_wants_all_photos_back(sandbox: Sandbox, folder: Path) -> None:
    unconfirmed_and_expired(folder, sandbox)
    victim = sorted(folder.glob("*.jpg"))[0]
    good = victim.read_bytes()
    victim.unlink()
    result = upload(folder, sandbox, "--republish")
    assert result.code == 1 and f"Put {victim.name} back" in result.err and states(folder) == {"unconfirmed"}
    victim.write_bytes(good)
    assert upload_here(folder, sandbox, republish=True) == 0
