"""README, "Try it": a folder of photos, one command, and what Mapillary has then: each photo, as it is, described."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import factory
from sandbox import Sandbox
from support import ROOT, SHARED_PHOTOS, environment, resume_of, run, upload

TOURS = SHARED_PHOTOS / "tours"
real = pytest.mark.skipif(not TOURS.exists(), reason="the real tours are not here")


def copy_of(tour: Path, to: Path) -> Path:
    """A writable copy of a tour, of its photos only."""
    return Path(
        shutil.copytree(tour, to, ignore=shutil.ignore_patterns("mapillary_uploader*"), copy_function=shutil.copyfile)
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The photos of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")}


def received(sandbox: Sandbox) -> dict[str, bytes]:
    """The published photos, byte for byte, by MAPFilename."""
    assert sandbox.corrupt == [] and len({photo.session_key for photo in sandbox.published}) == len(sandbox.published)
    return {photo.name: bytes(photo.data) for photo in sandbox.published}


def assert_described(original: bytes, sent: bytes, name: str) -> None:
    """Nothing but ImageDescription's type, count and value differs, and it says what Sequence Maker's JSON says."""
    slot = factory.slot_of(original)
    allowed = {*range(slot.entry_offset + 2, slot.entry_offset + 8)}
    allowed |= {*range(slot.value_offset, slot.value_offset + slot.value_size)}
    assert len(sent) == len(original)
    assert {at for at, (old, new) in enumerate(zip(original, sent)) if old != new} <= allowed, name
    record, said = factory.description_of(original), factory.description_of(sent)
    assert (said["MAPSequenceUUID"], said["MAPFilename"]) == (record["sequence"]["id"], name)
    assert said["MAPLatitude"] == round(record["photo"]["original_latitude"], 7)
    assert said["MAPLongitude"] == round(record["photo"]["original_longitude"], 7)


def assert_uploaded_as_it_should_be(folder: Path, sandbox: Sandbox, copies: frozenset[str] = frozenset()) -> None:
    """A run publishes the whole folder but copies, and changes none of it; a second one sends nothing."""
    before = bytes_of(folder)
    result = upload(folder, sandbox)
    assert result.code == 0, result.err
    sent = received(sandbox)
    assert bytes_of(folder) == before and sent.keys() == before.keys() - copies
    for name in sent:
        assert_described(before[name], sent[name], name)
    for cluster in sandbox.clusters:
        times = [photo.description["MAPCaptureTime"] for photo in cluster.photos]
        assert times == sorted(set(times)) and all(p.session_key == f"mly_tools_{p.md5}.jpg" for p in cluster.photos)
    asked = len(sandbox.requests)
    assert upload(folder, sandbox).code == 0
    assert {request.route for request in sandbox.requests[asked:]} == {"GET /me"}


def test_the_sample_tour(sandbox: Sandbox, tmp_path: Path) -> None:
    assert_uploaded_as_it_should_be(copy_of(ROOT / "tests" / "photos", tmp_path / "tour"), sandbox)
    assert [len(cluster.photos) for cluster in sandbox.clusters] == [8]


@real
@pytest.mark.parametrize(
    ("tour", "sequences"),
    [
        ("fusion_filename10", 1),
        ("gopromax_real5_fullsize", 1),
        ("gopromax_walk12_timegps", 1),
        ("heading_mixed10", 1),
        ("mixed_two_sequences", 2),
        ("south_west_negalt8", 1),
        ("stationary4", 1),
        ("theta_timecapture9", 1),
        ("Ünïcode tour – été 2021", 1),
    ],
)
def test_a_real_tour(sandbox: Sandbox, tmp_path: Path, tour: str, sequences: int) -> None:
    copies = {"stationary4": frozenset({"S2_calculated.jpg"})}  # made: S1's time, place and picture
    assert_uploaded_as_it_should_be(copy_of(TOURS / tour, tmp_path / "tour"), sandbox, copies.get(tour, frozenset()))
    assert len(sandbox.clusters) == sequences


@real
def test_photos_that_fail_stop_all_and_with_skip_invalid_only_themselves(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = copy_of(TOURS / "mixed_good_and_untagged", tmp_path / "mixed")
    result = upload(folder, sandbox, "--json", "--min-age", "0")
    photos = {photo["file"]: photo for photo in result.document["photos"]}
    rejected = {file for file, photo in photos.items() if photo["state"] == "rejected"}
    assert result.code == 3 and 0 < len(rejected) < len(photos) and sandbox.posts() == []
    assert all(bool(photo["problems"]) == (file in rejected) for file, photo in photos.items())
    result = upload(folder, sandbox, "--skip-invalid", "--min-age", "0")
    assert result.code == 3 and received(sandbox).keys() == photos.keys() - rejected
    assert all(file in result.out for file in rejected)


@real
def test_photos_that_are_no_panoramas_publish_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = copy_of(TOURS / "flat_sony_real3_NOT_360", tmp_path / "flat")
    for arguments in ([], ["--skip-invalid"]):
        assert upload(folder, sandbox, *arguments).code == 3
    assert sandbox.clusters == [] and sandbox.posts() == []


def test_a_dry_run_needs_no_account_and_writes_only_what_output_asks_for(
    sandbox: Sandbox, folder: Path, tmp_path: Path
) -> None:
    before = bytes_of(folder)
    env = {name: value for name, value in environment(sandbox).items() if name != "MAPILLARY_ACCESS_TOKEN"}
    assert run("-d", folder, "--dry-run", "--output", tmp_path / "out", env=env).code == 0
    assert sandbox.requests == [] and {path.name for path in folder.iterdir()} == before.keys()
    dry = bytes_of(tmp_path / "out")
    assert upload(folder, sandbox).code == 0 and received(sandbox) == dry


def test_two_sequences_in_one_folder_are_two_publications_in_their_own_order(sandbox: Sandbox, tmp_path: Path) -> None:
    names = ["IMG_10.jpg", "IMG_9.jpg", "IMG_1.jpg"]
    folder = factory.write_tour(tmp_path / "two", factory.tour(3, names=names, sequence_id="one"))
    factory.write_tour(folder, factory.tour(2, names="X{}.jpg", sequence_id="two", start="2021:07:28 09:00:00Z"))
    assert upload(folder, sandbox).code == 0
    published = {c.photos[0].description["MAPSequenceUUID"]: [p.name for p in c.photos] for c in sandbox.clusters}
    assert published == {"one": names, "two": ["X1.jpg", "X2.jpg"]}
    states = {uuid: record["state"] for uuid, record in resume_of(folder)["sequences"].items()}
    assert states == {"one": "published", "two": "published"}


def test_a_sequence_longer_than_mapillary_takes_is_published_in_parts(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path / "long", factory.tour(1_003, sequence_id="long"))
    assert upload(folder, sandbox).code == 0
    parts = {cluster.photos[0].description["MAPSequenceUUID"]: len(cluster.photos) for cluster in sandbox.clusters}
    assert parts == {"long_1": 1_000, "long_2": 3} and len(received(sandbox)) == 1_003
