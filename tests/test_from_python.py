"""README "From Python": the steps as functions that any thread may call, and what they leave alone."""

from __future__ import annotations

import gc
import inspect
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from faults import wait_until, when_asked

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import ROOT, FastClock, FastRun, account, redirect_of, resume_of, service_of, upload, upload_here

SCHEMA = json.loads((Path(__file__).parent / "result.schema.json").read_text())
TOKEN = "MLY|sandbox|demo-token"
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def ours() -> set[threading.Thread]:
    """The threads that aren't the sandbox's."""
    return {thread for thread in threading.enumerate() if "process_request" not in thread.name}


# ---- The functions ----

FUNCTIONS = """
check_photo(path, [settings])  check_folder(folder, [settings], [run])  check_folders(root, [settings], [run])
description_of(photo)  sent_bytes(folder, photo, [offset])  map_html(tours)  map_geojson(tours)
publish(tour, account, [service], [run])  check_live(folder, account, [service], [run])
account_of(token, [organization_id], [service])  authorize_url(application, state, [service])
token_from(application, code, [service])  renewed(application, profile, [service])  service_from(environment)
"""


@pytest.mark.parametrize("promise", re.split(r"  |\n", FUNCTIONS.strip()))
def test_a_function_takes_what_is_promised(promise: str) -> None:
    function = getattr(mu, promise.partition("(")[0])
    parameters = inspect.signature(function).parameters.values()
    words = [p.name if p.default is inspect.Parameter.empty else f"[{p.name}]" for p in parameters]
    assert f"{function.__name__}({', '.join(words)})" == promise and function.__doc__


def test_a_photo_is_checked_by_itself(tmp_path: Path) -> None:
    (name, data), _ = factory.tour(2).items()
    (tmp_path / name).write_bytes(data)
    photo = mu.check_photo(tmp_path / name)  # its neighbour is not missed
    assert (photo.file, photo.state, photo.problems, photo.warnings) == (name, "ready", (), ())
    assert (photo.latitude, photo.longitude, photo.heading, photo.altitude) == (51.5294417, -0.1538283, 75, 40)
    assert "No such file" in str(mu.check_photo(str(tmp_path / "missing.jpg")).problems[0])
    zoneless = factory.photo_bytes(factory.sequence_maker_json({"photo.cli_connection_method": "timecapture"}))
    (tmp_path / "z.jpg").write_bytes(zoneless)
    assert "--utc-offset" in str(mu.check_photo(tmp_path / "z.jpg").warnings[0])
    assert mu.check_photo(tmp_path / "z.jpg", mu.Settings(utc_offset=60)).warnings == ()


def test_checking_writes_nothing_and_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    before = {path: path.stat() for path in [folder, *folder.iterdir()]}
    tour = mu.check_folder(str(folder), mu.Settings(min_age=0))
    assert isinstance(tour, mu.Tour) and [one.folder for one in mu.check_folders(folder.parent)] == [folder]
    assert {path: path.stat() for path in [folder, *folder.iterdir()]} == before
    assert (len(tour.photos), len(tour.sequences), tour.skipped, tour.owner, tour.code) == (8, 1, [], None, 0)
    assert tour.sequences[0].photos == tour.photos and tour.sequences[0].problems == [] and tour.photos[0].uuid


def test_a_result_says_what_json_says(sandbox: Sandbox, folder: Path) -> None:
    result = mu.publish(mu.check_folder(folder), account(sandbox), service_of(sandbox))
    assert isinstance(result, mu.Result) and (result.code, result.errors, len(result.photos)) == (0, [], 8)
    assert {sequence.state for sequence in result.sequences} == {"published"} and result.username == "demo"
    owner = mu.check_folder(folder).owner
    assert owner and (owner.username, owner.user_id, owner.token) == ("demo", "1001", "")
    looked = mu.check_live(folder, account(sandbox), service_of(sandbox))
    checked = mu.check_folder(folder).document() | {"dry_run": True, "username": "demo"}
    for document in (result.document(), looked.document(), checked):
        jsonschema.validate(json.loads(json.dumps(document)), SCHEMA)
    assert looked.document() == upload(folder, sandbox, "--check", "--json").document
    assert checked == upload(folder, sandbox, "--dry-run", "--json").document


# ---- Errors ----


def busy(sandbox: Sandbox, folder: Path) -> None:
    with mu.locked(folder):
        upload_here(folder, sandbox)


