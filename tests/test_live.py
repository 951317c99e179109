"""--check: which published photos are on Mapillary, and their ids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import FastClock, resume_of, upload, upload_here


def entry(captured_at: int, make: str = "GoPro", latitude: float = 51.0) -> mu.Entry:
    """A published photo."""
    time = mu.iso(captured_at)
    return mu.Entry("", 1, 1, "", "", "h", time, time, time, latitude, 0.0, make, "Max")


def image(name: str, captured_at: int, make: str = "", latitude: float = 51.0) -> mu.Image:
    """A photo on Mapillary."""
    return mu.Image(name, captured_at, latitude, 0.0, "", make, "")


def test_from_sent_to_live(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = 3600
    assert upload(folder, sandbox).code == 0
    pending = upload(folder, sandbox, "--check")
    assert pending.code == 1 and "sent (none live yet" in pending.out
    sandbox.live_after, sandbox.hidden = 0, {photo.session_key for photo in sandbox.clusters[0].photos[:3]}
    partly = upload(folder, sandbox, "--check")
    assert partly.code == 1 and "partly live (5 of 8)" in partly.out
    sandbox.hidden = set()
    live = upload(folder, sandbox, "--check", "--json")
    ids = [photo.image_id for photo in sandbox.clusters[0].photos]
    assert live.code == 0 and sorted(photo["image_id"] for photo in live.document["photos"]) == sorted(ids)
    sequence = next(iter(resume_of(folder)["sequences"].values()))
    assert sequence["mapillary_sequence"] == sandbox.clusters[0].photos[0].sequence_id and sequence["live_at"]


def test_a_link_leads_to_the_first_photo_and_the_photos_may_be_archived(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    for photo in folder.glob("*.jpg"):
        photo.unlink()
    result = upload(folder, sandbox, "--check")
    link = re.search(r"https://www.mapillary.com/app/\?pKey=(\w+)", result.out)
    assert result.code == 0 and link and link[1] == sandbox.clusters[0].photos[0].image_id


def test_a_second_check_asks_only_for_what_is_missing(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    assert upload(folder, sandbox, "--check").code == 0
    before = len(sandbox.requests)
    assert upload(folder, sandbox, "--check").code == 0
    assert [request.path for request in sandbox.requests[before:]] == ["/me"]


def test_overdue_after_seven_days(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = 10**9
    clock = FastClock()
    assert upload_here(folder, sandbox, clock) == 0
    clock.ahead += 8 * 86_400
    assert upload_here(folder, sandbox, clock, check=True) == 6


def test_two_thousand_photos_in_pages(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path / "many", factory.tour(2_100))
    sandbox.page_size = 150
    assert upload(folder, sandbox).code == 0
    result = upload(folder, sandbox, "--check", "--json")
    sent = {p.description["MAPFilename"]: p.image_id for cluster in sandbox.clusters for p in cluster.photos}
    assert result.code == 0 and {p["file"]: p["image_id"] for p in result.document["photos"]} == sent


def test_a_next_page_on_another_host_is_not_followed(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    sandbox.faults.append(
        Fault(match="GET /images", status=200, body={"data": [], "paging": {"next": "http://evil/x"}})
    )
    result = upload(folder, sandbox, "--check")
    assert result.code == 1 and "another host" in result.err


def test_a_photo_that_is_there_twice_is_reported_with_both_ids(sandbox: Sandbox, folder: Path) -> None:
    sandbox.forgetful = True  # a second call with the same manifest makes a second cluster
    assert upload(folder, sandbox).code == 0
    (folder / mu.RESUME_NAME).rename(folder / "old.txt")
    assert upload(folder, sandbox).code == 0
    result = upload(folder, sandbox, "--check", "--json")
    first = result.document["photos"][0]
    assert result.code == 0 and first["image_id"] is None and "more than once" in first["warnings"][0]


def test_organization_and_missing_fields_do_not_matter(sandbox: Sandbox, folder: Path) -> None:
    sandbox.drop_fields = {"make", "model", "sequence", "compass_angle"}
    assert upload(folder, sandbox, "-o", "2002").code == 0
    assert upload(folder, sandbox, "-o", "2002", "--check").code == 0


def test_images_without_time_or_place_are_no_match() -> None:
    assert mu.image_of({"id": "1", "captured_at": 5}) is None
    assert mu.image_of({"id": "1", "geometry": {"coordinates": [1, 2]}}) is None
    assert mu.image_of("nonsense") is None


def test_whole_second_capture_times_match_their_second() -> None:
    photos = {"a": entry(10_900), "b": entry(11_100)}
    assert mu.match_images(photos, [image("B", 11_000), image("A", 10_000)]) == {"a": ["A"], "b": ["B"]}


def test_a_burst_in_one_place_is_matched_one_to_one() -> None:
    photos = {name: entry(10_000 + 200 * number) for number, name in enumerate("abcde")}
    images = [image(name.upper(), 10_000 + 200 * number) for number, name in enumerate("abcde")]
    assert mu.match_images(photos, images[::-1]) == {name: [name.upper()] for name in "abcde"}
    truncated = [image(name.upper(), 10_000) for name in "abcde"]
    assert sorted(ids[0] for ids in mu.match_images(photos, truncated).values()) == list("ABCDE")


def test_another_camera_at_the_same_place_and_time_is_no_match() -> None:
    assert mu.match_images({"a": entry(10_000)}, [image("X", 10_000, make="Insta360")]) == {}
    assert mu.match_images({"a": entry(10_000)}, [image("X", 10_000, latitude=51.0001)]) == {}
    assert mu.match_images({"a": entry(10_000)}, [image("X", 11_001)]) == {}


def test_a_neighbours_image_proves_no_publish(sandbox: Sandbox, tmp_path: Path) -> None:
    """The last photo of a published part stands within a second and two metres of the first of an unconfirmed one."""
    folder = factory.write_tour(tmp_path / "t", factory.tour(1, sequence_id="one", names="A{}.jpg"))
    assert upload_here(folder, sandbox) == 0
    later = factory.tour(1, sequence_id="two", names="B{}.jpg", start="2021:07:29 09:16:54.8Z")
    factory.write_tour(folder, later)
    sandbox.faults.append(Fault(match="POST /finish_upload", status=500))
    assert upload_here(folder, sandbox) == 1
    assert upload_here(folder, sandbox) == 1
    assert resume_of(folder)["sequences"]["two"]["state"] == "unconfirmed"


@pytest.mark.parametrize("arguments", [["--check"], ["--check", "-r"]])
def test_nothing_to_check_is_said(sandbox: Sandbox, folder: Path, arguments: list[str]) -> None:
    assert upload(folder, sandbox, *arguments).code == 2
