"""README, "When something fails": Mapillary, the line, the disk and the photos fail in every way, and no photo is lost."""

from __future__ import annotations

import errno
import io
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from faults import (
    BAD_TOKEN,
    FINISH,
    IMAGES,
    MANIFEST,
    ME,
    NO,
    OFFSET,
    PHOTO,
    TRANSIENT,
    Held,
    Json,
    Waiting,
    Watched,
    assert_published_once,
    keys_of,
    kill,
    started,
    states,
    wait_until,
    was_asked,
    when_asked,
)

import factory
import mapillary_uploader as mu
from sandbox import Fault, Request, Sandbox, graph_error, upload_error
from support import (
    PROGRAM,
    FastClock,
    FastRun,
    account,
    add_sequences,
    full_disk,
    sequences_of,
    service_of,
    sizes,
    upload,
    upload_here,
)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A folder with one photo."""
    return factory.write_tour(tmp_path / "one", factory.tour(1))


# ---- one photo, one request; and what a passing failure leads to ----


@pytest.mark.parametrize("workers", [1, 3])
def test_a_photo_costs_one_request_and_no_more_go_at_once_than_there_are_workers(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    connects: list[float] = []
    connect = socket.socket.connect

    def counted(end: socket.socket, address: Any) -> None:
        connects.append(time.monotonic())
        connect(end, address)

    monkeypatch.setattr(socket.socket, "connect", counted)
    folder = factory.write_tour(tmp_path / "tour", factory.tour(12))
    once = [ME, IMAGES, FINISH, *(f"POST /{key}" for key in keys_of(folder).values())]
    sandbox.faults.append(Held(PHOTO, until=lambda: was_asked(sandbox, PHOTO, workers), times=workers))
    assert upload_here(folder, sandbox, workers=workers).code == 0 and sandbox.max_in_flight == workers
    routes = Counter(request.route for request in sandbox.requests if not request.path.endswith("json"))
    assert routes == Counter(once) and len(sandbox.posts("json")) == 1
    assert len(connects) <= workers + 3  # they are kept open; the others are of /me, /images and finish_upload
    manifest, finish = sandbox.posts("json")[0], sandbox.requests[-1]
    assert re.fullmatch(r"/mly_tools_[0-9a-f]{32}\.json", manifest.path)
    assert all(post.headers["transfer-encoding"] == "chunked" for post in sandbox.posts())
    assert not [post for post in sandbox.posts() if "content-length" in post.headers]
    assert [at for at in connects if manifest.started < at < finish.started]  # publishing takes a fresh connection


PASSING: dict[str, tuple[Any, list[Json]]] = {  # the waits, and what goes wrong with the only worker
    **{f"{status}": ([1], [{"match": PHOTO, "status": status}]) for status in (408, 421, 425, 500, 502, 504)},
    "503 with Retry-After": ([7], [{"match": PHOTO, "status": 503, "headers": {"Retry-After": "7"}}]),
    "412, at once": ([], [{"match": PHOTO, "status": 412, "body": upload_error("OffsetInvalidError", "no", True)}]),
    "400 retriable": ([1], [{"match": PHOTO, "status": 400, "body": upload_error("OddError", "no", True)}]),
    "403 transient": ([1], [{"match": PHOTO, "status": 403, "body": TRANSIENT}]),
    "reset at once": ([1, 2], [{"match": PHOTO, "drop_after": 0, "times": 2}]),
    "reset with progress": ([1] * 5, [{"match": PHOTO, "drop_after": 300, "times": 5}]),
    "progress between": ([1, 2, 4, 1], [{"match": PHOTO, "status": 500, "times": 2}, {"match": PHOTO, "drop_after": 300},
                                        {"match": PHOTO, "status": 500}]),
    "the server has less": ([1], [{"match": PHOTO, "drop_after": 600}, {"match": OFFSET, "forget": True}]),
    "answer lost": ([1, 1, 2], [{"match": PHOTO, "lost": True, "times": 3}]),  # from the second on without progress
    **{f"handle: {body!r}": ([1], [{"match": PHOTO, "body": body, "processed": True}])
       for body in ({}, {"h": ""}, {"h": 5}, {"h": None}, b"<html>", b"[]", b"")},
    **{f"offset: {body!r}": ([1, 2], [{"match": PHOTO, "status": 500}, {"match": OFFSET, "body": body}])
       for body in ({}, {"offset": -1}, {"offset": True}, {"offset": "0"}, {"offset": 0.5}, b"<html>")},
    "a redirect to nowhere": ([1], [{"match": PHOTO, "status": 302, "headers": {"Location": "http://[bad"}}]),
    "the manifest": ([1, 2, 4], [{"match": MANIFEST, "status": 502, "times": 3}]),
    "the search": ([1, 2, 4], [{"match": IMAGES, "status": 408, "times": 3}]),
    "429 more often than retries": ([10] * 9, [{"match": PHOTO, "status": 429, "times": 9}]),
    "429 with backoff": ([13], [{"match": PHOTO, "status": 429, "body": {"backoff": 13_000}}]),
    "429 with both": ([1.5], [{"match": PHOTO, "status": 429, "body": {"backoff": 1500}, "headers": {"Retry-After": "9"}}]),
    **{f"429, Retry-After {value}": ([wait], [{"match": PHOTO, "status": 429, "headers": {"Retry-After": value}}])
       for value, wait in (("9", 9), ("Wed, 21 Oct 99999 07:28:00 GMT", 10), ("3600", 900), ("Wed, 21 Oct 2099 07:28:00 GMT", 900), ("0", 10),
                           ("Wed, 21 Oct 2015 07:28:00 GMT", 10), ("soon", 10), ("NaN", 10), ("-5", 10), ("inf", 10))},
    "RequestRateLimitedError": ([3], [{"match": PHOTO, "status": 400,
                                       "body": upload_error("RequestRateLimitedError", "no") | {"backoff": 3000}}]),
    "429, then 500": ([10, 10, 10, 1, 2, 4], [{"match": PHOTO, "status": status, "times": 3} for status in (429, 500)]),
    "429 on the manifest": ([10], [{"match": MANIFEST, "status": 429}]),
    "429 on the search": ([10] * 5, [{"match": IMAGES, "status": 429, "times": 5}]),
    **{f"publishing, {name}": (waits, [{"match": FINISH} | fault]) for name, waits, fault in (
        ("429", [3] * 5, {"status": 429, "headers": {"Retry-After": "3"}, "times": 5}),
        ("412 in Graph's words", [], {"status": 412, "body": NO}),
        ("421 in Graph's words", [1], {"status": 421, "body": NO}),
        ("400, transient", [1, 2, 4], {"status": 400, "body": TRANSIENT, "times": 3}),
        ("403, transient", [1], {"status": 403, "body": TRANSIENT}),
        *((f"request limit {code} with {status}", [10], {"status": status, "body": graph_error("no", code=code)})
          for status, code in ((400, 4), (400, 17), (403, 4), (403, 32), (400, 613), (403, 613))))},
    **{f"request limit {code} with {status}": ([10], [{"match": PHOTO, "status": status, "body": graph_error("no", code=code)}])
       for status, code in itertools.product((400, 403, 429, 500), (4, 17, 32, 613))},
}  # fmt: skip


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_failure_is_outlasted_after_just_these_waits(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    folder, watched = factory.write_tour(tmp_path / "tour", factory.tour(2)), Watched()
    waits, faults = PASSING[name]
    sandbox.faults += [Fault(**fault) for fault in faults]
    assert upload_here(folder, sandbox, watched, workers=1, skip_invalid=True).code == 0  # nothing is taken for invalid
    assert watched.waits == waits and len(sandbox.clusters) == 1
    assert_published_once(sandbox, 2)


def test_retries_wait_twice_as_long_each_time_up_to_16_seconds_and_end(sandbox: Sandbox, one: Path) -> None:
    sandbox.faults.append(Fault(PHOTO, status=500, times=None))
    for waits, settings in (([1, 2, 4], {}), ([], {"retries": 0}), ([1, 2, 4, 8, 16, 16, 16], {"retries": 7})):
        watched, before = Watched(), len(sandbox.posts())
        result = upload_here(one, sandbox, watched, patience=0, **settings)
        assert (result.code, [photo.state for photo in result.photos]) == (1, ["failed"])
        assert watched.waits == waits and len(sandbox.posts()) - before == len(waits) + 1


def test_a_wrong_offset_that_never_ends_ends(sandbox: Sandbox, one: Path) -> None:
    sandbox.faults.append(Fault(PHOTO, status=412, times=None))
    assert upload_here(one, sandbox, patience=0).code == 1
    assert len(sandbox.posts()) == 5  # the first, which says that the offset must be asked for, and four tries


def test_a_broken_upload_goes_on_from_the_servers_offset(sandbox: Sandbox, one: Path) -> None:
    sandbox.faults.append(Fault(PHOTO, drop_after=300, times=3))
    assert upload_here(one, sandbox, retries=0, patience=2).code == 0
    posts = sandbox.posts("jpg")
    assert [post.headers["offset"] for post in posts] == ["0", "300", "600", "900"]
    assert sum(post.body_size for post in posts) == sandbox.published[0].size


def test_a_stray_408_on_an_idle_connection_is_no_answer(sandbox: Sandbox, folder: Path) -> None:
    sandbox.idle = 0
    assert upload_here(folder, sandbox, skip_invalid=True).code == 0
    assert_published_once(sandbox, 8)


# ---- the rate limit ----


def test_a_rate_limit_makes_all_workers_wait_together(sandbox: Sandbox, tmp_path: Path) -> None:
    together = threading.Barrier(4)  # a long wait ends once all four workers wait
    watched = Watched(Waiting(400, lambda _: together.wait(60)))
    sandbox.faults.append(Fault(PHOTO, after=1, status=429, headers={"Retry-After": "500"}))
    folder = factory.write_tour(tmp_path / "tour", factory.tour(12))
    assert upload_here(folder, sandbox, watched, workers=4).code == 0 and not together.broken
    assert len(watched.pauses) == 4 and max(watched.pauses) == 500


def test_a_shorter_wait_does_not_cut_a_longer_one(sandbox: Sandbox, one: Path) -> None:
    longer = threading.Event()

    def outlast(stop: Callable[[], bool]) -> None:  # until the other worker has found that it must wait, too
        longer.set()
        wait_until(lambda: len(watched.waits) == 2)

    watched = Watched(Waiting(300, outlast))
    for seconds, until in (("300", lambda: was_asked(sandbox, PHOTO, 2)), ("2", longer.is_set)):
        sandbox.faults.append(Held(PHOTO, until=until, status=429, headers={"Retry-After": seconds}))
    assert upload_here(add_sequences(one, 1), sandbox, watched, workers=2).code == 0
    assert watched.waits[0] == 2 and 200 < watched.waits[1] < 298 and watched.waits[2] == 300


@pytest.mark.parametrize("match", [PHOTO, MANIFEST, FINISH])
def test_a_rate_limit_is_borne_for_15_minutes(sandbox: Sandbox, one: Path, match: str) -> None:
    sandbox.faults.append(Fault(match, status=429, times=None))
    assert upload_here(one, sandbox, watched := Watched(), workers=1, patience=0).code == 1
    assert sum(watched.waits[:90]) == pytest.approx(900, abs=10) and {*watched.waits[:89]} == {10}
    assert states(one) == ["uploading"]  # nothing is unconfirmed
    sandbox.clear_faults()
    assert upload_here(one, sandbox).code == 0


@pytest.mark.parametrize("match", [PHOTO, IMAGES])
def test_each_photo_or_look_up_that_gets_through_begins_the_15_minutes_anew(
    sandbox: Sandbox, tmp_path: Path, match: str
) -> None:
    folder, watched = add_sequences(tmp_path / "two", 1, 1), Watched()
    sandbox.faults += [Fault(match, status=429, times=60), Fault(match, after=1, status=429, times=60)]
    assert upload_here(folder, sandbox, watched, workers=1, patience=0).code == 0 and len(watched.waits) == 120
    assert watched.told("warning") == []


# ---- refused for good ----


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"error": {"message": "m" * 400}}, "m" * 300), ({"error": {"error_user_msg": "A", "message": "B"}}, "A"),
        ({"error": {"message": "<i>B</i>"}, "debug_info": {"message": "C"}}, "<i>B</i>"),
        ({"error": {}, "debug_info": {"message": "C"}}, "C"), ({"error": "x"}, '{"error": "x"}'),
        (b"<html><p class=a>Bad\n gate</p>way", "Bad gate way"), (b"t" * 200, "t" * 100),
        (b"at once" + b"<b>" * 1_400 + b"late", "at once"), (b"\x1b[31mred", "\\x1b[31mred"),
    ],
)  # fmt: skip
def test_what_the_server_says_of_a_failure_is_told_in_short(sandbox: Sandbox, one: Path, body: Any, told: str) -> None:
    sandbox.faults.append(Fault(PHOTO, status=400, body=body))
    (photo,) = upload_here(one, sandbox).photos
    assert photo.failure.endswith(f": HTTP 400, {told}")


@pytest.mark.parametrize("status", [400, 500])
def test_a_photo_that_fails_stops_no_other_holds_back_its_sequence_and_is_all_that_is_tried_again(
    sandbox: Sandbox, folder: Path, status: int
) -> None:
    bad = keys_of(add_sequences(folder, 2))["GS0003_calculated.jpg"]
    sandbox.faults.append(Fault(bad, status=status, body=upload_error("OddError", "odd photo"), times=None))
    result = upload_here(folder, sandbox, watched := Watched())
    assert result.code == 1 and Counter(p.state for p in result.photos) == {"published": 2, "uploaded": 7, "failed": 1}
    assert sizes(sandbox) == [2]
    if status == 400:  # a final refusal costs one request
        assert watched.waits == [] and len(sandbox.posts("jpg")) == 10 and "odd photo" in str(watched.told("error"))
    before = len(sandbox.requests)
    assert upload_here(folder, sandbox, patience=0).code == 1
    assert {request.path for request in sandbox.requests[before:]} == {"/me", "/images", f"/{bad}"}
    sandbox.clear_faults()
    assert upload_here(folder, sandbox, watched := Watched()).code == 0
    assert watched.told("warning") == []  # no photo is missing
    assert_published_once(sandbox, 10)


@pytest.mark.parametrize("status", [400, 404, 413, 418])
def test_with_skip_invalid_a_photo_is_left_out_after_a_second_refusal_in_another_round(
    sandbox: Sandbox, folder: Path, status: int
) -> None:
    victim, key = sorted(keys_of(folder).items())[2]
    sandbox.faults.append(Fault(f"POST /{key}", status=status))
    assert upload_here(folder, sandbox, workers=1, skip_invalid=True).code == 0  # the second try was good
    first, second = [place for place, post in enumerate(sandbox.posts("jpg")) if post.path == f"/{key}"]
    assert first < 7 and second == 8
    assert_published_once(sandbox, 8)
    (folder / "mapillary_uploader.json").unlink()
    sandbox.reset()
    sandbox.faults.append(Fault(f"POST /{key}", status=status, times=None))
    result = upload_here(folder, sandbox, skip_invalid=True)
    assert result.code == 3 and [p.file for p in result.photos if p.state == "rejected"] == [victim]
    assert len(sandbox.posts("jpg")) == 9 and len(sandbox.published) == 7


NO_REFUSALS: dict[str, Json] = {
    "an offset beyond the size": {"match": OFFSET, "answer_offset": 10**9, "times": None},
    "500": {"match": PHOTO, "status": 500, "times": None},
    "408": {"match": PHOTO, "status": 408, "times": None},
    "a refused manifest": {"match": MANIFEST, "status": 400, "times": None},
    "a refused publish": {"match": FINISH, "status": 400, "body": NO},
}


@pytest.mark.parametrize("name", NO_REFUSALS)
def test_with_skip_invalid_no_other_failure_is_taken_for_a_refusal(sandbox: Sandbox, folder: Path, name: str) -> None:
    sandbox.faults += [Fault(PHOTO, status=500, times=1), Fault(**NO_REFUSALS[name])]
    result = upload_here(folder, sandbox, skip_invalid=True, patience=0)
    assert result.code == 1 and "rejected" not in {p.state for p in result.photos} and sandbox.clusters == []
    if "offset" in name:
        (why,) = [photo.failure for photo in result.photos if photo.state == "failed"]
        assert "1,000,000,000 bytes of it, more than its 3," in why
    if "a refused" in name:
        says = r"the manifest of sequence \S+: POST" if "manifest" in name else r"sequence \S+ was not published: POST"
        assert re.match(f"{says}.*: HTTP 400", str(result.errors[-1]))
    sandbox.clear_faults()
    assert upload_here(folder, sandbox, skip_invalid=True).code == 0
    assert_published_once(sandbox, 8)


@pytest.mark.parametrize(
    ("status", "body"), [(401, b""), (403, b""), (400, upload_error("NotAuthorizedError", "no")), (401, BAD_TOKEN)]
)
def test_a_token_refused_midway_ends_the_run_at_once_and_fails_no_photo(
    sandbox: Sandbox, folder: Path, status: int, body: Any
) -> None:
    sandbox.faults.append(Fault(PHOTO, after=3, status=status, body=body, times=None))
    result = upload_here(folder, sandbox, workers=2)
    assert result.code == 4 and {p.state for p in result.photos} == {"uploaded", "ready"}
    assert 4 <= len(sandbox.posts()) <= 3 + 2
    sandbox.clear_faults()
    assert upload_here(folder, sandbox).code == 0
    assert_published_once(sandbox, 8)


# ---- outages ----


@pytest.mark.parametrize(("settings", "pauses"), [({}, 600), ({"patience": 2}, 120), ({"patience": 0}, 0)])
def test_an_outage_costs_a_handful_of_requests_and_ends_with_the_patience(
    sandbox: Sandbox, tmp_path: Path, settings: Json, pauses: int
) -> None:
    folder, watched = factory.write_tour(tmp_path / "many", factory.tour(60)), Watched()
    sandbox.faults.append(Fault(PHOTO, status=500, times=None))
    assert upload_here(folder, sandbox, watched, retries=0, **settings).code == 1
    assert len(sandbox.requests) < 60 and sum(watched.pauses) == pauses
    assert watched.pauses[: pauses // 30] == [30, 30, 60, 120, 240, 120][: len(watched.pauses)]
    assert len(watched.told("warning")) == (pauses > 0) and len(watched.told("error")) == 1  # not one for each photo


@pytest.mark.parametrize("name", ["few photos", "while another is published", "only the manifest", "all"])
def test_an_outage_is_waited_out_and_the_run_goes_on_by_itself(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    photos = 20 if name == "all" else 3  # fewer than workers
    folder, another = factory.write_tour(tmp_path / "tour", factory.tour(photos)), name == "while another is published"
    match = MANIFEST if name == "only the manifest" else "|".join(keys_of(folder).values())
    if another:
        add_sequences(folder, 1)
        sandbox.faults.append(Held(FINISH, until=lambda: was_asked(sandbox, PHOTO, 4)))
    sandbox.faults.append(Fault(match, status=502, times=30))
    assert upload_here(folder, sandbox, watched := Watched()).code == 0 and watched.pauses[0] == 30
    assert_published_once(sandbox, photos + another)


def test_each_photo_that_gets_through_begins_the_patience_anew(sandbox: Sandbox, tmp_path: Path) -> None:
    folder, tries = factory.write_tour(tmp_path / "tour", factory.tour(6)), itertools.count(1)

    def three_of_four(request: Request) -> bool:
        return bool(re.search(PHOTO, request.route)) and next(tries) % 4 > 0

    sandbox.faults.append(Fault(three_of_four, status=500, times=None))
    result = upload_here(folder, sandbox, watched := Watched(), workers=1, retries=0, patience=1)
    assert result.code == 0 and sum(watched.pauses) > 60
    assert_published_once(sandbox, 6)


def test_an_outage_that_others_see_the_end_of_fails_no_photo(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(PHOTO, status=502, times=4))
    assert upload_here(folder, sandbox, retries=0, patience=1).code == 0
    assert_published_once(sandbox, 8)


def test_a_token_refused_in_an_outage_leaves_no_photo_failed(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults += [Fault(PHOTO, status=502, times=4), Fault(PHOTO, status=401, times=None)]
    result = upload_here(folder, sandbox, retries=0)
    assert result.code == 4 and {photo.state for photo in result.photos} == {"ready"}


def test_a_server_that_goes_away_and_comes_back_is_outlasted(sandbox: Sandbox, folder: Path) -> None:
    watched = Watched(Waiting(30, lambda _: sandbox.start()))
    sandbox.faults.append(when_asked(PHOTO, sandbox.stop))
    assert upload_here(folder, sandbox, watched).code == 0 and watched.pauses == [30]
    assert_published_once(sandbox, 8)


@pytest.mark.parametrize("says", ["no connection", "connection was lost"])
def test_nothing_begins_where_mapillary_is_not_there_or_hangs(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    monkeypatch.setattr(mu, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(mu.Run, "clock", FastClock())
    sandbox.stop() if says == "no connection" else sandbox.faults.append(Fault(ME, hang=600, times=None))
    with pytest.raises(mu.UploaderError, match=f"GET /me: .*{says}") as caught:
        account(sandbox)
    assert caught.value.code == 1


# ---- servers that hang, drip and crawl ----

TROUBLE: dict[str, Json] = {
    "hangs": {"hang": 600},
    "reads nothing": {"unread": True},
    "drips the head": {"drip": 0.25},
    "drips the body": {"drip": 0.002, "body": b'{"h": "x", "cluster_id": "77", "data": []}' + b" " * 20_000},
}


@pytest.mark.parametrize(("match", "trouble"), [*itertools.product((PHOTO, FINISH, IMAGES), TROUBLE)])
def test_a_call_ends_within_its_time_limit_all_in_all(
    sandbox: Sandbox, one: Path, monkeypatch: pytest.MonkeyPatch, match: str, trouble: str
) -> None:
    monkeypatch.setattr(mu, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(mu, "CONNECT_SECONDS", 0.3)
    sandbox.faults.append(Fault(match, times=None, **TROUBLE[trouble]))
    result = upload_here(one, sandbox, watched := Watched(), retries=0, patience=0)
    if match == IMAGES:
        assert result.code == 0 and any("can't be seen" in text for text in watched.told("warning"))
    elif match == FINISH:
        assert (result.code, states(one), len(sandbox.posts())) == (1, ["unconfirmed"], 2)
    else:
        assert (result.code, [p.state for p in result.photos]) == (1, ["failed"]) and sandbox.clusters == []
    sandbox.clear_faults()
    assert upload_here(one, sandbox).code == int(match == FINISH and not sandbox.clusters)


def test_a_server_that_reads_slowly_is_not_cut_off(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = socket.socket.connect

    def connected(end: socket.socket, address: Any) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # else the system takes in all of the photo
        connect(end, address)

    monkeypatch.setattr(socket.socket, "connect", connected)
    monkeypatch.setattr(mu, "CONNECT_SECONDS", 2)  # what each piece may take: 1 MiB would take five seconds
    monkeypatch.setattr(mu, "ANSWER_SECONDS", 3)  # what the answer may take then: the photo takes six seconds
    monkeypatch.setattr(mu, "SLOWEST_BYTES_A_SECOND", 10**9)
    folder = factory.write_tour(tmp_path / "slow", factory.tour(1, filler=1_200_000))
    sandbox.faults.append(Fault(PHOTO, read_rate=200_000))
    assert upload_here(folder, sandbox, watched := Watched()).code == 0
    assert watched.waits == [] and len(sandbox.posts("jpg")) == 1


def test_time_limits_are_30_seconds_to_connect_60_to_answer_and_more_for_a_large_photo(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, Any] = {}
    request = requests.Session.request

    def noted(session: requests.Session, method: str, url: str, **more: Any) -> requests.Response:
        limits[url.partition("?")[0].rpartition("/")[2].rpartition(".")[2]] = more["timeout"]
        return request(session, method, url, **more)

    monkeypatch.setattr(requests.Session, "request", noted)
    folder = factory.write_tour(tmp_path / "one", factory.tour(1, filler=512_000))
    assert upload_here(folder, sandbox).code == 0
    about_60, about_70 = pytest.approx(60, abs=0.1), pytest.approx(70, abs=0.2)
    assert limits.pop("jpg") == (30, about_70) and limits.pop("json") == (30, about_60)
    assert limits == dict.fromkeys(("me", "images", "finish_upload"), (30, 60))


# ---- photos that change while the run is at work, and disks that fail ----


def become_folder(path: Path) -> None:
    """Put a folder of that name in the file's place."""
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "is written anew": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "grows": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "is touched": lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
    "vanishes": os.unlink,
    "becomes a folder": become_folder,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["while another is sent", "between two blocks"])
