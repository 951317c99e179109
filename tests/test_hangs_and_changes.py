"""Servers that hang or crawl, and photos that change under our hands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import FastClock, resume_of, upload, upload_here


@pytest.mark.parametrize("match", ["GET /me", "POST /mly", "POST /finish_upload"])
def test_a_server_that_accepts_and_never_answers_ends_in_an_error(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch, match: str
) -> None:
    monkeypatch.setattr(mu, "ANSWER_SECONDS", 0.3)
    sandbox.faults.append(Fault(match=match, hang=30, times=None))
    assert upload_here(folder, sandbox, retries=1, patience=0) == 1
    assert sandbox.clusters == []


def test_a_publish_that_is_never_answered_is_unconfirmed(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mu, "ANSWER_SECONDS", 0.3)
    sandbox.faults.append(Fault(match="POST /finish_upload", hang=30, times=None))
    assert upload_here(folder, sandbox) == 1
    assert {s["state"] for s in resume_of(folder)["sequences"].values()} == {"unconfirmed"}


def test_a_server_that_reads_slowly_is_not_cut_off(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mu, "CONNECT_SECONDS", 2)
    sandbox.faults.append(Fault(match="POST /mly", read_rate=1_000, times=1))
    clock = FastClock()
    assert upload_here(folder, sandbox, clock) == 0 and clock.waits == []


@pytest.mark.parametrize("change", ["grows", "vanishes"])
def test_a_photo_that_changes_between_check_and_upload_is_not_counted(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    victim = sorted(folder.glob("*.jpg"))[2]
    good, plan = victim.read_bytes(), mu.plan

    def plan_and_change(*arguments: Any) -> Any:
        parts = plan(*arguments)
        victim.write_bytes(good + b"more") if change == "grows" else victim.unlink()
        return parts

    with monkeypatch.context() as patch:
        patch.setattr(mu, "plan", plan_and_change)
        assert upload_here(folder, sandbox) == 1 and sandbox.clusters == []
    victim.write_bytes(good)
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters[0].photos) == 8


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs another user to run as")
def test_unreadable_and_read_only_things_are_said_plainly(folder: Path) -> None:
    victim = sorted(folder.glob("*.jpg"))[0]
    victim.chmod(0)
    for path in (folder, *folder.parents[:3]):
        path.chmod(0o755)
    os.seteuid(65534)
    try:
        verdict = mu.judge_file(folder, victim.name, mu.Rules(0), mu.PublishedIndex(mu.Resume(folder, ""), ()))
        with pytest.raises(mu.UsageError, match="not writable"), mu.locked(folder):
            pass
    finally:
        os.seteuid(0)
    assert "can't be read (Permission denied)" in str(verdict.problems[0])


def test_a_stopped_run_says_what_is_next(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match="POST /mly", status=500, times=None))
    result = upload(folder, sandbox, "--retries", "0", "--patience", "0")
    assert result.code == 1 and "To go on: python mapillary_uploader.py" in result.out
