"""Publishing that is broken off: an unconfirmed sequence stays so until it is settled, whatever --republish meets."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import PROGRAM, FastClock, environment, resume_of, upload, upload_here

FINISH = "POST /finish_upload"


def states(folder: Path) -> list[str]:
    """States of the sequences in the resume file, in its order."""
    return [sequence["state"] for sequence in resume_of(folder)["sequences"].values()]


@pytest.fixture
def unconfirmed(sandbox: Sandbox, folder: Path) -> Path:
    """A folder that was published, but the answer was lost and no photo shows yet. A second call would count anew."""
    sandbox.live_after, sandbox.forgetful = 3600, True
    sandbox.faults.append(Fault(match=FINISH, lost=True))
    assert upload_here(folder, sandbox) == 1 and states(folder) == ["unconfirmed"]
    return folder


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_republish_that_is_refused_leaves_the_sequence_unconfirmed(
    sandbox: Sandbox, unconfirmed: Path, status: int
) -> None:
    sandbox.faults.append(Fault(match=FINISH, status=status))
    upload_here(unconfirmed, sandbox, republish=True)
    assert states(unconfirmed) == ["unconfirmed"]
    assert upload_here(unconfirmed, sandbox) == 1 and len(sandbox.clusters) == 1


def test_republish_that_is_put_off_for_good_leaves_the_sequence_unconfirmed(
    sandbox: Sandbox, unconfirmed: Path
) -> None:
    sandbox.faults.append(Fault(match=FINISH, status=503, headers={"Retry-After": "1"}, times=None))
    assert upload_here(unconfirmed, sandbox, republish=True) == 1
    sandbox.clear_faults()
    assert states(unconfirmed) == ["unconfirmed"]
    assert upload_here(unconfirmed, sandbox) == 1 and len(sandbox.clusters) == 1


def test_republish_that_cannot_save_its_intent_leaves_the_sequence_unconfirmed(
    sandbox: Sandbox, unconfirmed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saves = mu.Resume.save, []

    def full(resume: mu.Resume) -> None:
        saves.append(resume)
        if len(saves) == 2:  # the first one is of the look-up
            raise mu.UploaderError("full")
        save(resume)

    with monkeypatch.context() as patch:
        patch.setattr(mu.Resume, "save", full)
        assert upload_here(unconfirmed, sandbox, republish=True) == 1
    assert states(unconfirmed) == ["unconfirmed"] and len(sandbox.clusters) == 1
    assert upload_here(unconfirmed, sandbox) == 1 and len(sandbox.clusters) == 1


def test_a_hung_publish_ends_unconfirmed(sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mu.Client._call, "__defaults__", (0.5,))  # the answer's timeout
    sandbox.faults.append(Fault(match=FINISH, hang=60, processed=True))
    assert upload_here(folder, sandbox) == 1 and states(folder) == ["unconfirmed"]
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters) == 1


def test_a_second_sequence_is_published_although_the_first_is_unconfirmed(sandbox: Sandbox, tmp_path: Path) -> None:
    photos = factory.tour(3) | factory.tour(3, sequence_id="two", names="B{:04d}.jpg", latitude=52)
    folder = factory.write_tour(tmp_path / "tour", photos)
    sandbox.faults.append(Fault(match=FINISH, status=500))
    assert upload_here(folder, sandbox) == 1 and sorted(states(folder)) == ["published", "unconfirmed"]
    assert upload_here(folder, sandbox, republish=True) == 0 and len(sandbox.clusters) == 2


def test_killed_after_the_result_is_saved(sandbox: Sandbox, folder: Path) -> None:
    code = """if True:
    import os, sys, mapillary_uploader as m
    finished = m.Uploading.finished
    m.Uploading.finished = lambda *arguments: (finished(*arguments), os._exit(9))
    m.cli(sys.argv[1:])"""
    command = [sys.executable, "-c", code, "-d", str(folder), "-u", "demo"]
    done = subprocess.run(command, env=environment(sandbox), cwd=PROGRAM.parent, capture_output=True)
    assert done.returncode == 9 and states(folder) == ["published"]
    requests = len(sandbox.requests)
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters) == 1
    assert {request.path for request in sandbox.requests[requests:]} == {"/me"}


def test_a_full_disk_before_publishing_publishes_nothing(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(uploading: mu.Uploading) -> None:
        if any(record.state == "publishing" for record in uploading.resume.sequences.values()):
            raise mu.UploaderError(f"can't be saved: {errno.ENOSPC}")
        uploading.resume.save()

    with monkeypatch.context() as patch:
        patch.setattr(mu.Uploading, "save", full)
        assert upload_here(folder, sandbox) == 1
    assert sandbox.finish_calls == [] and states(folder) == ["uploading"]
    assert upload_here(folder, sandbox, FastClock()) == 0 and len(sandbox.clusters) == 1


def test_what_is_unconfirmed_says_what_to_do(sandbox: Sandbox, unconfirmed: Path) -> None:
    result = upload(unconfirmed, sandbox)
    assert result.code == 1 and "--republish" in result.err and len(sandbox.clusters) == 1


def test_a_publish_waits_for_no_upload(sandbox: Sandbox, tmp_path: Path) -> None:
    photos = factory.tour(2) | factory.tour(6, sequence_id="two", names="X{}.jpg", latitude=52)
    folder = factory.write_tour(tmp_path / "two", photos)
    sandbox.faults.append(Fault(match="POST /mly.*jpg", after=2, delay=0.5, times=None))
    assert upload_here(folder, sandbox, mu.Clock(), workers=1) == 0 and len(sandbox.clusters) == 2
    call = next(request for request in sandbox.requests if "finish_upload" in request.path)
    assert any(other.started < call.started < other.ended for other in sandbox.requests if "jpg" in other.path)


def test_an_answer_lost_on_the_way_through_a_proxy_is_unconfirmed_and_never_asked_for_twice(
    sandbox: Sandbox, folder: Path
) -> None:
    sandbox.live_after, sandbox.forgetful = 3600, True
    sandbox.faults.append(Fault(match=FINISH, lost=True))
    proxy = {
        "http_proxy": sandbox.url,
        "no_proxy": "",
        "NO_PROXY": "",
    }  # the sandbox understands what proxies are asked
    assert upload(folder, sandbox, env=proxy).code == 1
    assert states(folder) == ["unconfirmed"] and len(sandbox.finish_calls) == len(sandbox.clusters) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"HTTP/1.1 502 Bad Gateway\r\n\r\n", mu.NotActedOn), (b"", mu.Unconfirmed), (None, mu.NotActedOn)],
    ids=["refuses the tunnel", "closes", "is not there"],
)
def test_a_proxy_that_fails(monkeypatch: pytest.MonkeyPatch, answer: bytes | None, error: type[Exception]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if answer is None:
            listener.close()
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")

        def serve() -> None:
            peer, _ = listener.accept()
            peer.recv(4096)
            peer.sendall(answer or b"")
            peer.close()

        threading.Thread(target=serve if answer is not None else int, daemon=True).start()
        service = mu.Service("https://graph.example", "https://uploads.example")
        with pytest.raises(error):
            mu.Client(service, "token", mu.Line(0, mu.Clock(), lambda _: None)).finish("h", None)


@pytest.mark.parametrize("ending", ["SIGTERM", "401"])
def test_no_publish_begins_once_the_run_ends(sandbox: Sandbox, tmp_path: Path, ending: str) -> None:
    """A is being published and B's manifest is on its way, when the run ends: B was certainly not published."""
    photos = factory.tour(2) | factory.tour(2, sequence_id="B", names="X{}.jpg", latitude=52)
    folder = factory.write_tour(tmp_path / "two", photos)
    manifest = "POST /mly.*json"
    sandbox.faults += [Fault(match=FINISH, delay=1.2), Fault(match=manifest, after=1, delay=0.8)]
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", "-q"]
    if ending == "401":
        (folder / "Y.jpg").write_bytes(next(iter(factory.tour(1, sequence_id="C", latitude=53).values())))
        key = "POST /(?!.*json)"
        sandbox.faults.insert(0, Fault(match=key, after=4, delay=0.4, status=401))
    with subprocess.Popen(command, env=environment(sandbox)) as process:
        while len([request for request in sandbox.requests if request.path.endswith("json")]) < 2:
            time.sleep(0.01)
        time.sleep(0.2)
        if ending == "SIGTERM":
            process.terminate()
        process.wait(timeout=60)
    assert "publishing" not in states(folder)
    sandbox.clear_faults()
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters) == len(sandbox.finish_calls)