def test_a_photo_that_changes_is_not_published_and_no_byte_goes_out_that_was_not_checked(
    sandbox: Sandbox, tmp_path: Path, moment: str, change: str
) -> None:
    halfway = moment == "between two blocks"
    folder = factory.write_tour(tmp_path / "tour", factory.tour(3, filler=8_000_000 if halfway else 1_000))
    victim = add_sequences(folder, 2) / "GS0003_calculated.jpg"
    good, status, key = victim.read_bytes(), victim.stat(), keys_of(folder)[victim.name]
    match, received = (f"POST /{key}", 1) if halfway else (PHOTO, 0)
    sandbox.faults = [when_asked(match, lambda: CHANGES[change](victim), received), Fault(key, read_rate=4_000_000)]
    result = upload_here(folder, sandbox, workers=1)
    gone = halfway and change in ("vanishes", "becomes a folder")  # the open file is still what it was
    assert (result.code, len(sandbox.clusters)) == ((0, 2) if gone else (1, 1))
    assert {p.file: p.state for p in result.photos}[victim.name] == ("published" if gone else "failed")
    if victim.is_dir():
        victim.rmdir()
    victim.write_bytes(good)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert upload_here(folder, sandbox).code == 0
    assert_published_once(sandbox, 5)


class BadDisk(io.BufferedReader):
    """An open file that can't be read beyond its first megabyte."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 1_000_000:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


def test_a_photo_that_a_bad_disk_cannot_give_stops_no_other(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = factory.write_tour(add_sequences(tmp_path / "two", 3), factory.tour(3, names="X{}.jpg", filler=2_000_000))
    tour, victim, opened = mu.check_folder(folder), (folder / "X2.jpg").stat(), os.fdopen

    def fdopen(handle: int, *arguments: Any) -> Any:
        bad = os.path.samestat(os.fstat(handle), victim)
        return BadDisk(io.FileIO(handle)) if bad else opened(handle, *arguments)

    monkeypatch.setattr(os, "fdopen", fdopen)
    result = mu.publish(tour, account(sandbox), service_of(sandbox), FastRun())
    (failed,) = (photo for photo in result.photos if photo.failure)
    assert failed.file == "X2.jpg" and "input/output error" in failed.failure
    assert result.code == 1 and sizes(sandbox) == [3]


@pytest.mark.parametrize("for_good", [True, False])
@pytest.mark.parametrize("room", range(1, 10))
def test_a_full_disk_ends_the_run_and_loses_nothing(
    sandbox: Sandbox, tmp_path: Path, room: int, for_good: bool
) -> None:
    """What can't be noted isn't begun."""
    folder = add_sequences(tmp_path / "tour", 3, 3)
    with full_disk(room, math.inf if for_good else room):
        result = upload_here(folder, sandbox, workers=1)
    assert [str(e) for e in result.errors if "can't be saved: no space left on device" in str(e)] or not for_good
    assert result.code == (1 if result.errors else 0) and not list(folder.glob(".*tmp*"))
    assert room > 1 or sandbox.posts() == []
    assert len(sandbox.finish_calls) <= sum(state in ("publishing", "published") for state in states(folder))
    before, received = len(sandbox.posts()), {post.path for post in sandbox.posts("jpg") if post.status == 200}
    assert upload_here(folder, sandbox).code == 0  # a look-up finds what was published
    assert [post for post in sandbox.posts("jpg")[before:] if post.path in received and post.body_size] == []
    assert_published_once(sandbox, 6)


# ---- signals ----


STUCK: dict[str, Json] = {  # where a run hangs or waits for long
    **{match: {"match": match, "hang": 3600} for match in (ME, IMAGES, PHOTO, MANIFEST)},
    FINISH: {"match": FINISH, "hang": 3600, "processed": True},
    "a rate limit": {"match": PHOTO, "status": 429, "headers": {"Retry-After": "800"}},
    "a rate limit on publishing": {"match": FINISH, "status": 429, "headers": {"Retry-After": "800"}},
    "an outage": {"match": PHOTO, "status": 500, "times": None},
}
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize(("where", "number"), [*zip(STUCK, itertools.cycle(SIGNALS)), (FINISH, signal.SIGTERM)])
def test_a_signal_ends_a_run_in_order_wherever_it_hangs(
    sandbox: Sandbox, folder: Path, where: str, number: signal.Signals
) -> None:
    sandbox.faults.append(Fault(**STUCK[where]))
    with started(folder, sandbox, "--json", "--retries", "0") as process:
        wait_until(lambda: was_asked(sandbox, STUCK[where]["match"]))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == json.loads(out)["exit_code"] == SIGNALS[number] and "Traceback" not in err
    left: dict[str, list[list[str]]] = {ME: [[]], IMAGES: [[]], FINISH: [["publishing"], ["unconfirmed"]]}
    assert states(folder) in left.get(where, [["uploading"]])
    sandbox.clear_faults()
    assert upload_here(folder, sandbox).code == 0  # a look-up finds what was published
    assert_published_once(sandbox, 8)


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_a_second_signal_ends_a_run_at_once(sandbox: Sandbox, folder: Path, numbers: list[signal.Signals]) -> None:
    sandbox.faults.append(Fault(FINISH, hang=3600, times=None))  # it is given two seconds to answer
    with started(folder, sandbox) as process:
        wait_until(lambda: was_asked(sandbox, FINISH))
        for number in itertools.cycle(numbers):
            if process.poll() is not None:
                break
            process.send_signal(number)
            time.sleep(0.01)
        process.communicate(timeout=60)
    assert process.returncode in [-number for number in numbers]  # killed; the first alone ends it with 130 or 143


@pytest.mark.parametrize("module", ["click", "requests", "configparser"])
def test_ctrl_c_while_modules_load_shows_no_traceback(
    sandbox: Sandbox, folder: Path, tmp_path: Path, module: str
) -> None:
    stop = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(1)"
    (tmp_path / f"{module}.py").write_text(stop)
    result = upload(folder, sandbox, env={"PYTHONPATH": str(tmp_path)})
    assert result.code == 130 and "Traceback" not in result.err and sandbox.posts() == []


@pytest.mark.parametrize("seed", range(4))
def test_ended_at_random_moments_until_done_each_photo_is_published_once(
    sandbox: Sandbox, tmp_path: Path, seed: int
) -> None:
    folder = add_sequences(factory.write_tour(tmp_path / "tour", factory.tour(6, filler=40_000)), 2)
    chance, runs, code, sandbox.bandwidth = random.Random(seed), 0, -1, 2_000_000
    finished: dict[str, int] = {}  # session key -> how many requests there had been when the file had its handle
    while code != 0 and runs < 60:
        known, until = sequences_of(folder), len(sandbox.requests) + chance.randint(4, 10)
        again = [f"--republish={uuid}" for uuid in known if known[uuid]["state"] in ("publishing", "unconfirmed")]
        entries = [entry for sequence in known.values() for entry in sequence["photos"].values()]
        finished = {e["session_key"]: len(sandbox.requests) for e in entries if e["file_handle"]} | finished
        number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        with started(folder, sandbox, "--quiet", *again) as process:
            wait_until(lambda: len(sandbox.requests) >= until or process.poll() is not None)  # noqa: B023
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            kill(process, sandbox)
        runs, code = runs + 1, process.returncode
        killed = number == signal.SIGKILL or len(sandbox.clusters) == 2  # once its work is done a run ends as usual
        assert code in (0, -number if killed else 128 + number, 128 + number) and "Traceback" not in err
    assert code == 0 and len(sandbox.clusters) == 2
    assert_published_once(sandbox, 8)
    for path in {post.path for post in sandbox.posts("jpg")}:  # after its first request a photo's offset is asked for
        methods = [request.method for request in sandbox.requests if request.path == path]
        assert ("POST", "POST") not in zip(methods, methods[1:])
    for key, since in finished.items():
        assert [r for r in sandbox.requests[since:] if r.route == f"POST /{key}" and r.body_size] == []
    assert not list(folder.glob("*tmp*"))


# ---- where the token goes, and machines that are set up wrongly ----


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("match", [ME, IMAGES, PHOTO, OFFSET, FINISH])
def test_no_redirect_is_followed(
    sandbox: Sandbox, one: Path, monkeypatch: pytest.MonkeyPatch, match: str, status: int
) -> None:
    monkeypatch.setattr(mu.Run, "clock", FastClock())
    with Sandbox() as other:
        where = {ME: "graph/me", IMAGES: "graph/images", FINISH: "graph/finish_upload"}.get(match, "upload/x.jpg")
        sandbox.faults += [Fault(PHOTO, status=500)] if match == OFFSET else []
        sandbox.faults.append(Fault(match, status=status, headers={"Location": f"{other.url}/{where}"}, times=None))
        with pytest.raises(mu.UploaderError) if match == ME else monkeypatch.context():
            code = upload_here(one, sandbox, patience=0).code
            assert code == (0 if match == IMAGES else 1)
        assert other.requests == []


def test_every_call_carries_the_token_whatever_netrc_says_and_the_programs_name(
    sandbox: Sandbox, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (netrc := one / "netrc").write_text("machine 127.0.0.1 login someone password else\ndefault login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    sandbox.faults.append(Fault(PHOTO, status=500))
    assert upload_here(one, sandbox).code == 0
    assert {re.sub("mly.*", "mly", r.route) for r in sandbox.requests} == {ME, IMAGES, OFFSET, "POST /mly", FINISH}
    assert {request.headers["authorization"] for request in sandbox.requests} == {"OAuth MLY|sandbox|demo-token"}
    assert all(re.fullmatch(r"mapillary-uploader/\d+\.\d+\.\d+", r.headers["user-agent"]) for r in sandbox.requests)
    assert not [request for request in sandbox.requests if "demo-token" in request.target]


GRAPH, UPLOADS = "MAPILLARY_GRAPH_API_ENDPOINT", "MAPILLARY_UPLOAD_ENDPOINT"
PLAIN = {GRAPH: "http://127.0.0.1:5", UPLOADS: "http://127.0.0.1:5"}
CANNOT_WORK: list[tuple[str, dict[str, str]]] = [  # the variable that is named, and the environment
    *(("ALL_PROXY", {"ALL_PROXY": value}) for value in ("socks://h:1", "socks5://h:1", "socks5h://h:1", "nonsense://h")),
    *(("https_proxy", {"https_proxy": value}) for value in ("http://", "http://h:port", "http://h:99999", "http://a b")),
    ("HTTPS_PROXY", {"HTTPS_PROXY": "ftp://proxy.example:3128"}),
    ("http_proxy", PLAIN | {"http_proxy": "socks4://user:word@h:1", "https_proxy": ""}),
    ("REQUESTS_CA_BUNDLE", {"REQUESTS_CA_BUNDLE": "/no/such/file.pem"}),
    ("REQUESTS_CA_BUNDLE", {"REQUESTS_CA_BUNDLE": os.fspath(PROGRAM)}),
    ("CURL_CA_BUNDLE", {"CURL_CA_BUNDLE": "/no/such/file.pem"}),
    *((name, {name: value}) for name in (GRAPH, UPLOADS) for value in (
        "graph.mapillary.com", "https://", "https://h:port", "https://h:0", "https://a b", "ftp://h", "file:///etc",
        "https://user:word@h", "http://graph.mapillary.com", "http://127.evil.example", "http://192.168.1.5:8080",
        "http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://10.0.0.1", "http://[fe80::1]",
        "http://0.0.0.0", "http://2130706433", "http://[::ffff:192.168.1.5]", "http://127.0.0.1@evil.example")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "variables"), CANNOT_WORK, ids=lambda value: str(value)[:60])
def test_a_setting_of_the_machine_that_cannot_work_is_named(name: str, variables: dict[str, str]) -> None:
    with pytest.raises(mu.UsageError, match=f"^{name} ") as caught:
        mu.service_from(variables)
    assert caught.value.code == 2 and "word" not in str(caught.value)


@pytest.mark.parametrize("variables", [{"REQUESTS_CA_BUNDLE": "/no"}, {GRAPH: "http://192.168.1.5"}])
def test_a_run_ends_at_once_with_2_where_the_machine_is_set_up_wrongly(
    sandbox: Sandbox, folder: Path, variables: dict[str, str]
) -> None:
    result = upload(folder, sandbox, env=variables)
    assert result.code == 2 and next(iter(variables)) in result.err and sandbox.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1:5", "127.8.9.1", "[::1]:5", "localhost:5", "LocalHost"])
def test_plain_http_goes_to_this_machine(host: str) -> None:
    service = mu.service_from({GRAPH: f"http://{host}/graph/", UPLOADS: f"http://{host}"})
    assert service == (f"http://{host}/graph", f"http://{host}")


def test_settings_of_the_machine_that_work_are_left_alone(sandbox: Sandbox) -> None:
    good = {"https_proxy": "proxy.example:3128", "HTTP_PROXY": "http://user:word@[::1]:3128/", "ALL_PROXY": ""}
    rupload = "https://rupload.facebook.com/mapillary_public_uploads"
    assert mu.service_from(good) == ("https://graph.mapillary.com", rupload)
    assert mu.service_from({"ALL_PROXY": "socks://h:1", "no_proxy": "mapillary.com,facebook.com"})
    assert mu.service_from({"ALL_PROXY": "socks://h:1", "https_proxy": "https://proxy.example"})
    assert mu.service_from(sandbox.environment() | {"HTTPS_PROXY": "socks://h:1"})  # of no use for plain http
