"""Is it live? What --check and the look-ups before sending ask Mapillary, and what they take for proof."""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from faults import FINISH, IMAGES, NO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factory
import mapillary_uploader as mu
from sandbox import Account, Fault, Sandbox
from support import FastRun, Ran, account, resume_of, service_of, upload, upload_here

JSON = dict[str, Any]
Made = Callable[..., JSON]
T = 1_627_550_214_007  # 2021-07-29 09:16:54.007 UTC: a time that isn't cut to its second
SECOND = 1_627_550_214_000
LINK = r"https://www\.mapillary\.com/app/\?pKey=(\w+)"
NO_ANSWERS: dict[str, Any] = {
    "HTML": b"<html>Please sign in to the guest network</html>",
    "an empty object": {},
    "an error": {"error": {"message": "An unknown error has occurred", "code": 1}},
    "JSON cut off": b'{"data": [{"id": "1", "captured_at"',
    "no data": {"data": None},
    "other data": {"data": {"id": "1"}},
}


def utc(ms: float) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry(ms: int, metres: float = 0.0, **changes: object) -> JSON:
    """A photo in a resume file, so many metres north of the start."""
    marks = dict.fromkeys(("photo_id", "shot", "picture", "description_md5"), "") | {"session_key": "k", "size": 1}
    sent = {"file_handle": "h", "uploaded_at": utc(ms), "mtime_ns": 1, "captured_at": utc(ms), "image_id": None}
    place = {"latitude": 51 + metres / factory.DEGREE_M, "longitude": 0.0, "make": "GoPro", "model": "Max"}
    return marks | sent | place | changes


def published(photos: dict[str, JSON], days_ago: float = 0, **changes: object) -> JSON:
    """A sequence in a resume file."""
    then = utc(1000 * (time.time() - 86_400 * days_ago))
    facts = {"state": "published", "manifest_handle": "h", "publish_tried_at": then, "published_at": then}
    return {**facts, "cluster_id": "5", "shown_before": [], **changes, "photos": photos}


def unconfirmed(photos: dict[str, JSON], days_ago: float = 0, **changes: object) -> JSON:
    return published(photos, days_ago, state="unconfirmed", published_at=None, cluster_id=None, **changes)


def remember(folder: Path, **sequences: JSON) -> Path:
    """Leave nothing of a folder but its resume file: the photos have been archived."""
    folder.mkdir(exist_ok=True)
    owner = {"format": 1, "service": "test", "username": "demo", "user_id": "1001", "organization_id": None}
    (folder / "mapillary_uploader.json").write_text(json.dumps(owner | {"closed": True, "sequences": sequences}))
    return folder


def image(name: str, ms: int, metres: float = 0.0, **changes: object) -> JSON:
    """What GET /images says of a photo so many metres north of the start."""
    place = {"type": "Point", "coordinates": [0.0, 51 + metres / factory.DEGREE_M]}
    known = {"id": name, "captured_at": ms, "geometry": place, "make": "GoPro", "model": "Max"}
    return known | {"creator": {"id": "1001", "username": "demo"}} | changes


def look(folder: Path, sandbox: Sandbox, run: mu.Run | None = None) -> mu.Result:
    """--check, from Python."""
    return mu.check_live(folder, account(sandbox), service_of(sandbox), run or FastRun())


def ids_in(folder: Path) -> dict[str, str]:
    """file -> the image id that the resume file notes."""
    sequences = resume_of(folder)["sequences"].values()
    return {name: photo["image_id"] for s in sequences for name, photo in s["photos"].items() if photo["image_id"]}


def matched(folder: Path, sandbox: Sandbox, photos: dict[str, JSON], images: Iterable[JSON]) -> dict[str, str]:
    """Which published photo is taken for which image."""
    sandbox.extra_images = list(images)
    look(remember(folder, s=published(photos)), sandbox)
    return ids_in(folder)


def asked(sandbox: Sandbox, name: str, since: int = 0) -> list[str | None]:
    """A parameter of all searches."""
    return [request.query.get(name) for request in sandbox.requests[since:] if request.path == "/images"]


def check(folder: Path, sandbox: Sandbox, *arguments: str) -> tuple[Ran, int]:
    """--check, and how often it searches."""
    before = len(sandbox.requests)
    return upload(folder, sandbox, "--check", *arguments), len(asked(sandbox, "", before))


