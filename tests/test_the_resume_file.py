"""README "The resume file": which photos are published already, copies, files that can't be used, when it is saved."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults import FINISH, MANIFEST, NO, PHOTO, kill, started, states, wait_until, when_asked

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import (
    LOCK,
    NEVER,
    RESUME,
    FastClock,
    FastRun,
    Files,
    Later,
    account,
    environment,
    resume_of,
    run,
    sequences_of,
    service_of,
    sizes,
    upload,
    upload_here,
    without_override,
)

TEMPORARY = ".mapillary_uploader.json.tmp"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make other users' files")


def walk(count: int, **options: Any) -> Files:
    """Photos P1.jpg, P2.jpg … of a sequence `walk`. They name no other photo, so that none is missed."""
    own = {"names": "P{}.jpg", "sequence_id": "walk", "picture": "walk", "every": {"photo.connections": {}}}
    return factory.tour(count, **own | options)


def renamed(files: Files, *names: str) -> Files:
    return dict(zip(names, files.values()))


def become(folder: Path, files: Files) -> None:
    """Let the folder hold these photos; those that are there already stay as they are."""
    for path in folder.glob("*.jp*g"):
        if files.get(path.name) != path.read_bytes():
            path.unlink()
    factory.write_tour(folder, {name: data for name, data in files.items() if not (folder / name).exists()})


def names(sandbox: Sandbox) -> list[str]:
    """What is published, sorted."""
    return sorted(photo.name for photo in sandbox.published)


def said(document: dict[str, Any]) -> str:
    """All problems and warnings of a --json document."""
    texts = [[*entry["problems"], *entry.get("warnings", ())] for entry in document["photos"] + document["sequences"]]
    return "\n".join(sum(texts, []))


# ---- which photos are published already ----

THREE, PATCHED, TWIN = walk(3), walk(3, picture="patched"), walk(3, sequence_id="two", picture="twin")
ANEW_TAGGED, ANEW_BLURRED = walk(3, sequence_id="anew"), walk(3, sequence_id="anew", picture="patched")
AWAY, AWAY_ANEW = walk(3, latitude=51.6), walk(3, latitude=51.6, sequence_id="anew")
P1, ALIKE = THREE["P1.jpg"], walk(3, filler=0)  # the latter: one picture, as made tours have
KEYWORDS = {name: data[:2] + factory.segment(0xFE, b"keywords") + data[2:] for name, data in THREE.items()}
OTHER = {"picture": "other", "latitude": 52.0, "start": "2021:08:01 12:00:00Z"}
ANOTHER = walk(1, sequence_id="other", names=["Q.jpg"], **OTHER)
NEW_ID = {"sequence_id": "new"}
NAMELESS = {"photo.id": "", "photo.connections": {}}
X, Q = ("X1.jpg", "X2.jpg", "X3.jpg"), ("Q1.jpg", "Q2.jpg", "Q3.jpg")
MOVED, CHANGED = "published before with another time, place or camera", "changed since it was published"
VERSION, ANEW, EMPTY = "another version of a published photo", "stitched anew?", "empty file"  # these hold back

KINDS: dict[str, tuple[Files, Files, int, str]] = {  # as published, as they are now, how many are sent, what is said
    "as they were": (THREE, THREE, 0, ""),
    "renamed": (THREE, renamed(THREE, *X), 0, ""),
    "names gone round": (THREE, renamed(THREE, "P2.jpg", "P3.jpg", "P1.jpg"), 0, ""),
    "keywords added": (THREE, KEYWORDS, 0, ""),
    "tagged anew": (THREE, ANEW_TAGGED, 0, ""),
    "tagged anew with other names": (THREE, walk(3, sequence_id="anew", names="P{}_calculated.jpg"), 0, ""),
    "moved": (THREE, AWAY, 0, MOVED),
    "all but the picture is another": (THREE, renamed(walk(3, **OTHER | {"picture": "walk", **NEW_ID}), *X), 0, MOVED),
    "patched in place": (THREE, PATCHED, 0, CHANGED),
    "patched, with other names": (THREE, renamed(PATCHED, *X), 0, CHANGED),
    "patched under each other's names": (THREE, renamed(PATCHED, *[*THREE][::-1]), 0, CHANGED),
    "cut short since": (THREE, THREE | {"P1.jpg": P1[:-2]}, 0, CHANGED),
    "a copy": (THREE, KEYWORDS | {"P1 (1).jpg": P1}, 0, "a copy; it isn't sent (of P1.jpg)"),
    "moved, and a copy tagged anew": (THREE, AWAY | {"P4.jpg": AWAY_ANEW["P1.jpg"]}, 0, "isn't sent (of P1.jpg)"),
    "only copies": (THREE, {"a.jpg": P1, "b_calculated.jpg": P1}, 0, "a copy; it isn't sent (of a.jpg)"),
    "emptied": (THREE, THREE | {"P1.jpg": b""}, 0, EMPTY),
    "some gone": (THREE, {"P1.jpg": P1}, 0, ""),
    "all gone": (THREE, {}, 0, ""),
    "alike, with other names": (ALIKE, renamed(ALIKE, *X), 0, ""),
    "alike, tagged anew, with other names": (ALIKE, walk(3, filler=0, sequence_id="anew", names="X{}.jpg"), 0, ""),
    "alike, moved": (ALIKE, walk(3, filler=0, latitude=51.6, names="X{}.jpg"), 0, MOVED),
    "photos added": (THREE, walk(5), 2, ""),
    "a burst twin": (THREE, THREE | {"P4.jpg": TWIN["P1.jpg"]}, 1, ""),
    "photos in between": (dict([*walk(6).items()][::2]), walk(6, sequence_id="anew"), 3, ""),
    "a second camera's tour": (THREE, THREE | renamed(TWIN, *Q), 3, ""),
    "a drop folder used again": (THREE, walk(3, sequence_id="other", **OTHER), 3, ""),
    "a drop folder used again, without photo ids": (THREE, walk(3, every=NAMELESS, **OTHER), 3, ""),
    "alike, one added": (ALIKE, walk(4, filler=0), 1, ""),
    "alike, another tour": (ALIKE, walk(3, filler=0, sequence_id="other", names="X{}.jpg", **OTHER), 3, ""),
    "blurred beside sharp": (THREE, THREE | {"P1_blurred.jpg": PATCHED["P1.jpg"]}, 1, VERSION),
    "tagged anew, blurred beside sharp": (THREE, ANEW_TAGGED | {"P1_blurred.jpg": ANEW_BLURRED["P1.jpg"]}, 1, VERSION),
    "blurred over sharp, which stays": (THREE, {"P1.jpg": PATCHED["P1.jpg"], "P1_sharp.jpg": P1}, 1, VERSION),
    "stitched and tagged anew": (THREE, TWIN, 3, ANEW),
    "one of them stitched anew": (THREE, {"Q1.jpg": TWIN["P1.jpg"], "P2.jpg": THREE["P2.jpg"]}, 1, ANEW),
}


@pytest.mark.parametrize("state", ["published", "unconfirmed"])
@pytest.mark.parametrize("kind", KINDS)
def test_which_photos_are_published_already(sandbox: Sandbox, tmp_path: Path, kind: str, state: str) -> None:
    before, now, sent, word = KINDS[kind]
    sandbox.live_after, unclear, held = NEVER, int(state == "unconfirmed"), word in (VERSION, ANEW, EMPTY)
    sandbox.faults.append(Fault(FINISH if unclear else "never", lost=True))
    folder = factory.write_tour(tmp_path / "tour", before)
    assert upload_here(folder, sandbox).code == unclear and sizes(sandbox) == [3]
    become(folder, now)
    document = upload_here(folder, sandbox).document() if unclear else upload(folder, sandbox, "--json").document
    assert word in said(document) and bool(word) == bool(said(document))
    again = upload_here(folder, sandbox, skip_invalid=True)
    assert document["exit_code"] == again.code == (1 if unclear else 3 * held)
    assert sizes(sandbox) == [3, sent][: 1 + bool(sent and not held)]
    if ids := {sequence.uuid for sequence in again.sequences if sequence.problems}:
        assert upload_here(folder, sandbox, republish=frozenset(ids)).code == unclear and sizes(sandbox) == [3, sent]
    assert {p.description["MAPSequenceUUID"] for p in sandbox.published[3:]} <= {"walk_2", "two", "other", "anew"}
    assert len({photo.md5 for photo in sandbox.published}) == 3 + sent


@pytest.fixture
def published(sandbox: Sandbox, tmp_path: Path) -> Path:
    """Three photos, published."""
    folder = factory.write_tour(tmp_path / "published", THREE)
    assert upload_here(folder, sandbox).code == 0
    return folder


@pytest.fixture
def unconfirmed(sandbox: Sandbox, tmp_path: Path) -> Path:
    """Three photos, published; but the answer was lost, and they don't show for long."""
    sandbox.live_after = NEVER
    sandbox.faults.append(Fault(FINISH, lost=True))
    folder = factory.write_tour(tmp_path / "unconfirmed", THREE)
    assert upload_here(folder, sandbox).code == 1
    return folder