def anothers(sandbox: Sandbox, folder: Path) -> None:
    upload_here(folder, sandbox)
    mu.publish(mu.check_folder(folder), mu.Account(TOKEN, "1002", "other"), service_of(sandbox))


Act = Callable[[Sandbox, Path], object]
NOWHERE = mu.Service("http://127.0.0.1:9/graph", "http://127.0.0.1:9/upload")
ERRORS: dict[str, tuple[int, Act]] = {
    "no folder": (2, lambda sandbox, folder: mu.check_folder(folder / "missing")),
    "no folder below": (2, lambda sandbox, folder: mu.check_folders(folder / "missing")),
    "no sequence": (2, lambda sandbox, folder: mu.check_folder(folder, mu.Settings(republish=frozenset(["x"])))),
    "no token": (4, lambda sandbox, folder: mu.account_of("", service=service_of(sandbox))),
    "bad token": (4, lambda sandbox, folder: mu.account_of("wrong", service=service_of(sandbox))),
    "no organization": (2, lambda sandbox, folder: account(sandbox, "99")),
    "no server": (1, lambda sandbox, folder: mu.account_of(TOKEN, service=NOWHERE)),
    "bad address": (2, lambda sandbox, folder: mu.service_from({"MAPILLARY_UPLOAD_ENDPOINT": "http://example.org"})),
    "another run": (5, busy),
    "another account": (2, anothers),
}