def show(sandbox: Sandbox, folder: Path, most: int | None = None) -> tuple[list[str], str]:
    """Let another upload's images of a folder's photos be on Mapillary; their ids, and the first sequence's."""
    sequences = mu.check_folder(folder).sequences
    photos = [photo for sequence in sequences for photo in sequence.photos][:most]
    return [sandbox.show(mu.description_of(photo))["id"] for photo in photos], sequences[0].uuid


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def two(sandbox: Sandbox, tmp_path: Path) -> Path:
    """A folder of two sequences, an hour apart."""
    folder = factory.write_tour(tmp_path / "two", factory.tour(5, names="A{}.jpg"))
    return factory.write_tour(folder, factory.tour(4, names="B{}.jpg", start="2021:07:29 10:16:54Z"))


# ---- --check ----


def test_a_sequence_is_sent_then_partly_live_then_live(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = 3600
    assert upload(folder, sandbox).code == 0
    sent = [photo.image_id for photo in sandbox.published]
    result, _ = check(folder, sandbox)
    assert result.code == 1 and "sent (none live yet" in result.out and "0 of 8" in result.out
    sandbox.live_after, sandbox.hidden = 0, {photo.session_key for photo in sandbox.published[:3]}
    result, _ = check(folder, sandbox)
    assert result.code == 1 and "partly live (5 of 8)" in result.out and re.findall(LINK, result.out) == [sent[3]]
    assert "failed" not in result.out + result.err and sorted(ids_in(folder).values()) == sent[3:]
    sandbox.hidden = set()
    result, _ = check(folder, sandbox, "--json")
    assert result.code == 0 and [photo["image_id"] for photo in result.document["photos"]] == sent
    told = {"live": 8, "photos": 8, "overdue": False, "cluster_id": sandbox.clusters[0].cluster_id}
    assert told.items() <= result.document["sequences"][0].items()
    for photo in folder.glob("*.jpg"):
        photo.unlink()  # they may be archived
    result, searches = check(folder, sandbox)
    assert (result.code, searches) == (0, 0) and re.findall(f": live, {LINK}", result.out) == [sent[0]]
    assert len(sandbox.posts()) == 9  # nothing more was sent


@pytest.mark.parametrize(("days", "code"), [(6.9, 1), (7.1, 6)])
@pytest.mark.parametrize("made", [published, unconfirmed])
def test_overdue_is_what_is_not_all_live_seven_days_after_publishing_or_the_try(
    sandbox: Sandbox, archive: Path, made: Made, days: float, code: int
) -> None:
    result = look(remember(archive, s=made({"a": entry(T), "b": entry(T + 2000)}, days)), sandbox)
    assert result.code == code and result.document()["sequences"][0]["overdue"] is (code == 6)
    sandbox.extra_images = [image("A", T)]
    ran, _ = check(archive, sandbox)
    assert ran.code == code and ("overdue: partly live (1 of 2)" in ran.out) is (code == 6)
    sandbox.extra_images.append(image("B", T + 2000))
    assert look(archive, sandbox).code == 0


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        pytest.param({}, {"GS0001_calculated (1).jpg": factory.tour(1).popitem()[1], "notes.txt": b""}, 0, id="a copy"),
        pytest.param({}, factory.tour(9), 1, id="a photo added"),
        pytest.param({}, {"bad.jpg": b""}, 1, id="a rejected photo"),
        pytest.param({"bad.jpg": b""}, {}, 1, id="a run that sent nothing"),
        pytest.param(factory.tour(2, names="B{}.jpg", latitude=50), {}, 1, id="a refused sequence"),
        pytest.param(factory.tour(2, names="B{}.jpg", latitude=50), None, 1, id="a refused sequence, archived"),
    ],
)
def test_check_exits_0_only_when_all_is_published_and_live(
    sandbox: Sandbox, folder: Path, archive: Path, before: dict[str, bytes], after: dict[str, bytes] | None, code: int
) -> None:
    remember(archive, s=published({"a": entry(T, image_id="A")}))
    sandbox.faults.append(Fault(FINISH, after=1, times=None, status=400, body=NO))
    upload_here(factory.write_tour(folder, before), sandbox)
    for photo in folder.glob("*.jpg") if after is None else ():
        photo.unlink()
    factory.write_tour(folder, after or {})
    for result in (check(folder, sandbox)[0], check(folder.parent, sandbox, "-r")[0]):
        assert result.code == code and ("All live" in result.out) is (code == 0)


