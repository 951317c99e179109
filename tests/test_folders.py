"""A folder over the days: renamed, re-stitched, tagged anew, copied, touched, moved, added to. Nothing goes twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

import factory
import mapillary_uploader as mu
from sandbox import Sandbox
from support import SHARED_PHOTOS, Result, resume_of, run, upload, upload_here

TOUR = factory.tour(8)
NAMES = sorted(TOUR)


@pytest.fixture
def published(sandbox: Sandbox, folder: Path) -> Path:
    """The tour, published."""
    assert upload(folder, sandbox).code == 0
    return folder


def again(folder: Path, sandbox: Sandbox, *arguments: str, code: int = 0) -> Result:
    """Run again; nothing may be sent."""
    before = len(sandbox.requests)
    result = upload(folder, sandbox, *arguments)
    assert result.code == code, result.err
    assert {request.method for request in sandbox.requests[before:]} <= {"GET"}
    return result


def test_a_second_run_sends_nothing_and_opens_no_photo(sandbox: Sandbox, published: Path) -> None:
    for name in NAMES:
        status = (published / name).stat()
        (published / name).write_bytes(b"\0" * status.st_size)
        os.utime(published / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "8 published" in again(published, sandbox).out


def test_a_run_with_nothing_to_do_opens_no_photo(
    sandbox: Sandbox, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(mu, "open_photo", opened.append)
    before = len(sandbox.requests)
    assert upload_here(published, sandbox) == 0 and opened == []
    assert [request.path for request in sandbox.requests[before:]] == ["/me"]


def test_a_renamed_photo_is_not_sent_again(sandbox: Sandbox, published: Path) -> None:
    (published / NAMES[0]).rename(published / "renamed.jpg")
    assert f"renamed.jpg: it was published as {NAMES[0]}" in again(published, sandbox).err


def test_a_restitched_photo_is_not_sent_again_and_a_warning_says_how_it_could_be(
    sandbox: Sandbox, published: Path
) -> None:
    (published / NAMES[1]).write_bytes(factory.tour(8, filler=100)[NAMES[1]])
    result = again(published, sandbox)
    assert f"{NAMES[1]}: its content changed" in result.err and "moving mapillary_uploader.json away" in result.err


def test_touching_changes_nothing_and_is_noted(sandbox: Sandbox, published: Path) -> None:
    os.utime(published / NAMES[2])
    assert "warning" not in again(published, sandbox).err
    entry = next(iter(resume_of(published)["sequences"].values()))["photos"][NAMES[2]]
    assert entry["mtime_ns"] == (published / NAMES[2]).stat().st_mtime_ns


def test_photos_run_through_sequence_maker_again_are_known_by_time_place_and_camera(
    sandbox: Sandbox, published: Path
) -> None:
    factory.write_tour(published, factory.tour(8, sequence_id="anew", names="GS{:04d}_calculated_calculated.jpg"))
    assert "is not sent again" in again(published, sandbox).err


def test_a_copy_is_rejected_and_may_be_deleted(sandbox: Sandbox, published: Path) -> None:
    shutil.copy(published / NAMES[5], published / "copy.jpg")
    result = again(published, sandbox, code=3)
    assert "copy.jpg: a copy of another photo" in result.err and "may be deleted" in result.err


def test_a_moved_folder_and_its_parent_send_nothing(sandbox: Sandbox, published: Path, tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    published.rename(tmp_path / "parent" / "moved")
    again(tmp_path / "parent", sandbox, "--recursive")


def test_photos_added_later_make_a_further_part(sandbox: Sandbox, published: Path) -> None:
    factory.write_tour(published, factory.tour(10))
    assert upload(published, sandbox).code == 0
    assert [len(cluster.photos) for cluster in sandbox.clusters] == [8, 2]
    assert sorted(uuid.rpartition("_")[2] for uuid in resume_of(published)["sequences"])[0] == "2"
    again(published, sandbox)


def test_a_late_photo_of_a_burst_is_a_photo_of_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    burst = factory.tour(3, spacing=0, step_s=0)
    folder = factory.write_tour(tmp_path / "burst", dict(list(burst.items())[:1]))
    assert upload(folder, sandbox).code == 0
    factory.write_tour(folder, burst)
    assert upload(folder, sandbox).code == 0
    assert [len(cluster.photos) for cluster in sandbox.clusters] == [1, 2]


def test_a_photo_removed_before_publishing_is_left_out(sandbox: Sandbox, folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"")
    assert upload(folder, sandbox).code == 3 and sandbox.requests[-1].path == "/me"
    (folder / "bad.jpg").unlink()
    assert upload(folder, sandbox).code == 0


@pytest.mark.parametrize(
    "text", ["", "null", "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "sequences": 3}']
)
def test_a_resume_file_that_cannot_be_used_is_neither_overwritten_nor_taken_as_empty(
    sandbox: Sandbox, folder: Path, text: str
) -> None:
    (folder / mu.RESUME_NAME).write_text(text)
    result = upload(folder, sandbox)
    assert result.code == 2 and "can't be used" in result.err and sandbox.requests == []
    assert (folder / mu.RESUME_NAME).read_text() == text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"image_id": null', '"image_id": null, "image_ids": [1, 2]'),
        ('"image_id": null', '"image_id": 5'),
        ('"state": "published"', '"state": "done"'),
        ('"uploaded_at": "', '"uploaded_at": "on '),
        ('"size": ', '"size": null, "bytes": '),
    ],
)
def test_a_resume_file_with_a_wrong_value_is_named_and_kept(
    sandbox: Sandbox, published: Path, old: str, new: str
) -> None:
    text = (published / mu.RESUME_NAME).read_text().replace(old, new)
    (published / mu.RESUME_NAME).write_text(text)
    for arguments in ([], ["--check"]):
        result = upload(published, sandbox, *arguments)
        assert result.code == 2 and "can't be used" in result.err
    assert (published / mu.RESUME_NAME).read_text() == text and len(sandbox.clusters) == 1


@pytest.mark.parametrize(("field", "value"), [("user_id", "9"), ("organization_id", "2002"), ("service", "mapillary")])
def test_another_accounts_resume_file_is_refused(sandbox: Sandbox, published: Path, field: str, value: str) -> None:
    resume = published / mu.RESUME_NAME
    old = f'"{field}": null' if field == "organization_id" else f'"{field}": "{resume_of(published)[field]}"'
    resume.write_text(resume.read_text().replace(old, f'"{field}": "{value}"', 1))
    assert "belongs to another" in again(published, sandbox, code=2).err


def test_expired_handles_are_asked_for_and_only_what_is_missing_is_sent(sandbox: Sandbox, folder: Path) -> None:
    photos = list(factory.tour(8))
    bad = folder / photos[7]
    good = bad.read_bytes()
    bad.write_bytes(good[:-300])
    assert upload(folder, sandbox, "--dry-run").code == 3
    bad.write_bytes(good)
    from sandbox import Fault

    sandbox.faults.append(Fault(match="POST /finish", status=401))
    assert upload(folder, sandbox).code == 4
    resume = folder / mu.RESUME_NAME
    resume.write_text(resume.read_text().replace('"uploaded_at": "20', '"uploaded_at": "19'))
    before = len(sandbox.requests)
    assert upload(folder, sandbox).code == 0
    posts = [r for r in sandbox.requests[before:] if r.method == "POST" and r.path.endswith(".jpg")]
    assert len(posts) == 8 and {post.body_size for post in posts} == {0}


def test_originals_stay_byte_for_byte_and_output_is_what_was_received(
    sandbox: Sandbox, folder: Path, tmp_path: Path
) -> None:
    assert upload(folder, sandbox, "--output", str(tmp_path / "out")).code == 0
    assert {name: (folder / name).read_bytes() for name in NAMES} == TOUR
    digests = {hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert digests == {photo.md5 for photo in sandbox.clusters[0].photos}


@pytest.mark.skipif(not SHARED_PHOTOS.exists(), reason="the real tours are not here")
@pytest.mark.parametrize("tour", sorted(p.name for p in (SHARED_PHOTOS / "tours").glob("*")))
def test_real_tours(sandbox: Sandbox, tmp_path: Path, tour: str) -> None:
    folder = shutil.copytree(SHARED_PHOTOS / "tours" / tour, tmp_path / "tour", copy_function=shutil.copyfile)
    folder.chmod(0o755)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    expected = 3 if tour in ("flat_sony_real3_NOT_360", "mixed_good_and_untagged") else 0
    assert upload(folder, sandbox, "--skip-invalid").code == expected
    assert {name: (folder / name).read_bytes() for name in before} == before
    photos = [photo for cluster in sandbox.clusters for photo in cluster.photos]
    count = {"flat_sony_real3_NOT_360": 0, "mixed_good_and_untagged": 4}.get(tour, len(before))
    assert len(photos) == count and sandbox.corrupt == []
    again(folder, sandbox, "--skip-invalid", code=expected)


def test_a_dry_run_writes_and_sends_nothing(folder: Path) -> None:
    assert run("-d", folder, "--dry-run").code == 0
    assert sorted(path.name for path in folder.iterdir()) == NAMES