@pytest.mark.parametrize("error", ERRORS)
def test_errors_carry_their_code_and_what_to_do(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setattr(mu, "LONGEST_RETRY_WAIT", 0)
    code, act = ERRORS[error]
    with pytest.raises(mu.UploaderError) as caught:
        act(sandbox, folder)
    assert caught.value.code == code and str(caught.value).endswith(caught.value.hint)
    assert (caught.value.hint or error == "no server") and TOKEN not in str(caught.value)


def test_what_is_wrong_with_a_photo_stands_in_that_photo_and_is_no_error(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault("POST /mly.*jpg", status=400, body={"debug_info": {"message": "odd"}}))
    result = upload_here(folder, sandbox)
    (failure,) = [photo.failure for photo in result.photos if photo.state == "failed"]
    assert (result.code, result.errors) == (1, []) and "odd" in failure
    min(folder.glob("*.jpg")).write_bytes(b"")
    tour = mu.check_folder(folder)
    assert [bool(photo.problems) for photo in tour.photos] == [True] + 7 * [False]
    assert (tour.code, tour.errors) == (3, [])
    assert mu.publish(tour, account(sandbox), service_of(sandbox)).code == 3 and sandbox.clusters == []


# ---- What has changed between checking and publishing ----


def half_published(sandbox: Sandbox, folder: Path) -> None:
    """Another run has uploaded photos, and not published them."""
    sandbox.faults.append(Fault("POST /finish_upload", status=400, body={"error": {"message": "no"}}))
    assert upload_here(folder, sandbox).code == 1


CHANGES: dict[str, Act] = {
    "published": lambda sandbox, folder: upload_here(folder, sandbox),
    "uploaded": half_published,
    "another size": lambda sandbox, folder: os.truncate(min(folder.glob("*.jpg")), 9999),
    "another time": lambda sandbox, folder: os.utime(min(folder.glob("*.jpg")), (1_700_000_000, 1_700_000_000)),
    "removed": lambda sandbox, folder: min(folder.glob("*.jpg")).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_has_changed_since_it_was_checked_is_not_published(
    sandbox: Sandbox, folder: Path, change: str
) -> None:
    tour = mu.check_folder(folder)
    CHANGES[change](sandbox, folder)
    requests = len(sandbox.requests)
    by_a_run = change in ("published", "uploaded")
    what = "another run has worked on" if by_a_run else "GS0001_calculated.jpg was changed or removed"
    with pytest.raises(mu.UploaderError, match=f"{what}.* since it was checked. Check it again") as caught:
        mu.publish(tour, account(sandbox), service_of(sandbox))
    assert caught.value.code == 1 and {request.path for request in sandbox.requests[requests:]} == {"/me"}


def test_image_ids_that_were_noted_meanwhile_are_no_change_and_are_kept(sandbox: Sandbox, folder: Path) -> None:
    upload_here(folder, sandbox)
    factory.write_tour(folder, dict(list(factory.tour(10).items())[8:]))
    tour = mu.check_folder(folder)
    assert mu.check_live(folder, account(sandbox), service_of(sandbox)).code == 1  # two are new
    assert mu.publish(tour, account(sandbox), service_of(sandbox)).code == 0
    noted = [p["image_id"] for s in resume_of(folder)["sequences"].values() for p in s["photos"].values()]
    assert len(sandbox.published) == 10 and sum(map(bool, noted)) == 8


# ---- Any process, any thread ----


def test_a_tour_can_be_published_in_another_process(sandbox: Sandbox, folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"no photo")
    tour = mu.check_folder(folder, mu.Settings(skip_invalid=True, republish=frozenset(), min_age=0))
    tour.errors.append(mu.UsageError("what", "to do"))
    code = """if True:
        import pickle, sys, mapillary_uploader as mu
        tour, account, service = pickle.load(sys.stdin.buffer)
        assert tour.errors.pop().hint == "to do"
        sys.exit(mu.publish(tour, account, service).code)"""
    given = pickle.dumps((tour, account(sandbox, "2002"), service_of(sandbox)))
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=given).returncode == 3
    assert len(sandbox.published) == 8 and sandbox.clusters[0].organization_id == "2002"


def test_folders_are_published_at_once_in_several_threads(sandbox: Sandbox, tmp_path: Path) -> None:
    tours = [factory.tour(5, start=f"2021:07:2{number} 09:16:54Z") for number in range(4)]
    folders = [factory.write_tour(tmp_path / str(number), tour) for number, tour in enumerate(tours)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(partial(upload_here, sandbox=sandbox), folders))
    assert [result.code for result in results] == [0] * 4
    assert len(sandbox.published) == 20 and sandbox.published_twice == [] and sandbox.corrupt == []


class Watched(FastRun):
    """Keeps what is told of progress, and by whom."""

    def __init__(self, hours: float = 0) -> None:
        super().__init__(FastClock(3600 * hours))
        self.told: list[tuple[mu.Progress, threading.Thread]] = []

    def progress(self, progress: mu.Progress) -> None:
        self.told.append((progress, threading.current_thread()))


def test_progress_is_told_in_the_thread_of_the_call(sandbox: Sandbox, folder: Path) -> None:
    run = Watched()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(upload_here, folder, sandbox, run).result()
        assert {thread for _, thread in run.told} == {threads.submit(threading.current_thread).result()}
    last, size = run.told[-1][0], sum(path.stat().st_size for path in folder.glob("*.jpg"))
    assert mu.Progress("check", 8, 8) in [progress for progress, _ in run.told]
    assert last[:6] == ("upload", 8, 8, size, size, 0) and last.seconds > 0


@pytest.mark.parametrize(("hours", "before"), [(47, 8), (49, 0)])
def test_progress_counts_what_was_there(sandbox: Sandbox, folder: Path, hours: float, before: int) -> None:
    sandbox.faults.append(Fault("POST /mly.*json", status=400))
    assert upload_here(folder, sandbox).code == 1
    assert upload_here(folder, sandbox, run := Watched(hours)).code == 0  # a handle lives two days
    uploads = [progress for progress, _ in run.told if progress.step == "upload"]
    assert {(progress.before, progress.total) for progress in uploads} == {(before, 8 - before)}


def test_a_call_touches_nothing_of_its_process(
    sandbox: Sandbox, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    service, handlers = service_of(sandbox), [signal.getsignal(number) for number in signal.valid_signals()]
    for name in ("ACCESS_TOKEN", "GRAPH_API_ENDPOINT", "UPLOAD_ENDPOINT", "CONFIG_PATH", "CLIENT_TOKEN"):
        monkeypatch.setenv(f"MAPILLARY_{name}", "http://127.0.0.1:9/wrong")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    environment, stream = dict(os.environ), sys.stdout
    for spoilt in (False, True):
        if spoilt:
            monkeypatch.delenv("HOME")
            (folder / "bad.jpg").write_bytes(b"")
            sandbox.faults.append(Fault("POST", status=503, times=None))
        who = mu.account_of(f" {TOKEN}\n", service=service)
        mu.publish(mu.check_folder(folder, mu.Settings(patience=0)), who, service, FastRun())
        mu.check_live(folder, who, service)
    assert dict(os.environ) | {"HOME": str(tmp_path / "home")} == environment and sys.stdout is stream
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert tuple(capfd.readouterr()) == ("", "") and list((tmp_path / "home").iterdir()) == []


def test_threads_and_connections_are_gone_when_a_call_returns(
    sandbox: Sandbox, folder: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(gc.enable)
    gc.collect()
    gc.disable()  # what is left behind isn't cleared away by Python
    threads, files = ours(), len(os.listdir("/proc/self/fd"))
    who = account(sandbox)
    assert ours() == threads
    sandbox.faults.append(Fault("POST /mly", status=500, times=3))
    assert mu.publish(mu.check_folder(folder), who, service_of(sandbox), FastRun()).code == 0
    assert ours() == threads
    assert mu.check_live(folder, who, service_of(sandbox)).code == 0
    assert ours() == threads
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files)  # the sandbox' ends too


# ---- To stop a call ----


HANGS: list[tuple[str, dict[str, Any]]] = [
    ("POST /mly.*jpg", {"unread": True, "hang": 600}),
    ("POST /mly.*jpg", {"read_rate": 1_000.0}),
    ("POST /finish_upload", {"hang": 600}),
    ("POST /finish_upload", {"drip": 60.0}),
    ("GET /images", {"status": 429, "headers": {"Retry-After": "600"}}),
]


@pytest.mark.parametrize(("at", "fault"), HANGS)
def test_stop_ends_a_call_that_hangs(sandbox: Sandbox, tmp_path: Path, at: str, fault: dict[str, Any]) -> None:
    folder = factory.write_tour(tmp_path / "tour", factory.tour(2, filler=9_000_000 if "unread" in fault else 99))
    tour, who, threads, run = mu.check_folder(folder), account(sandbox), ours(), mu.Run()
    sandbox.faults += [when_asked(at, run.stop.set), Fault(at, times=None, **fault)]
    started = time.monotonic()
    result = mu.publish(tour, who, service_of(sandbox), run)
    assert time.monotonic() - started < 20 and result.code == 130 and "stopped" in str(result.errors)
    wait_until(lambda: ours() == threads)
    sandbox.clear_faults()
    assert upload_here(folder, sandbox).code == 0 or at == "POST /finish_upload"
    assert sandbox.published_twice == []


def test_stop_ends_a_check_and_a_look(sandbox: Sandbox, folder: Path) -> None:
    class Impatient(mu.Run):
        def progress(self, progress: mu.Progress) -> None:
            assert not self.stop.is_set()
            self.stop.set()

    calls: list[Callable[[mu.Run], object]] = [
        lambda run: mu.check_folder(folder, run=run),
        lambda run: mu.check_folders(folder.parent, run=run),
        lambda run: mu.check_live(folder, account(sandbox), service_of(sandbox), run),
    ]
    upload_here(folder, sandbox)
    factory.write_tour(folder, factory.tour(9))
    looking = mu.Run()
    sandbox.faults += [when_asked("GET /images", looking.stop.set), Fault("GET /images", times=None, hang=600)]
    for call, run in zip(calls, (Impatient(), Impatient(), looking)):
        started = time.monotonic()
        with pytest.raises(mu.Stopped) as caught:
            call(run)
        assert time.monotonic() - started < 20 and caught.value.code == 130


# ---- The README's examples ----


def test_the_readmes_example_works(sandbox: Sandbox, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.jpg").write_bytes(b"no photo")
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    upload, job = names["upload"], names["Job"]()
    assert not upload(folder, TOKEN, job, service_of(sandbox))
    assert capsys.readouterr().out.startswith("bad.jpg not a JPEG photo")
    (folder / "bad.jpg").unlink()
    assert upload(folder, TOKEN, job, service_of(sandbox)) is True and len(sandbox.published) == 8
    assert job.percent == 100 and capsys.readouterr().out == ""


def test_the_readmes_web_app_signs_people_in(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("authorize_url", "token_from"):
        monkeypatch.setattr(mu, name, partial(getattr(mu, name), service=service_of(sandbox)))
    names: dict[str, Any] = {}
    exec(BLOCKS[1].replace("client id", sandbox.client_id).replace("client secret", sandbox.client_secret), names)
    address, _, words = redirect_of(names["address"]).partition("?")
    query = dict(urllib.parse.parse_qsl(words))
    assert address == "https://example.org/callback"
    with pytest.raises(PermissionError):
        names["callback"](query, "another state")
    token = names["callback"](query, names["state"])
    assert mu.account_of(token, service=service_of(sandbox)).username == "demo"