def test_one_search_a_sequence_by_account_and_window_then_only_for_what_is_missing(sandbox: Sandbox, two: Path) -> None:
    assert upload(two, sandbox).code == 0
    sandbox.hidden, before = {sandbox.clusters[1].photos[-1].session_key}, len(sandbox.requests)
    sandbox.faults.append(Fault(IMAGES, after=1, status=400))
    result, searches = check(two, sandbox)
    assert (result.code, searches) == (1, 2) and "GET /images: HTTP 400" in result.err
    day = "2021-07-29T{}Z".format  # two seconds before and after
    assert sorted(map(str, asked(sandbox, "start_captured_at", before))) == [day("09:16:52.000"), day("10:16:52.000")]
    assert sorted(map(str, asked(sandbox, "end_captured_at", before))) == [day("09:17:04.000"), day("10:17:02.000")]
    assert asked(sandbox, "creator_username", before) == ["demo", "demo"]
    assert len(ids_in(two)) in (3, 4, 5)  # what was found before the other search failed stays found
    assert check(two, sandbox)[0].code == 1 and len(ids_in(two)) == 8
    sandbox.hidden = set()
    for searches in (1, 0):
        assert [check(two, sandbox)[1], len(ids_in(two))] == [searches, 9]


def test_the_organization_need_not_be_given_again_but_must_be_the_same(sandbox: Sandbox, folder: Path) -> None:
    sandbox.organizations["2003"] = {"slug": "other", "name": "Other"}
    assert upload(folder, sandbox, "-o", "2002").code == 0
    assert [check(folder, sandbox, *words)[0].code for words in ([], ["-o", "2002"], ["-o", "2003"])] == [0, 0, 2]
    assert upload(folder, sandbox).code == 2  # to publish, it must be given


