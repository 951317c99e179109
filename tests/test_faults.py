"""Servers that hang, crawl or go away, photos that change, and signals at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import PROGRAM, environment, resume_of, upload_here

PHOTO, FINISH = "POST /mly", "POST /finish_upload"


def start(folder: Path, sandbox: Sandbox, *arguments: str) -> subprocess.Popen[str]:
    """The program as a process."""
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", *arguments]
    return subprocess.Popen(command, env=environment(sandbox), stderr=subprocess.PIPE, text=True)


def wait_for(sandbox: Sandbox, route: str) -> None:
    """Wait until such a request has come."""
    end = time.monotonic() + 30
    while not any(request.route.startswith(route) for request in list(sandbox.requests)):
        assert time.monotonic() < end, f"no {route}"
        time.sleep(0.02)


def is_published(folder: Path) -> bool:
    """Whether the resume file says that its one sequence is published."""
    records = resume_of(folder)["sequences"].values() if (folder / mu.RESUME_NAME).exists() else []
    return [record["state"] for record in records] == ["published"]


@pytest.mark.parametrize("fault", [{"hang": 60}, {"unread": True}])
def test_a_server_that_never_answers_ends_in_an_error(
    sandbox: Sandbox, folder: Path, fault: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mu, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(mu, "CONNECT_SECONDS", 0.3)
    sandbox.faults.append(Fault(match=PHOTO, times=None, **fault))  # type: ignore[arg-type]
    assert upload_here(folder, sandbox, retries=1, patience=0) == 1
    sandbox.clear_faults()
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters) == 1


def test_a_server_that_reads_slowly_is_not_cut_off(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mu, "CONNECT_SECONDS", 2)  # each piece's; the whole photo takes longer
    monkeypatch.setattr(mu, "ANSWER_SECONDS", 30)
    folder = factory.write_tour(tmp_path / "slow", factory.tour(1, filler=3_000_000))
    sandbox.faults.append(Fault(match=PHOTO, read_rate=700_000))
    assert upload_here(folder, sandbox) == 0
    assert [upload.posts for upload in sandbox.uploads.values()] == [1, 1]


def test_a_server_that_goes_away_and_comes_back_is_outlasted(sandbox: Sandbox, folder: Path) -> None:
    sandbox.delay = 0.1
    process = start(folder, sandbox)
    wait_for(sandbox, PHOTO)
    sandbox.stop()
    time.sleep(1)
    sandbox.start()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(sandbox.clusters) == 1 and len(sandbox.clusters[0].photos) == 8 and sandbox.corrupt == []


def test_a_photo_that_changes_while_it_is_sent_is_not_published(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = sorted(folder.glob("*.jpg"))[2]
    blocks = mu.tagged_blocks

    def touched(stream: BinaryIO, *arguments: Any) -> Iterator[bytes]:
        if os.path.samestat(os.fstat(stream.fileno()), victim.stat()):
            os.utime(victim)
        return blocks(stream, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mu, "tagged_blocks", touched)
        assert upload_here(folder, sandbox) == 1
    assert sandbox.clusters == [] and victim.name not in str(resume_of(folder)["sequences"])
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters[0].photos) == 8


def test_no_byte_that_was_not_checked_is_sent_under_a_photos_session_key(sandbox: Sandbox, tmp_path: Path) -> None:
    """It changes while it waits for the connection, and is put back: its session must not hold the other bytes."""
    photos, others = (factory.tour(2, filler=300_000, seed=seed) for seed in "ab")
    folder, name = factory.write_tour(tmp_path / "tour", photos), sorted(photos)[1]
    sandbox.faults.append(Fault(match=PHOTO, read_rate=300_000))
    process = start(folder, sandbox, "--workers", "1")
    wait_for(sandbox, PHOTO)
    time.sleep(0.4)
    (folder / name).write_bytes(others[name])
    assert process.wait(timeout=60) == 1
    (folder / name).write_bytes(photos[name])
    assert upload_here(folder, sandbox) == 0
    assert sandbox.corrupt == [] and len(sandbox.clusters[0].photos) == 2


def test_a_photo_changed_before_publishing_is_sent_as_it_is_now(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match=FINISH, status=401))
    assert upload_here(folder, sandbox) == 4
    changed = factory.tour(8, filler=500)
    name = sorted(changed)[3]
    (folder / name).write_bytes(changed[name])
    posts = len([request for request in sandbox.requests if request.route.startswith(PHOTO)])
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters[0].photos) == 8
    assert len([r for r in sandbox.requests if r.route.startswith(PHOTO)]) == posts + 2  # the photo, a new manifest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_hung_publish_leaves_it_for_a_look_up(
    sandbox: Sandbox, folder: Path, number: signal.Signals
) -> None:
    sandbox.faults.append(Fault(match=FINISH, hang=60, processed=True))
    process = start(folder, sandbox)
    wait_for(sandbox, FINISH)
    process.send_signal(number)
    process.communicate(timeout=8)
    assert process.returncode == 128 + number
    assert [record["state"] for record in resume_of(folder)["sequences"].values()] == ["publishing"]
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters) == 1


@pytest.mark.parametrize("seed", range(8))
def test_signals_at_random_moments_end_a_run_in_order(sandbox: Sandbox, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    sandbox.delay = 0.1
    number = chance.choice([signal.SIGINT, signal.SIGTERM])
    process = start(folder, sandbox)
    wait_for(sandbox, "GET /me")
    time.sleep(chance.uniform(0, 0.6))
    process.send_signal(number)
    _, err = process.communicate(timeout=8)
    done = is_published(folder)
    ends = {128 + number, *((0, -number) if done else ())}  # after the work is done a signal ends it as usual
    assert process.returncode in ends and "Traceback" not in err
    sandbox.delay = 0
    assert upload_here(folder, sandbox, republish=True) == 0
    keys = [photo.session_key for cluster in sandbox.clusters for photo in cluster.photos]
    assert len(keys) == len(set(keys)) == 8 and not list(folder.glob("*.tmp"))


def test_a_stop_ends_a_wait_at_once() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(mu.Stopped):
        mu.Clock().wait(3600, stop)