@pytest.mark.parametrize("state", ["published", "unconfirmed"])
def test_a_run_with_nothing_to_do_opens_no_photo(sandbox: Sandbox, request: pytest.FixtureRequest, state: str) -> None:
    folder = request.getfixturevalue(state)
    os.utime(folder / "P1.jpg", ns=(1, 1))  # which is noted, so that later runs needn't open it
    upload_here(folder, sandbox)
    before, text = len(sandbox.requests), (folder / RESUME).read_bytes()
    for path in folder.glob("*.jpg"):
        status = path.stat()
        path.write_bytes(b"\0" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    document = upload(folder, sandbox, "--json").document
    assert document["exit_code"] == int(state == "unconfirmed") and said(document) == ""
    routes = [request.route for request in sandbox.requests[before:]]
    assert routes == ["GET /me", *["GET /images"] * (state == "unconfirmed")] and (folder / RESUME).read_bytes() == text


@pytest.mark.parametrize("change", [{"X2.jpg": THREE["P2.jpg"]}, walk(3, sequence_id="anew"), PATCHED])
def test_a_file_of_version_1_0_is_understood(sandbox: Sandbox, published: Path, change: Files) -> None:
    file = resume_of(published)
    del file["earlier_keys"], file["sequences"]["walk"]["shown_before"]
    for entry in file["sequences"]["walk"]["photos"].values():
        del entry["shot"], entry["picture"]
    (published / RESUME).write_text(json.dumps(file))
    become(published, THREE | {"P1 (1).jpg": P1})
    assert upload_here(published, sandbox).code == 0
    become(published, change)
    assert upload_here(published, sandbox).code == 0 and sizes(sandbox) == [3]


def test_a_republish_of_version_1_0_that_broke_off_is_unconfirmed(sandbox: Sandbox, unconfirmed: Path) -> None:
    path = unconfirmed / RESUME
    path.write_text(path.read_text().replace('"state": "unconfirmed"', '"state": "uploading"'))
    assert upload_here(unconfirmed, sandbox).code == 1 and sizes(sandbox) == [3]


# ---- copies, and two versions of a photo ----


@pytest.mark.parametrize(
    ("more", "copies"),
    [
        ({"P1 (1).jpg": P1}, ["P1.jpg"]),  # the first in natural order stays
        ({"P1_calculated.jpg": P1}, ["P1.jpg"]),  # or what Sequence Maker wrote
        ({"Q_calculated.jpg": P1, "R_calculated.jpeg": P1}, ["P1.jpg", "R_calculated.jpeg"]),
        ({"tagged.jpg": KEYWORDS["P1.jpg"]}, ["tagged.jpg"]),
        (walk(3, sequence_id="anew", names="P{}_calculated.jpg"), [*THREE]),  # Sequence Maker run on its own output
        (renamed(walk(1, every=NAMELESS), "Q.jpg"), ["Q.jpg"]),  # same shot
        (renamed(walk(1, every=NAMELESS, picture="twin"), "Q.jpg"), []),  # same shot, another picture
        (walk(2, every=NAMELESS, names="Q{}.jpg", **OTHER), []),  # the same lack of an id
        (walk(2, every=NAMELESS, names="Q{}.jpg", filler=0), []),  # the same lack of an id and of a picture
        (renamed(walk(1, latitude=51.6), "Q.jpg"), ["Q.jpg"]),  # same id, another shot
    ],
)
def test_a_copy_is_named_and_not_sent(sandbox: Sandbox, tmp_path: Path, more: Files, copies: list[str]) -> None:
    folder = factory.write_tour(tmp_path / "tour", THREE | more)
    for _ in range(2):
        result = upload_here(folder, sandbox)
        assert result.code == 0 and [photo.file for photo in result.photos if photo.state == "copy"] == copies
        assert [photo.document()["problems"] for photo in result.photos if photo.state == "copy"] == [[]] * len(copies)
        assert said(result.document()).count("a copy; it isn't sent") == len(copies)
        assert names(sandbox) == sorted({*THREE, *more} - {*copies})


@pytest.mark.parametrize("fault", [NO, None], ids=["uploaded", "published"])
def test_of_a_photo_and_its_copy_the_resume_files_stays(sandbox: Sandbox, tmp_path: Path, fault: Any) -> None:
    folder = factory.write_tour(tmp_path / "tour", {"Z.jpg": P1})
    sandbox.faults += [Fault(FINISH, status=401, body=fault)] if fault else []
    upload_here(folder, sandbox)
    become(folder, {"A_calculated.jpg": P1, "Z.jpg": P1})
    assert upload_here(folder, sandbox).code == 0 and len(sandbox.posts("jpg")) == 1 and names(sandbox) == ["Z.jpg"]


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_two_versions_hold_their_sequence_back(sandbox: Sandbox, tmp_path: Path, skip_invalid: bool) -> None:
    blurred = walk(1, picture="blurred", every={"photo.connections": {}, "sequence.id": "blurred"})
    folder = factory.write_tour(tmp_path / "tour", THREE | renamed(blurred, "P1_blurred.jpg") | ANOTHER)
    result = upload(folder, sandbox, *["--skip-invalid"] * skip_invalid)
    assert result.code == 3 and "same photo id and different pictures" in result.out and "remove one" in result.out
    assert "P1.jpg, P1_blurred.jpg" in result.out and names(sandbox) == ["Q.jpg"] * skip_invalid
    (folder / "P1.jpg").unlink()
    assert upload(folder, sandbox).code == 0 and len(sandbox.published) == 4 and sandbox.published_twice == []


def test_two_cameras_on_one_track_of_which_one_is_refused_once(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path / "tour", THREE | renamed(TWIN, *Q))
    sandbox.faults.append(Fault(FINISH, after=1, status=400, body=NO))
    for code, counts in ((1, "3 published, 3 uploaded"), (0, "6 published")):
        result = upload(folder, sandbox)
        assert result.code == code and f"6 photos: {counts}" in result.out
    assert sizes(sandbox) == [3, 3] and len({photo.md5 for photo in sandbox.published}) == 6


def test_a_zone_that_is_given_once_and_not_again(sandbox: Sandbox, tmp_path: Path) -> None:
    camera = walk(3, method="timecapture", every={"photo.connections": {}, "photo.original_GPSDateTime": ""})
    folder = factory.write_tour(tmp_path / "tour", camera)
    assert upload(folder, sandbox).code == 3 and upload(folder, sandbox, "--utc-offset", "+02:00").code == 0
    become(folder, renamed(camera, *X))
    assert upload(folder, sandbox).code == 0 and sizes(sandbox) == [3]


# ---- bytes that nobody here sent ----

NOT_HERE = "nobody here has sent"


@pytest.mark.parametrize("lost", ["resume file", "other folder", "part of the folder", "older resume file"])
def test_what_another_run_has_sent_is_held_back(sandbox: Sandbox, tmp_path: Path, lost: str) -> None:
    sandbox.live_after, backup = NEVER, lost == "older resume file"
    folder = factory.write_tour(tmp_path / "tour", THREE)
    sandbox.faults.append(Fault(PHOTO, status=401))
    assert upload_here(folder, sandbox, workers=1).code == 4
    old = (folder / RESUME).read_bytes()
    assert upload_here(folder, sandbox).code == 0
    (folder / RESUME).write_bytes(old) if backup else (folder / RESUME).unlink()
    become(folder, walk(2) if lost == "part of the folder" else THREE)
    folder = folder.rename(tmp_path / "other") if lost == "other folder" else folder
    result = upload(folder, sandbox)
    assert result.code == 3 and NOT_HERE in result.err and "--republish walk" in result.out
    assert upload_here(folder, sandbox).code == 3 and len(sandbox.clusters) == 1
    assert upload(folder, sandbox, "--republish", "walk").code == 0 and len(sandbox.clusters) == 2


def test_a_manifest_that_another_run_has_sent_leaves_the_sequence_unconfirmed(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = NEVER
    sandbox.faults.append(Fault(MANIFEST, status=401))
    assert upload_here(folder, sandbox).code == 4
    old = resume_of(folder) | {"earlier_keys": [], "closed": True}
    assert upload_here(folder, sandbox).code == 0
    (folder / RESUME).write_text(json.dumps(old))
    result = upload(folder, sandbox)
    assert result.code == 1 and "it is not known whether" in result.err
    assert upload_here(folder, sandbox).code == 1 and len(sandbox.clusters) == 1


def test_what_was_begun_elsewhere_and_is_finished_here_counts_as_sent_here(sandbox: Sandbox, tmp_path: Path) -> None:
    elsewhere, folder = (factory.write_tour(tmp_path / name, walk(1)) for name in ("elsewhere", "tour"))
    sandbox.faults.append(Fault(PHOTO, drop_after=300, times=None))
    assert upload_here(elsewhere, sandbox, patience=0, retries=0).code == 1
    sandbox.faults[:] = [Fault(PHOTO, after=1, lost=True)]  # the answer to the rest, which has arrived
    assert upload_here(folder, sandbox).code == 0 and len(sandbox.clusters) == 1


Attempt = Callable[[Sandbox, Path], None]


def fails(fault: Fault, code: int, files: Files | None = None, **settings: Any) -> Attempt:
    """A run in which one kind of request goes wrong, perhaps over other photos."""

    def attempt(sandbox: Sandbox, folder: Path) -> None:
        become(folder, files or {path.name: path.read_bytes() for path in folder.glob("*.jpg")})
        sandbox.faults.append(replace(fault, seen=0))
        assert upload_here(folder, sandbox, **{"patience": 0, "retries": 0} | settings).code == code

    return attempt


def stopped(sandbox: Sandbox, folder: Path) -> None:
    """A run that somebody stops when two photos have arrived."""

    class Stopping(FastRun):
        def progress(self, progress: mu.Progress) -> None:
            if progress.step == "upload" and progress.done >= 2:
                self.stop.set()

    sandbox.faults.append(Fault(PHOTO, after=2, hang=60, times=None))
    assert upload_here(folder, sandbox, Stopping(), workers=1).code == 130


def killed(sandbox: Sandbox, folder: Path) -> None:
    """A run that is killed when its manifest has arrived."""
    sandbox.faults.append(Fault(MANIFEST, processed=True, hang=60))
    with started(folder, sandbox) as process:
        wait_until(lambda: any(upload.manifest for upload in sandbox.uploads.values()))
        kill(process, sandbox)


TURNED, HUGE = walk(3, changes={0: {"photo.original_heading": 1}}), {"sof_size": (14_142, 7_071)}  # 60 a sequence
NO_PUBLISH, NO_FAULT = Fault(FINISH, status=401, body=NO, times=None), Fault("never")
REFUSED_LATE = Fault(PHOTO, status=400, processed=True)
VERSIONS = THREE | {"blurred.jpg": PATCHED["P1.jpg"]} | ANOTHER
unpublished = fails(NO_PUBLISH, 4)
INNOCENT: dict[str, tuple[Attempt, ...]] = {
    "a publish refused for good": (fails(Fault(FINISH, status=400, body=NO), 1),),
    "stopped": (stopped,),
    "killed": (killed,),
    "killed, and a photo fails then": (killed, fails(Fault("mly.*jpg", status=400), 1)),
    "killed, and a photo fails beside a publish": (killed, fails(Fault("mly.*jpg", status=400), 1, THREE | ANOTHER)),
    "answers lost in an outage": (fails(Fault("mly.*jpg", lost=True, times=None), 1),),
    "a photo refused that has arrived": (fails(REFUSED_LATE, 1),),
    "the offset wrong all the same": (fails(REFUSED_LATE, 1), fails(Fault(PHOTO, status=412), 0, retries=1)),
    "a manifest refused that has arrived": (fails(Fault(MANIFEST, status=400, processed=True), 1),),
    "changed and changed back": (unpublished, fails(NO_PUBLISH, 4, TURNED)),
    "renamed and back": (unpublished, fails(NO_PUBLISH, 4, renamed(THREE, *X))),
    "gone and back": (unpublished, fails(NO_FAULT, 1, ANOTHER)),
    "held back in between": (unpublished, fails(NO_FAULT, 3, VERSIONS, skip_invalid=True)),
    "a cut that changes back": (unpublished, fails(NO_PUBLISH, 4, walk(60, **HUGE))),
}


@pytest.mark.parametrize("story", INNOCENT)
def test_who_sent_the_bytes_is_never_taken_for_somebody_else(sandbox: Sandbox, tmp_path: Path, story: str) -> None:
    photos, last = walk(61, **HUGE) if "cut" in story else THREE, FastRun()
    folder = factory.write_tour(tmp_path / "tour", photos)
    for attempt in INNOCENT[story]:
        attempt(sandbox, folder)
        sandbox.clear_faults()
    become(folder, photos)
    assert upload_here(folder, sandbox, last).code == 0, last.messages
    assert NOT_HERE not in str(last.messages) and sandbox.corrupt == []
    assert {*names(sandbox)} >= {*photos} and sandbox.published_twice == []


# ---- unconfirmed publishes, and what --republish sends ----


@pytest.mark.parametrize("fault", [Fault(PHOTO, status=401), Fault(MANIFEST, status=401), NO_PUBLISH])
def test_a_republish_that_breaks_off_leaves_all_unconfirmed(sandbox: Sandbox, unconfirmed: Path, fault: Fault) -> None:
    for name in THREE:
        os.utime(unconfirmed / name)
    (unconfirmed / "P1.jpg").write_bytes(TURNED["P1.jpg"])
    sandbox.faults[:] = [replace(fault, seen=0)]
    assert upload_here(unconfirmed, sandbox, republish=frozenset({"walk"})).code == 4
    sandbox.clear_faults()
    assert upload(unconfirmed, sandbox).code == 1 and sizes(sandbox) == [3]
    file = resume_of(unconfirmed)["sequences"]
    assert [*file] == ["walk"] and file["walk"]["state"] == "unconfirmed" and len(file["walk"]["photos"]) == 3
    assert upload(unconfirmed, sandbox, "--republish", "walk").code == 0 and sizes(sandbox) == [3, 3]


def test_what_is_unconfirmed_and_archived_is_looked_up(sandbox: Sandbox, unconfirmed: Path) -> None:
    become(unconfirmed, {})
    for arguments in ([], ["-r"]):
        result = upload(unconfirmed, sandbox, *arguments)
        assert result.code == 1 and "it is not known whether" in result.err
    sandbox.live_after = 0
    assert upload(unconfirmed.parent, sandbox, "-r").code == 0
    assert states(unconfirmed) == ["published"]


# ---- uploaded, but not published yet ----


@pytest.fixture
def uploaded(sandbox: Sandbox, tmp_path: Path) -> Path:
    """Three photos that have arrived, but the publish was refused."""
    folder = factory.write_tour(tmp_path / "uploaded", THREE)
    sandbox.faults.append(Fault(FINISH, status=401, body=NO))
    assert upload_here(folder, sandbox).code == 4 and sizes(sandbox) == []
    return folder


def later(folder: Path, sandbox: Sandbox, hours: float, code: int = 0) -> list[tuple[str, int]]:
    """What a run some hours later asks of photos' sessions, with the bytes that it sends."""
    before = len(sandbox.requests)
    assert upload_here(folder, sandbox, Later(hours)).code == code
    requests = [request for request in sandbox.requests[before:] if request.path.endswith(".jpg")]
    return sorted((request.method, request.body_size) for request in requests)


def test_what_was_uploaded_is_not_sent_again_for_48_hours(sandbox: Sandbox, uploaded: Path) -> None:
    assert later(uploaded, sandbox, 47.9) == [] and sizes(sandbox) == [3]


def test_after_48_hours_each_run_asks_for_it(sandbox: Sandbox, uploaded: Path) -> None:
    sandbox.faults.append(Fault(FINISH, status=401, body=NO))
    for code in (4, 0):
        assert later(uploaded, sandbox, 48.1, code) == [("GET", 0)] * 3 + [("POST", 0)] * 3


def test_after_48_hours_what_is_no_longer_there_is_sent_and_good_for_48_more(sandbox: Sandbox, uploaded: Path) -> None:
    sandbox.forget_uploads("jpg")
    sandbox.faults.append(Fault(FINISH, status=401, body=NO))
    assert sum(size for _, size in later(uploaded, sandbox, 48.1, 4)) == sum(map(len, THREE.values()))
    assert later(uploaded, sandbox, 96) == [] and sizes(sandbox) == [3]


@pytest.mark.parametrize("change", ["bytes", "mtime", "description"])
def test_what_changed_since_it_was_uploaded_is_sent_anew(sandbox: Sandbox, uploaded: Path, change: str) -> None:
    path, status = uploaded / "P1.jpg", (uploaded / "P1.jpg").stat()
    edited = P1.replace(b'"original_altitude": 40.0', b'"original_altitude": 41.0')
    path.write_bytes({"bytes": PATCHED["P1.jpg"], "description": edited, "mtime": P1}[change])
    if change == "description":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    expected = [("GET", 0), ("POST", 0)] if change == "mtime" else [("POST", len(P1))]
    assert later(uploaded, sandbox, 0) == expected
    altitudes = {photo.name: photo.description["MAPAltitude"] for photo in sandbox.published}
    assert altitudes["P1.jpg"] == (41 if change == "description" else 40)


@pytest.mark.parametrize(("kept", "count"), [(["P1.jpg", "P3.jpg"], "1 uploaded photo"), ([], "3 uploaded photos")])
def test_photos_that_are_gone_are_named(sandbox: Sandbox, uploaded: Path, kept: list[str], count: str) -> None:
    become(uploaded, {name: THREE[name] for name in kept})
    result = upload(uploaded, sandbox, *["-r"] * (not kept))
    assert result.code == (not kept) and f"{count} gone from the folder" in result.err and names(sandbox) == kept
    assert upload(uploaded, sandbox).code == 0 and upload(uploaded, sandbox, "-r").code == 0


# ---- files that can't be used ----


def refused(folder: Path, sandbox: Sandbox, *words: str) -> None:
    """All kinds of runs end with exit 2 and these words; nothing is sent, and the file stays as it is."""
    path, posts = folder / RESUME, len(sandbox.posts())
    before = path.read_bytes() if path.exists() else None
    who, service = account(sandbox), service_of(sandbox)
    for attempt in (partial(upload_here, folder, sandbox), partial(mu.check_live, folder, who, service)):
        with pytest.raises(mu.UsageError) as caught:
            attempt()
        assert caught.value.code == 2 and all(word in str(caught.value) for word in words)
    (tour,) = mu.check_folders(folder)
    assert tour.code == 2 and words[-1] in str(tour.errors[0]) and len(sandbox.posts()) == posts
    assert before == (path.read_bytes() if path.exists() else None)


WRONG: tuple[str, ...] = (
    '"image_id": 5',
    '"size": null',
    '"latitude": true',
    '"uploaded_at": "today"',
    '"captured_at": 5',
    '"shot": 1',
)
LONG = f'"size": "{"x" * 99}"'
WRONG += (LONG, '"state": "done"', '"shown_before": null', '"closed": 1', '"username": 5', '"earlier_keys": [1]')


@pytest.mark.parametrize(
    "text", ["", "null", "{", "[]", '"', '{"format": 1}', '{"format": 1, "sequences": 3}', "[" * 20_000, *WRONG]
)
def test_a_damaged_file_is_kept_and_not_taken_as_empty(sandbox: Sandbox, published: Path, text: str) -> None:
    if text in WRONG:
        value = rf"{text.partition(':')[0]}: ([^\[{{,}}]*|\[[^]]*\])"
        text, count = re.subn(value, lambda _: text, (published / RESUME).read_text(), count=1)
        assert count == 1
    (published / RESUME).write_text(text)
    why = f"(size is '{'x' * 51})" if "x" * 99 in text else "("
    refused(published, sandbox, RESUME, "is damaged", why, "Restore it from a backup")
    assert upload(published, sandbox, "--dry-run").code == 2


def test_a_file_of_a_newer_version_is_not_touched(sandbox: Sandbox, published: Path) -> None:
    (published / RESUME).write_text('{"format": 2, "all": "else"}')
    refused(published, sandbox, "newer version", "Update this program")


@pytest.mark.parametrize(
    "change", [{"user_id": "9", "username": "amy"}, {"organization_id": "2002"}, {"service": "mapillary"}]
)
def test_another_ones_file_is_refused(sandbox: Sandbox, published: Path, change: dict[str, str]) -> None:
    file = resume_of(published) | change
    (published / RESUME).write_text(json.dumps(file))
    for arguments in ([], ["--dry-run"], *[["--check"]] * ("organization_id" not in change)):
        result = upload(published, sandbox, *arguments)
        assert result.code == 2 and "the resume file in" in result.err and [*change.values()][-1] in result.err
    assert resume_of(published) == file and sizes(sandbox) == [3]


@needs_root
def test_a_file_that_cannot_be_read_is_not_called_damaged(sandbox: Sandbox, published: Path) -> None:
    os.chown(published / RESUME, 1, 1)
    (published / RESUME).chmod(0o600)
    for arguments in (["-u", "demo"], ["--dry-run"], ["-u", "demo", "--check"]):
        result = run("-d", published, *arguments, env=environment(sandbox), preexec_fn=without_override)
        assert result.code == 2 and "can't be read: permission denied" in result.err and "damaged" not in result.err
    assert sizes(sandbox) == [3]


def test_where_the_file_is_a_link_its_target_is_written_and_the_link_stays(sandbox: Sandbox, published: Path) -> None:
    target = published.parent / "elsewhere" / "state.json"
    target.parent.mkdir()
    (published / RESUME).rename(target)
    (published / RESUME).symlink_to("../elsewhere/state.json")
    (target.parent / TEMPORARY).touch()  # left by a run that was killed
    become(published, walk(4))
    assert upload(published, sandbox).code == 0 and (published / RESUME).is_symlink() and sizes(sandbox) == [3, 1]
    assert len(json.loads(target.read_bytes())["sequences"]) == 2
    target.unlink()
    refused(published, sandbox, "is a link, and its target is away")
    assert not target.exists()


@pytest.mark.parametrize("name", ["mapillary_uploader (1).json", "mapillary_uploader.json.bak.json"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_second_file_beside_it_is_named(sandbox: Sandbox, published: Path, name: str, alone: bool) -> None:
    (published / name).write_bytes((published / RESUME).read_bytes())
    if alone:
        (published / RESUME).unlink()
    refused(
        published, sandbox, f"{published} holds {' and '.join(sorted({name, *[RESUME] * (not alone)}))}. Two folders"
    )


# ---- lock and temporary file ----


@needs_root
@pytest.mark.parametrize("like_tmp", [False, True])
def test_another_users_lock_and_temporary_file(sandbox: Sandbox, tmp_path: Path, like_tmp: bool) -> None:
    folder = factory.write_tour(tmp_path / "tour", THREE)
    for name in (LOCK, TEMPORARY):
        (folder / name).touch(0o644)
        os.chown(folder / name, 1, 1)
    if like_tmp:  # there nobody may remove another's files
        os.chown(folder, 2, 2)
        folder.chmod(0o1777)
    result = run("-d", folder, "-u", "demo", env=environment(sandbox), preexec_fn=without_override)
    assert result.code == 2 * like_tmp and (f"{TEMPORARY} is in the way" in result.err) == like_tmp
    assert sizes(sandbox) == [3] * (not like_tmp)


@pytest.mark.parametrize("name", ["", pytest.param(LOCK, marks=needs_root)])
def test_a_folder_or_lock_that_cannot_be_opened_is_named(sandbox: Sandbox, folder: Path, name: str) -> None:
    (folder / LOCK).touch(0o600) if name else folder.chmod(0o555)
    os.chown(folder / name, 1, 1) if name else None
    result = run("-d", folder, "-u", "demo", env=environment(sandbox), preexec_fn=without_override)
    assert result.code == 2 and f"{LOCK} can't be written: permission denied" in result.err and sandbox.posts() == []


def test_what_a_killed_run_left_is_no_obstacle(sandbox: Sandbox, folder: Path) -> None:
    for name in (LOCK, TEMPORARY):
        (folder / name).write_text("left over")
    assert upload(folder, sandbox).code == 0 and not (folder / TEMPORARY).exists()


# ---- when it is saved ----


class Still(FastRun):
    """A call whose clock stands still, so that nothing is saved just because time has passed."""

    class Clock(FastClock):
        def seconds(self) -> float:
            return self.ahead

        def wait(self, seconds: float, stop: Callable[[], bool]) -> None:
            self.ahead += max(0.0, seconds)
            time.sleep(0.001)

    def __init__(self) -> None:
        super().__init__()
        self.clock = self.hands = Still.Clock()


@contextlib.contextmanager
def at_work(folder: Path, sandbox: Sandbox) -> Iterator[Still]:
    """A run that sends one photo at once, until the test is through."""
    call = Still()
    thread = threading.Thread(target=upload_here, args=(folder, sandbox, call), kwargs={"workers": 1}, daemon=True)
    thread.start()
    try:
        yield call
    finally:
        call.stop.set()
        thread.join(60)


def test_it_is_saved_before_the_first_byte_and_closed_at_the_end(sandbox: Sandbox, folder: Path) -> None:
    seen: list[dict[str, Any]] = []
    sandbox.faults.append(when_asked(PHOTO, lambda: seen.append(resume_of(folder))))
    assert upload_here(folder, sandbox, Still()).code == 0
    assert (seen[0]["closed"], seen[0]["user_id"], resume_of(folder)["closed"]) == (False, "1001", True)


@pytest.mark.parametrize(
    ("fault", "state"),
    [({}, "published"), ({"status": 502}, "unconfirmed"), ({"status": 400, "body": NO}, "uploading")],
)
def test_what_became_of_a_publish_is_saved_at_once(
    sandbox: Sandbox, tmp_path: Path, fault: dict[str, Any], state: str
) -> None:
    """While the photo of another sequence hangs."""
    folder = factory.write_tour(tmp_path / "tour", THREE | ANOTHER)
    sandbox.faults += [Fault(FINISH, **fault), Fault(PHOTO, after=3, hang=600, times=None)]
    with at_work(folder, sandbox):
        wait_until(lambda: any(request.path == "/finish_upload" and request.status for request in sandbox.requests))
        wait_until(lambda: states(folder)[0] == state)


def test_it_is_saved_now_and_then_in_a_long_run(sandbox: Sandbox, folder: Path) -> None:
    def handles() -> int:
        entries = [entry for sequence in sequences_of(folder).values() for entry in sequence["photos"].values()]
        return sum(bool(entry["file_handle"]) for entry in entries)

    sandbox.faults.append(Fault(PHOTO, after=5, hang=600, times=None))
    with at_work(folder, sandbox) as call:
        wait_until(lambda: len(sandbox.posts("jpg")) == 6)
        assert handles() == 0
        call.hands.ahead += 3.01
        wait_until(lambda: handles() == 5)
        assert resume_of(folder)["closed"] is False
    assert handles() == 5 and resume_of(folder)["closed"] is True


def test_names_survive_it_is_for_people_to_read_and_knows_no_token(sandbox: Sandbox, tmp_path: Path) -> None:
    odd = ["Zürich_写真.jpg", os.fsdecode(b"bad\xff.jpg"), "new\nline.jpg"]
    folder = factory.write_tour(tmp_path / "tour", walk(3, names=odd))
    assert upload(folder, sandbox, env={"LC_ALL": "C"}).code == 0
    text = (folder / RESUME).read_text(encoding="utf-8")
    assert "Zürich_写真.jpg" in text and {*resume_of(folder)["sequences"]["walk"]["photos"]} == {*odd}
    assert [line.count('"photo_id"') for line in text.splitlines() if ".jpg" in line] == [1] * 3
    assert sandbox.accounts[0].token not in text
    assert upload(folder, sandbox).code == 0 and sizes(sandbox) == [3]