def test_check_needs_the_account_that_published_and_the_folder_for_itself(sandbox: Sandbox, archive: Path) -> None:
    remember(archive, s=published({"a": entry(T)}))
    with open(archive / "mapillary_uploader.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert check(archive, sandbox)[0].code == 5
        with pytest.raises(mu.UploaderError, match="another run is at work"):
            look(archive, sandbox)
    sandbox.accounts[0] = Account(id="1002")
    result, searches = check(archive, sandbox)
    assert result.code == 2 and "another account" in result.err and searches == 0
    sandbox.accounts[0] = Account()
    (remember(archive / "below") / "mapillary_uploader.json").write_text("{")
    result, searches = check(archive, sandbox, "-r")  # the others go on
    assert result.code == 2 and "below/mapillary_uploader.json is damaged" in result.err and searches == 1


def test_a_renamed_account_is_searched_for_by_its_new_name_which_is_noted(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    sandbox.accounts[0], before = Account(username="trekker"), len(sandbox.requests)
    assert upload(folder, sandbox).code == 4  # nobody is called so any more
    assert check(folder, sandbox, "-u", "trekker")[0].code == 0
    assert asked(sandbox, "creator_username", before) == ["trekker"] and resume_of(folder)["username"] == "trekker"
    sandbox.accounts[0] = Account(username="walker")
    assert upload(folder, sandbox, "-u", "walker").code == 0  # a run with nothing to do notes it too
    assert resume_of(folder)["username"] == "walker"


# ---- questions and answers ----


def test_all_of_2100_photos_are_found_in_pages_of_150(sandbox: Sandbox, archive: Path) -> None:
    sandbox.page_size, times = 150, {f"{n}": T + 500 * n for n in range(2_100)}
    photos, images = {n: entry(ms) for n, ms in times.items()}, [image(n, ms) for n, ms in times.items()]
    assert matched(archive, sandbox, photos, images) == {n: n for n in times}
    assert asked(sandbox, "after") == [None, *(str(n) for n in range(150, 2_100, 150))]


@pytest.mark.parametrize("circle", [["0"], ["1", "0"]], ids=["to itself", "in a circle"])
def test_pages_that_lead_nowhere_new_end(sandbox: Sandbox, archive: Path, circle: list[str]) -> None:
    for page, ahead in zip(["limit=2000", *(f"after={n}$" for n in circle)], circle * 2):
        body = {"data": [image("A", T)], "paging": {"next": f"{sandbox.url}/graph/images?after={ahead}"}}
        sandbox.faults.append(Fault(f"GET /images.*{page}", times=None, body=body))
    assert matched(archive, sandbox, {"a": entry(T), "b": entry(T + 1000)}, []) == {"a": "A"}
    assert len(asked(sandbox, "after")) == 1 + len(circle)


@pytest.mark.parametrize("address", ["http://{other}", "{own}/graph.evil", "{own}/graph@127.0.0.1", "{own}@{other}"])
def test_a_next_page_on_another_host_is_not_followed(sandbox: Sandbox, archive: Path, address: str) -> None:
    with Sandbox() as other:
        following = address.format(own=sandbox.url, other=f"127.0.0.1:{other.port}/graph") + "/images"
        sandbox.faults.append(Fault(IMAGES, body={"data": [], "paging": {"next": following}}))
        result, searches = check(remember(archive, s=published({"a": entry(T)})), sandbox)
        assert result.code == 1 and "another host" in result.err and searches == 1 and other.requests == []
        assert {request.path for request in sandbox.requests} == {"/me", "/images"}


@pytest.mark.parametrize("most", [(100, 100), (500, 250), (2000, 100)], ids=str)
def test_a_search_over_too_much_is_asked_again_with_half_the_limit(
    sandbox: Sandbox, archive: Path, most: tuple[int, int]
) -> None:
    def too_much(request: Any) -> bool:
        return request.path == "/images" and int(request.query["limit"]) > most["after" in request.query]

    sandbox.page_size, limits = 4, [2000, 1000, 500, 250, 125, 100]
    sandbox.faults.append(Fault(too_much, times=None, status=500))
    photos, images = {f"{n}": entry(T + 1000 * n) for n in range(8)}, [image(f"{n}", T + 1000 * n) for n in range(8)]
    assert len(matched(archive, sandbox, photos, images)) == 8
    first, second = [n for n in limits if n >= most[0]], [n for n in limits if most[0] >= n >= most[1]]
    assert asked(sandbox, "limit") == [str(n) for n in first + second]


def test_a_search_that_stays_too_much_is_an_error_and_a_4xx_is_one_at_once(sandbox: Sandbox, archive: Path) -> None:
    remember(archive, s=published({"a": entry(T)}))
    all_limits = {"2000", "1000", "500", "250", "125", "100"}
    for status, limits in ((500, all_limits), (408, {"2000"}), (400, {"2000"})):
        sandbox.faults, before = [Fault(IMAGES, times=None, status=status)], len(sandbox.requests)
        with pytest.raises(mu.UploaderError, match=f"GET /images: HTTP {status}"):
            look(archive, sandbox)
        assert {*asked(sandbox, "limit", before)} == limits


def test_what_is_held_back_is_not_asked_for(sandbox: Sandbox, tmp_path: Path) -> None:
    leap = {1: {"photo.original_latitude": 55.0}}
    photos = factory.tour(2, sequence_id="leap", changes=leap, names="l{}.jpg", start="2021:07:30 09:00:00Z")
    folder = factory.write_tour(tmp_path / "tour", factory.tour(2) | photos)
    assert upload_here(folder, sandbox, skip_invalid=True).code == 3 and len(sandbox.published) == 2
    assert len(asked(sandbox, "limit")) == 1


@pytest.mark.parametrize("body", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_nothing_else_is_an_answer_an_error_of_check_and_a_warning_before_sending(
    sandbox: Sandbox, folder: Path, archive: Path, body: Any
) -> None:
    sandbox.faults.append(Fault(IMAGES, times=2, body=body))
    remember(archive, s=published({"a": entry(T)}), t=unconfirmed({"b": entry(T + 9000)}))
    before, run = resume_of(archive), FastRun()
    with pytest.raises(mu.UploaderError, match="GET /images: an answer without data") as error:
        look(archive, sandbox)
    assert error.value.code == 1 and resume_of(archive) == before
    assert upload_here(folder, sandbox, run).code == 0 and len(sandbox.published) == 8
    assert [level for level, text in run.messages if "an answer without data" in text] == ["warning"]


# ---- which photo an image is ----


def test_an_image_is_a_photo_within_1_s_and_2_m(sandbox: Sandbox, archive: Path) -> None:
    pairs = [(ms, metres) for ms in (-1001, -1000, 0, 1000, 1001) for metres in (-2.1, -1.9, 0, 1.9, 2.1, 9)]
    photos = {f"{pair}": entry(T + 9000 * n) for n, pair in enumerate(pairs)}
    images = [image(f"{ms, metres}", T + 9000 * n + ms, metres) for n, (ms, metres) in enumerate(pairs)]
    near = {f"{ms, metres}" for ms, metres in pairs if abs(ms) <= 1000 and abs(metres) <= 2}
    assert matched(archive, sandbox, photos, images) == {name: name for name in near}


def test_a_camera_is_the_same_however_it_is_spelt(sandbox: Sandbox, archive: Path) -> None:
    same: list[Any] = [("GOPRO ", "max"), ("GoPro", "Max"), (None, None), ("", "Max")]
    cameras = [*same, ("Insta360", "Max"), ("GoPro", "Hero"), (None, "Hero")]
    images = [image(f"{it}", T + 9000 * n, make=it[0], model=it[1]) for n, it in enumerate(cameras)]
    photos = {f"{it}": entry(T + 9000 * n) for n, it in enumerate(cameras)}
    assert matched(archive, sandbox, photos, images) == {f"{it}": f"{it}" for it in same}
    photos = {name: photo | {"make": "", "model": ""} for name, photo in photos.items()}  # where it isn't named
    assert matched(archive, sandbox, photos, images) == {f"{it}": f"{it}" for it in cameras}


def test_images_that_lack_time_place_or_id_are_passed_over(sandbox: Sandbox, archive: Path) -> None:
    odd: list[Any] = [image("1", T, geometry=place) for place in (None, {}, {"coordinates": [1]}, {"coordinates": "x"})]
    high = image("A", T, geometry={"type": "Point", "coordinates": [0.0, 51.0, 99.9]})  # GeoJSON may name a height too
    odd += [image("2", T, captured_at=ms) for ms in (None, "x", True)] + [image("", T), image("3", T, id=None)]
    sandbox.faults.append(Fault(IMAGES, body={"data": [*odd, None, "nonsense", 7, [], high]}))
    assert matched(archive, sandbox, {"a": entry(T)}, []) == {"a": "A"}


def test_a_burst_in_one_place_whose_times_are_cut_is_matched_one_to_one(sandbox: Sandbox, archive: Path) -> None:
    photos, images = {f"{n}": entry(T + 200 * n) for n in range(4)}, [image(f"{n}", SECOND) for n in range(4)]
    assert sorted(matched(archive, sandbox, photos, images).values()) == list("0123")


def test_a_copy_shifts_no_other_photo_and_is_warned_of_with_both_ids(sandbox: Sandbox, archive: Path) -> None:
    remember(archive, s=published({f"{n}": entry(T + 1000 * n) for n in range(1_500)}))
    sandbox.extra_images = [*(image(f"{n}", T + 1000 * n) for n in range(1_500)), image("copy", T)]
    run = FastRun()
    assert look(archive, sandbox, run).code == 0 and ids_in(archive) == {f"{n}": f"{n}" for n in range(1_500)}
    assert [text for level, text in run.messages if level == "warning" and "more than once: 0, copy" in text]


def test_no_copy_is_taken_for_the_neighbour_and_no_neighbour_for_a_copy(sandbox: Sandbox, archive: Path) -> None:
    photos, run = {"a": entry(T, image_id="A"), "b": entry(T + 1000, 1.4)}, FastRun()
    assert matched(archive, sandbox, photos, [image("A", T), image("copy", T)]) == {"a": "A"}  # it turned up later
    remember(archive, s_1=published({"a": entry(T)}), s_2=published({"b": entry(T + 500)}))  # the next part begins
    sandbox.extra_images = [image("A", T), image("B", T + 500)]
    assert look(archive, sandbox, run).code == 0 and ids_in(archive) == {"a": "A", "b": "B"}
    assert all(level != "warning" for level, _ in run.messages)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=40, unique=True), st.sampled_from([0, 0.3, 1.4]), st.data())
def test_however_dense_a_tour_each_live_photo_gets_its_own_id(
    sandbox: Sandbox, tmp_path: Path, times: list[int], spacing: float, data: st.DataObject
) -> None:
    """However few are live, however often, in whatever order; also where Mapillary cuts times to the second."""
    taken, cut = [T, *sorted(T + time for time in times)], bool(spacing) and data.draw(st.booleans())
    photos = {f"IMG_{n}": entry(ms, n * spacing) for n, ms in enumerate(taken)}
    copies = [1, *data.draw(st.lists(st.integers(0, 3), min_size=len(times), max_size=len(times)))]
    there = [(n, ms // 1000 * 1000 if cut else ms, copy) for n, ms in enumerate(taken) for copy in range(copies[n])]
    images = [image(f"{n}/{copy}", ms, n * spacing) for n, ms, copy in data.draw(st.permutations(there))]
    assert matched(tmp_path / "archive", sandbox, photos, images) == {f"IMG_{n}": f"{n}/0" for n, _, _ in there}


# ---- what proves a publish ----


@pytest.mark.parametrize(("known", "unknown"), [("aaa", "zzz"), ("zzz", "aaa")])
@pytest.mark.parametrize(("there", "here"), [(0, 800), (500, 500), (500, 0)])
def test_a_neighbours_image_proves_no_publish(
    sandbox: Sandbox, archive: Path, known: str, unknown: str, there: int, here: int
) -> None:
    for ms in (SECOND + there, SECOND):  # as it is, and cut to its second
        sequences = {known: published({"A": entry(SECOND + there)}), unknown: unconfirmed({"B": entry(SECOND + here)})}
        remember(archive, **sequences)
        sandbox.extra_images = [image("A", ms)]
        assert look(archive, sandbox).code == 1 and upload_here(archive, sandbox).code == 1
        assert resume_of(archive)["sequences"][unknown]["state"] == "unconfirmed"
    remember(archive, **sequences | {unknown: unconfirmed({"B": entry(SECOND + 999)})})
    sandbox.extra_images = [image("B", SECOND + 999)]
    assert upload_here(archive, sandbox).code == 0 and ids_in(archive) == {"B": "B"}  # every run looks


def test_an_unconfirmed_publish_is_settled_once_one_of_its_photos_appears(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = 3600
    sandbox.faults.append(Fault(FINISH, lost=True))
    assert upload_here(folder, sandbox).code == 1
    result, _ = check(folder, sandbox)
    assert result.code == 1 and "unconfirmed" in result.out and len(look(folder, sandbox).photos) == 8
    sandbox.live_after, sandbox.hidden = 0, {photo.session_key for photo in sandbox.published[1:]}
    assert look(folder, sandbox).code == 1 and len(ids_in(folder)) == 1
    (record,) = resume_of(folder)["sequences"].values()
    assert record["state"] == "published" and record["published_at"] == record["publish_tried_at"] is not None
    sandbox.hidden = set()
    assert look(folder, sandbox).code == 0 and len(sandbox.finish_calls) == 1


@pytest.mark.parametrize("made", [published, unconfirmed])
def test_images_that_were_there_before_prove_nothing(sandbox: Sandbox, archive: Path, made: Made) -> None:
    remember(archive, s=made({"a": entry(T)}, shown_before=["old"]))
    sandbox.extra_images = [image("old", T)]
    assert look(archive, sandbox).code == 1 and ids_in(archive) == {}
    sandbox.extra_images.append(image("new", T))
    assert look(archive, sandbox).code == 0 and ids_in(archive) == {"a": "new"}


def test_images_of_a_sequence_that_was_never_published_count_for_nothing(sandbox: Sandbox, archive: Path) -> None:
    begun = published({"b": entry(T + 9000)}, state="uploading", publish_tried_at=None, published_at=None)
    remember(archive, s=published({"a": entry(T)}), t=begun)
    sandbox.extra_images = [image("A", T), image("B", T + 9000)]
    assert look(archive, sandbox).code == 1 and ids_in(archive) == {"a": "A"} and len(asked(sandbox, "limit")) == 1


# ---- before anything is sent ----


@pytest.mark.parametrize("most", [1, 5], ids=["one of them", "all"])
def test_a_sequence_that_is_on_mapillary_already_is_held_back_with_a_link(
    sandbox: Sandbox, two: Path, most: int
) -> None:
    old, uuid = show(sandbox, two, most)
    for _ in range(2):
        result = upload(two, sandbox)
        assert result.code == 3 and sandbox.posts() == [] and set(re.findall(LINK, result.out)) == {old[0]}
        assert f"--republish {uuid}" in result.out
    document = upload(two, sandbox, "--json").document
    assert [photo["state"] for photo in document["photos"]] == ["held"] * 5 + ["ready"] * 4
    sandbox.live_after = 3600
    assert upload(two, sandbox, "--skip-invalid").code == 3
    assert {photo.name[0] for photo in sandbox.published} == {"B"}
    assert upload(two, sandbox, "--republish", uuid).code == 0 and len(sandbox.published) == 9
    assert resume_of(two)["sequences"][uuid]["shown_before"] == old
    assert look(two, sandbox).code == 1 and ids_in(two) == {}  # the old ones don't count
    sandbox.live_after = 0
    assert look(two, sandbox).code == 0
    assert set(ids_in(two).values()) == {photo.image_id for photo in sandbox.published}


def test_of_two_cameras_on_one_track_nobody_knows_whose_images_are_there(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path, factory.tour(3, names="A{}.jpg", sequence_id="a"))
    show(sandbox, folder)
    factory.write_tour(folder, factory.tour(3, names="B{}.jpg", sequence_id="b", picture="second camera"))
    result = upload_here(folder, sandbox)
    assert result.code == 3 and [s.state for s in result.sequences] == ["held", "held"] and sandbox.posts() == []


def test_a_live_neighbours_images_hold_nothing_back(sandbox: Sandbox, tmp_path: Path) -> None:
    """Photos that are added to a live sequence, and a second camera's on the same track."""
    walk: JSON = {"sequence_id": "s", "step_s": 0.5, "spacing": 0.4}
    folder = factory.write_tour(tmp_path, factory.tour(8, **walk))
    assert upload_here(folder, sandbox).code == 0
    factory.write_tour(folder, dict(list(factory.tour(12, **walk).items())[8:]))
    factory.write_tour(folder, factory.tour(8, **walk | {"sequence_id": "b"}, names="B{}.jpg", picture="second camera"))
    assert upload_here(folder, sandbox).code == 0 and len(sandbox.published) == 20
    assert [*resume_of(folder)["sequences"]] == ["s", "b", "s_2"] and look(folder, sandbox).code == 0


def test_one_more_request_for_a_new_sequence_and_none_with_nothing_to_do(sandbox: Sandbox, two: Path) -> None:
    assert upload(two, sandbox, "--dry-run").code == 0 and sandbox.requests == []
    assert upload(two, sandbox).code == 0
    routes = [request.route for request in sandbox.requests]
    assert routes[:3] == ["GET /me", "GET /images", "GET /images"] and len(routes) == 3 + 9 + 2 * 2
    assert upload(two, sandbox).code == 0
    assert [request.route for request in sandbox.requests[len(routes) :]] == ["GET /me"]


@pytest.mark.parametrize("seen_again", [True, False], ids=["", "by a run that can't look, later"])
def test_old_images_do_not_confirm_a_publish_that_never_happened(
    sandbox: Sandbox, folder: Path, seen_again: bool
) -> None:
    """Corrected headings, the resume file moved away: another upload's stand at the same times and places."""
    old, uuid = show(sandbox, folder)
    if not seen_again:
        sandbox.faults += [Fault(FINISH, status=400, body=NO), Fault(IMAGES, after=1, status=400)]
        assert upload_here(folder, sandbox, republish=frozenset({uuid})).code == 1
    sandbox.faults.append(Fault(FINISH, status=503))
    assert upload_here(folder, sandbox, republish=frozenset({uuid})).code == 1
    assert upload_here(folder, sandbox).code == 1 and look(folder, sandbox).code == 1
    record = resume_of(folder)["sequences"][uuid]
    assert (record["state"], record["shown_before"], ids_in(folder)) == ("unconfirmed", old, {})