@pytest.mark.parametrize("handle", ["expired", "forgotten"])
def test_a_photo_refused_later_is_not_published_with_its_old_handle(
    sandbox: Sandbox, folder: Path, handle: str
) -> None:
    sandbox.faults.append(Fault(match=FINISH, status=400 if handle == "forgotten" else 401))
    upload_here(folder, sandbox)
    resume = folder / mu.RESUME_NAME
    resume.write_text(resume.read_text().replace('"uploaded_at": "20', '"uploaded_at": "19'))
    refused = next(path for path in sandbox.uploads if path.endswith("jpg"))
    sandbox.faults.append(Fault(match=refused, status=400, times=None))
    assert upload_here(folder, sandbox, skip_invalid=True) == 3 and states(folder) == ["published"]
    assert len(sandbox.clusters[0].photos) == 7
    assert refused not in [photo.session_key for photo in sandbox.clusters[0].photos]


def test_no_photo_waits_for_publishes(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for number in range(5):
        photos = factory.tour(1, sequence_id=f"S{number}", names=f"{number}_{{}}.jpg", latitude=50 + number)
        factory.write_tour(folder, photos)
    sandbox.faults.append(Fault(match=FINISH, delay=2, times=None))
    assert upload_here(folder, sandbox, mu.Clock(), workers=1) == 0 and len(sandbox.clusters) == 5
    first = next(request for request in sandbox.requests if request.route == FINISH)
    assert all(request.started < first.ended for request in sandbox.requests if request.path.endswith("jpg"))


def test_an_outage_with_only_the_manifest_left_is_waited_out(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match="json", status=502, times=9))
    assert upload_here(folder, sandbox) == 0 and len(sandbox.clusters) == 1
