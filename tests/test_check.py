"""--check in the hard cases: which of many alike photos an image is, what a failed call leaves, what proves a publish."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import Result, resume_of, upload, upload_here

METRE = 1 / 111_195  # degrees of latitude
CREATOR = {"id": "1001", "username": "demo"}


def entry(time: int, metres: float = 0.0, image_id: str | None = None) -> mu.Entry:
    """A published photo, so many metres north of the start."""
    taken = mu.iso(time)
    place = {"latitude": 51 + metres * METRE, "longitude": 0.0, "make": "GoPro", "model": "Max"}
    times = {"uploaded_at": taken, "taken_at": taken, "captured_at": taken}
    return mu.Entry("", 1, 1, "", "", "h", **times, **place, image_id=image_id)  # type: ignore[arg-type]


def image(name: str, time: int, metres: float = 0.0, make: str = "GoPro") -> mu.Image:
    """A photo on Mapillary."""
    return mu.Image(name, time, 51 + metres * METRE, 0.0, "", make, "Max")


def resume(folder: Path, **sequences: dict[str, mu.Entry]) -> mu.Resume:
    """A resume file of published sequences."""
    made = mu.Resume(folder, "test", mu.Account("", "1001", "demo"))
    made.sequences = {uuid: mu.SequenceRecord("published", photos=photos) for uuid, photos in sequences.items()}
    return made


def ids_of(made: mu.Resume) -> dict[str, list[str]]:
    """file -> ids, of all sequences."""
    return {file: e.ids for record in made.sequences.values() for file, e in record.photos.items() if e.ids}


# ---- which photo an image is ----


@given(
    st.lists(st.integers(1, 5_000), min_size=1, max_size=40, unique=True),
    st.sampled_from([0.0, 0.3, 1.4]),
    st.data(),
)
def test_each_live_photo_gets_its_own_ids_and_no_other(times: list[int], spacing: float, data: st.DataObject) -> None:
    """However dense the photos, however few are live, however often each is there, in whatever order."""
    times = [7, *sorted(10_000 + time for time in times)]  # 7 ms: times that aren't cut to whole seconds
    copies = [1, *data.draw(st.lists(st.integers(0, 3), min_size=len(times) - 1, max_size=len(times) - 1))]
    photos = {f"IMG_{n}": entry(time, n * spacing) for n, time in enumerate(times)}
    expected = {f"IMG_{n}": [f"{n}/{copy}" for copy in range(count)] for n, count in enumerate(copies) if count}
    images = [image(f"{n}/{c}", times[n], n * spacing) for n, count in enumerate(copies) for c in range(count)]
    assert mu.match_images(photos, data.draw(st.permutations(images))) == expected


def test_times_cut_to_whole_seconds_are_told_apart_by_place() -> None:
    photos = {name: entry(10_000 + 200 * n, n * 0.4) for n, name in enumerate("abcde")}
    images = [image(name.upper(), 10_000, n * 0.4) for n, name in enumerate("abcde")]
    assert mu.match_images(photos, images[::-1]) == {name: [name.upper()] for name in "abcde"}


def test_the_one_live_photo_of_a_burst_is_the_one_of_that_very_time() -> None:
    photos = {"IMG_2": entry(10_000), "IMG_3": entry(10_200), "IMG_10": entry(10_400)}
    assert mu.match_images(photos, [image("A", 10_000)]) == {"IMG_2": ["A"]}


def test_one_more_copy_does_not_shift_a_long_sequence_in_one_place() -> None:
    photos = {f"{n}": entry(1000 * n) for n in range(1_500)}
    found = mu.match_images(photos, [image(f"{n}", 1000 * n) for n in range(1_500)] + [image("copy", 0)])
    assert found.pop("0") == ["0", "copy"] and found == {f"{n}": [f"{n}"] for n in range(1, 1_500)}


def test_a_camera_is_the_same_however_its_name_is_spelt() -> None:
    assert mu.match_images({"a": entry(10_000)}, [image("A", 10_000, make="GOPRO ")]) == {"a": ["A"]}


def test_the_next_parts_first_photo_is_no_copy_of_this_parts_last(tmp_path: Path) -> None:
    made = resume(tmp_path, s_1={"a": entry(10_001)}, s_2={"b": entry(10_501)})
    images = [image("A", 10_001), image("B", 10_501)]
    assert mu.note_live(made, "s_1", images, 0) == mu.note_live(made, "s_2", images, 0) == []
    assert ids_of(made) == {"a": ["A"], "b": ["B"]}


def test_a_copy_that_turns_up_later_is_not_taken_for_the_neighbour(tmp_path: Path) -> None:
    made = resume(tmp_path, s={"a": entry(10_000, image_id="A"), "b": entry(11_000, 1.4)})
    mu.note_live(made, "s", [image("A", 10_000), image("copy", 10_000)], 0)
    assert ids_of(made) == {"a": ["A"]}


# ---- what proves a publish ----


@pytest.mark.parametrize(("published", "unknown"), [("aaa", "zzz"), ("zzz", "aaa")])
@pytest.mark.parametrize("times", [(54_000, 54_800), (54_500, 54_500), (54_500, 54_000)])
def test_a_neighbours_image_proves_no_publish_whatever_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: str, unknown: str, times: tuple[int, int]
) -> None:
    made = resume(tmp_path, **{published: {"A": entry(times[0])}, unknown: {"B": entry(times[1])}})
    made.put(unknown, state="unconfirmed")
    client = mu.Client(mu.Service(), "", mu.Line(0, mu.Clock(), print))
    for time in (times[0], times[0] // 1000 * 1000):  # as it is, and cut to its second
        monkeypatch.setattr(mu, "find_images", lambda *_, time=time: [image("A", time)])
        assert mu.settle_unconfirmed(client, made) == []
    monkeypatch.setattr(mu, "find_images", lambda *_: [image("B", 54_001)])
    made.sequences[unknown].photos["B"] = entry(54_001)
    assert mu.settle_unconfirmed(client, made) == [unknown]


def test_check_settles_an_unconfirmed_publish(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = 3600
    sandbox.faults.append(Fault(match="POST /finish_upload", lost=True))
    assert upload_here(folder, sandbox) == 1
    assert "unconfirmed" in upload(folder, sandbox, "--check").out
    sandbox.live_after = 0
    assert upload(folder, sandbox, "--check").code == 0
    assert sequences(folder)[0]["state"] == "published" and len(sandbox.finish_calls) == 1


# ---- questions and answers ----


def sequences(folder: Path) -> list[dict[str, Any]]:
    """The sequences of the resume file, in capture order."""
    records: Iterable[dict[str, Any]] = resume_of(folder)["sequences"].values()
    return sorted(records, key=lambda record: min(photo["captured_at"] for photo in record["photos"].values()))


def check(folder: Path, sandbox: Sandbox, *arguments: str) -> tuple[Result, list[dict[str, str]]]:
    """A run of --check and the queries of its searches."""
    before = len(sandbox.requests)
    result = upload(folder, sandbox, "--check", *arguments)
    return result, [request.query for request in sandbox.requests[before:] if request.path == "/images"]


@pytest.fixture
def two(sandbox: Sandbox, tmp_path: Path) -> Path:
    """A folder of two published sequences, an hour apart."""
    folder = factory.write_tour(tmp_path / "two", factory.tour(5, names="A{}.jpg"))
    factory.write_tour(folder, factory.tour(4, names="B{}.jpg", start="2021:07:29 10:16:54Z"))
    assert upload(folder, sandbox).code == 0
    return folder


def test_one_search_a_sequence_by_username_and_window_then_only_what_is_missing(sandbox: Sandbox, two: Path) -> None:
    sandbox.hidden = {photo.session_key for cluster in sandbox.clusters for photo in cluster.photos[-1:]}
    sandbox.hidden -= {sandbox.clusters[0].photos[-1].session_key}
    result, queries = check(two, sandbox)
    assert result.code == 1 and [query["creator_username"] for query in queries] == ["demo", "demo"]
    assert {"2021-07-29T09:16:52.000Z", "2021-07-29T10:16:52.000Z"} == {q["start_captured_at"] for q in queries}
    assert {"2021-07-29T09:17:04.000Z", "2021-07-29T10:17:02.000Z"} == {q["end_captured_at"] for q in queries}
    live = [record["live_at"] for record in sequences(two)]
    sandbox.hidden = set()
    result, queries = check(two, sandbox)
    assert result.code == 0 and len(queries) == 1
    assert [record["live_at"] for record in sequences(two)] == live and all(live)


def test_what_was_found_before_a_search_failed_stays_found(sandbox: Sandbox, two: Path) -> None:
    sandbox.faults.append(Fault(match="GET /images", after=1, status=400))
    result, _ = check(two, sandbox)
    assert result.code == 1 and "GET /images" in result.err
    assert sum(photo["image_id"] is not None for r in sequences(two) for photo in r["photos"].values()) in (4, 5)
    result, queries = check(two, sandbox)
    assert result.code == 0 and len(queries) == 1


def test_every_page_is_asked_for_once(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    sandbox.page_size = 3
    result, queries = check(folder, sandbox)
    assert result.code == 0 and [query.get("after") for query in queries] == [None, "3", "6"]


def test_a_page_that_leads_to_itself_ends(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    here = f"{sandbox.url}/graph/images?after=0"
    sandbox.faults.append(Fault(match="GET /images", times=None, body={"data": [], "paging": {"next": here}}))
    result, queries = check(folder, sandbox)
    assert result.code == 1 and len(queries) == 2 and "none live yet" in result.out


def test_the_organization_need_not_be_given_again(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox, "-o", "2002").code == 0
    assert check(folder, sandbox)[0].code == 0
    assert upload(folder, sandbox).code == 2  # to publish, it must


def test_images_that_lack_fields_or_are_of_another_camera_are_passed_over(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    first = sandbox.clusters[0].photos[0]
    said = first.description
    place = {"type": "Point", "coordinates": [said["MAPLongitude"], said["MAPLatitude"]]}
    time = mu.from_iso("2021-07-29T09:16:54.000Z")
    odd: list[dict[str, Any]] = [
        {"id": "1", "captured_at": time},
        {"id": "2", "captured_at": time, "geometry": None},
        {"id": "3", "captured_at": time, "geometry": {"type": "Point", "coordinates": []}},
        {"id": "4", "captured_at": time, "geometry": place, "make": "Insta360", "model": "X4"},
    ]
    sandbox.extra_images = [image | {"creator": CREATOR} for image in odd]
    result, _ = check(folder, sandbox, "--json")
    told = {photo["file"]: photo["image_id"] for photo in result.document["photos"]}
    assert result.code == 0 and told[said["MAPFilename"]] == first.image_id


@pytest.mark.parametrize("step", [1, 0.2])
def test_a_dense_walk_that_was_uploaded_before_gives_both_ids_of_every_photo(
    sandbox: Sandbox, tmp_path: Path, step: float
) -> None:
    folder = factory.write_tour(tmp_path / "walk", factory.tour(12, step_s=step, spacing=1.2))
    sandbox.forgetful = True
    for attempt in range(2):
        assert upload(folder, sandbox).code == 0
        (folder / mu.RESUME_NAME).rename(tmp_path / f"resume {attempt}")
    (tmp_path / "resume 1").rename(folder / mu.RESUME_NAME)
    expected: dict[str, list[str]] = {}
    for cluster in sandbox.clusters:
        for photo in cluster.photos:
            expected.setdefault(photo.description["MAPFilename"], []).append(photo.image_id)
    result, _ = check(folder, sandbox, "--json")
    assert result.code == 0 and result.document["sequences"][0]["live"] == 12
    photos = sequences(folder)[0]["photos"]
    assert {name: photo["image_ids"] for name, photo in photos.items()} == expected
    assert {photo["image_id"] for photo in photos.values()} == {None}
    for told in result.document["photos"]:
        assert all(image_id in told["warnings"][0] for image_id in expected[told["file"]])


def test_whole_second_answers_of_a_burst_give_the_right_ids(sandbox: Sandbox, tmp_path: Path) -> None:
    """Mapillary cuts all times to their second; the photos are half a metre apart."""
    folder = factory.write_tour(tmp_path / "burst", factory.tour(9, step_s=0.2, spacing=0.5))
    assert upload(folder, sandbox).code == 0
    photos = sandbox.clusters[0].photos
    sandbox.hidden = {photo.session_key for photo in photos}
    for name, photo in sequences(folder)[0]["photos"].items():
        time = mu.from_iso(photo["captured_at"]) // 1000 * 1000
        place = {"type": "Point", "coordinates": [photo["longitude"], photo["latitude"]]}
        sandbox.extra_images.append({"id": f"id of {name}", "captured_at": time, "geometry": place, "creator": CREATOR})
    assert check(folder, sandbox)[0].code == 0
    assert all(photo["image_id"] == f"id of {name}" for name, photo in sequences(folder)[0]["photos"].items())


def test_a_photo_that_never_appears_makes_the_folder_overdue_and_names_the_cluster(
    sandbox: Sandbox, folder: Path
) -> None:
    assert upload(folder, sandbox).code == 0
    sandbox.hidden = {sandbox.clusters[0].photos[3].session_key}
    made = mu.load_resume(folder)
    assert made
    uuid = next(iter(made.sequences))
    made.sequences[uuid] = replace(made.sequences[uuid], published_at="2021-08-01T00:00:00.000Z")
    made.save()
    result, _ = check(folder, sandbox, "--json")
    told = result.document["sequences"][0]
    assert result.code == 6 and (told["live"], told["overdue"]) == (7, True)
    assert told["cluster_id"] == sandbox.clusters[0].cluster_id
    assert "overdue: partly live (7 of 8)" in check(folder, sandbox)[0].out
