"""README, "When something fails", publishing: what can't be undone is done once, or it is said that nobody knows."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from faults import (
    BAD_TOKEN,
    FINISH,
    IMAGES,
    MANIFEST,
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
from support import NEVER, account, resume_of, service_of, sizes, upload, upload_here


def only_id(folder: Path) -> str:
    """The id of the one sequence in the resume file."""
    (uuid,) = resume_of(folder)["sequences"]
    return str(uuid)


def republish(folder: Path, sandbox: Sandbox, run: mu.Run | None = None, **settings: Any) -> mu.Result:
    """A run with --republish for the one sequence."""
    return upload_here(folder, sandbox, run, republish=frozenset([only_id(folder)]), **settings)


@pytest.fixture
def unconfirmed(sandbox: Sandbox, folder: Path) -> Path:
    """A folder that was published, but the answer was lost and no photo shows yet."""
    sandbox.live_after = NEVER
    sandbox.faults.append(Fault(FINISH, lost=True))
    assert upload_here(folder, sandbox).code == 1 and states(folder) == ["unconfirmed"]
    return folder


# ---- answers that leave it open whether the call has worked ----

UNCLEAR: dict[str, Json] = {
    **{f"{status}": {"status": status} for status in (408, 409, 425, 499, 500, 502, 503, 504)},
    **{f"{status} in Graph's words": {"status": status, "body": NO} for status in (408, 409, 425, 499, 500, 503)},
    "503 with Retry-After": {"status": 503, "headers": {"Retry-After": "3"}},
    "500, transient": {"status": 500, "body": TRANSIENT},
    "404 of a gateway": {"status": 404, "body": b"<html>Not found</html>"},
    "400 without a word": {"status": 400, "body": b""},
    "400 with an error that is a text": {"status": 400, "body": {"error": "no"}},
    "400 of the upload service": {"status": 400, "body": upload_error("OddError", "no")},
    "400 retriable of the upload service": {"status": 400, "body": upload_error("OddError", "no", True)},
    "401 of a gateway": {"status": 401, "body": b"<html>Sign in to the network</html>"},
    "403 of a gateway": {"status": 403, "body": b"<html>Blocked</html>"},
    "a redirect": {"status": 302, "headers": {"Location": "/graph/me"}},
    "a redirect to nowhere": {"status": 307, "headers": {"Location": "http://[bad"}},
    "success false": {"body": {"success": False, "cluster_id": "77"}},
    "HTML": {"body": b"<html>OK</html>"},
    "nothing": {"body": b"", "status": 204},
    "a list": {"body": b"[77]"},
    "cut JSON": {"body": b'{"cluster_id": "7'},
    "{}": {"body": {}},
    **{
        f"the id {json.dumps(value)}": {"body": {"cluster_id": value}}
        for value in (0, "0", -1, "-1", " ", "", "null", None, "077", " 77", "77\n", "7a", "٧", 7.5, True, [77], {"id": 77})
    },
    "an answer lost": {"lost": True},
    "an answer cut": {"body": b'{"cluster_id": "77"}', "headers": {"Content-Length": "9999", "Connection": "close"}},
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_a_publish_without_a_clear_answer_is_unconfirmed_and_never_called_again_by_itself(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    folder, fast = factory.write_tour(tmp_path / "tour", factory.tour(2)), Watched()
    sandbox.live_after = NEVER
    sandbox.faults.append(Fault(FINISH, processed=True, **UNCLEAR[name]))
    result = upload_here(folder, sandbox, fast)
    assert result.code == (4 if re.match("40[13]", name) else 1)
    assert states(folder) == ["unconfirmed"] and [s.state for s in result.sequences] == ["unconfirmed"]
    (told,) = [text for text in fast.told("error") if "not known whether" in text]
    assert only_id(folder) in told and f"--republish {only_id(folder)}" in told
    for _ in range(2):  # it doesn't show yet
        assert upload_here(folder, sandbox).code == 1 and states(folder) == ["unconfirmed"]
    sandbox.live_after = 0
    assert upload_here(folder, sandbox).code == 0 and states(folder) == ["published"]
    assert len(sandbox.finish_calls) == 1 and len(sandbox.posts()) == 3
    assert_published_once(sandbox, 2)


def test_an_id_that_another_sequence_has_is_no_answer(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = NEVER
    assert upload_here(folder, sandbox).code == 0
    for number, latitude in ((1, 52), (2, 53)):  # one published by an earlier run, one by this run
        factory.write_tour(folder, factory.tour(2, names=f"{number}_{{}}.jpg", latitude=latitude))
    sandbox.faults.append(
        Fault(FINISH, processed=True, body={"cluster_id": sandbox.clusters[0].cluster_id}, times=None)
    )
    assert upload_here(folder, sandbox).code == 1 and states(folder) == ["published", "unconfirmed", "unconfirmed"]


def test_an_answer_lost_behind_a_proxy_is_unconfirmed(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = NEVER
    sandbox.faults.append(Fault(FINISH, lost=True))
    proxy = {
        "http_proxy": sandbox.url,
        "no_proxy": "",
        "NO_PROXY": "",
    }  # the sandbox understands what proxies are asked
    for _ in range(2):
        result = upload(folder, sandbox, env=proxy)
        assert result.code == 1 and states(folder) == ["unconfirmed"]
        assert f"--republish {only_id(folder)}" in result.err
    assert len(sandbox.finish_calls) == 1


PROXIES: dict[str, tuple[bytes | None, str]] = {  # what it answers, and what that leaves
    "refuses the tunnel": (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "uploading"),
    "is not there": (None, "uploading"),
    "hangs up": (b"", "unconfirmed"),
    "opens the tunnel and hangs up": (b"HTTP/1.1 200 Connection established\r\n\r\n", "unconfirmed"),
}


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_that_fails(sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answer, left = PROXIES[name]
    owner = account(sandbox)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    with listener.accept()[0] as peer:
                        peer.recv(4096)
                        peer.sendall(answer or b"")
                except OSError:
                    return

        listener.close() if answer is None else threading.Thread(target=serve, daemon=True).start()
        for variable, value in (
            ("no_proxy", "127.0.0.1"),
            ("NO_PROXY", ""),
            ("https_proxy", f"http://127.0.0.1:{port}"),
        ):
            monkeypatch.setenv(variable, value)
        service = mu.Service("https://graph.example", service_of(sandbox).uploads)
        result = mu.publish(mu.check_folder(folder, mu.Settings(patience=0)), owner, service, Watched())
        assert result.code == 1 and states(folder) == [left] and len(sandbox.posts()) >= 9


# ---- answers that don't ----


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, NO, 1),
        (404, NO, 1),
        (422, NO, 1),
        (401, BAD_TOKEN, 4),
        (403, graph_error("no", code=10), 4),
        (401, NO, 4),
    ],
)
def test_a_final_no_of_the_graph_api_leaves_nothing_unconfirmed(
    sandbox: Sandbox, folder: Path, status: int, body: Json, code: int
) -> None:
    sandbox.faults.append(Fault(FINISH, status=status, body=body))
    assert upload_here(folder, sandbox).code == code and states(folder) == ["uploading"]
    (sequence,) = resume_of(folder)["sequences"].values()
    assert sequence["publish_tried_at"] is None
    handles = {sequence["manifest_handle"], *(photo["file_handle"] for photo in sequence["photos"].values())}
    assert (handles == {None}) == (code == 1) and (None in handles) == (code == 1)  # they may be what is wrong
    sent = sum(post.body_size for post in sandbox.posts("jpg"))
    assert upload_here(folder, sandbox).code == 0 and len(sandbox.finish_calls) == 1
    assert sum(post.body_size for post in sandbox.posts("jpg")) == sent
    assert_published_once(sandbox, 8)


HAD_NO_EFFECT: dict[str, tuple[Json, list[float]]] = {  # answers after which the call is made again, and the waits
    "429": ({"status": 429, "headers": {"Retry-After": "3"}, "times": 5}, [3] * 5),
    **{
        f"request limit, {status} with code {code}": ({"status": status, "body": graph_error("no", code=code)}, [10])
        for status, code in ((400, 4), (400, 17), (403, 4), (403, 32), (400, 613), (403, 613))
    },
    "412 in Graph's words": ({"status": 412, "body": NO}, []),
    "421 in Graph's words": ({"status": 421, "body": NO}, [1]),
    "400, transient": ({"status": 400, "body": TRANSIENT, "times": 3}, [1, 2, 4]),
    "403, transient": ({"status": 403, "body": TRANSIENT}, [1]),
}


@pytest.mark.parametrize("name", HAD_NO_EFFECT)
def test_a_publish_that_certainly_had_no_effect_is_tried_again(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    folder, fast = factory.write_tour(tmp_path / "tour", factory.tour(2)), Watched()
    sandbox.faults.append(Fault(FINISH, **HAD_NO_EFFECT[name][0]))
    assert upload_here(folder, sandbox, fast).code == 0 and len(sandbox.finish_calls) == 1
    assert fast.waits == HAD_NO_EFFECT[name][1]


@pytest.mark.parametrize("name", ["no connection", "transient for ever"])
def test_publishes_that_never_get_through_end_with_the_patience_and_go_on_later(
    sandbox: Sandbox, folder: Path, name: str
) -> None:
    owner, service, fast = account(sandbox), service_of(sandbox), Watched()
    if name == "no connection":  # only the one of the two hosts is there
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = service._replace(graph=f"http://127.0.0.1:{listener.getsockname()[1]}")
    sandbox.faults.append(Fault(FINISH, status=400, body=TRANSIENT, times=None))
    threading.Timer(60, fast.stop.set).start()
    result = mu.publish(mu.check_folder(folder), owner, service, fast)
    assert result.code == 1 and states(folder) == ["uploading"] and sandbox.finish_calls == []
    assert sum(fast.pauses) == 600
    sandbox.clear_faults()
    assert upload_here(folder, sandbox).code == 0
    assert_published_once(sandbox, 8)


# ---- the order of things ----


def test_what_is_about_to_happen_stands_in_the_resume_file_before_it_does(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(MANIFEST, status=401))
    assert upload_here(folder, sandbox).code == 4 and resume_of(folder)["closed"] is True
    found: list[Json] = []  # what the file says as the manifest and the publish arrive

    def look(request: Request) -> bool:
        if request.path.endswith(("json", "finish_upload")) and request.method == "POST":
            found.append(resume_of(folder))
        return False

    sandbox.faults.append(Fault(look))
    assert upload_here(folder, sandbox).code == 0
    first, publishing = found
    assert first["closed"] is publishing["closed"] is False and resume_of(folder)["closed"] is True
    (sequence,) = publishing["sequences"].values()
    assert sequence["state"] == "publishing" and sequence["publish_tried_at"]
    assert sequence["manifest_handle"] == sandbox.finish_calls[0]
    assert all(photo["file_handle"] for photo in sequence["photos"].values()) and len(sequence["photos"]) == 8


def test_a_publish_waits_for_no_upload(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path / "two", factory.tour(1, names="A{}.jpg", latitude=52) | factory.tour(3))
    later = "|".join(key for name, key in keys_of(folder).items() if name != "A1.jpg")
    sandbox.faults.append(Held(f"POST.*({later})", until=lambda: was_asked(sandbox, FINISH), times=None))
    assert upload_here(folder, sandbox, workers=2).code == 0
    assert_published_once(sandbox, 4)


def test_no_photo_waits_for_a_publish_but_for_a_manifest(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for number in range(4):
        factory.write_tour(folder, factory.tour(1, names=f"{number}_{{}}.jpg", latitude=50 + number))
    sandbox.faults.append(Held(FINISH, until=lambda: was_asked(sandbox, PHOTO, 4), times=None))
    assert upload_here(folder, sandbox, workers=1).code == 0
    assert [post.path[-3:] for post in sandbox.posts()] == ["jpg", "son"] * 4
    assert_published_once(sandbox, 4)


def test_a_stopped_run_gives_a_publish_a_moment_to_answer(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.live_after, folder = NEVER, tmp_path / "tour"
    for number in range(3):  # a machine that stands still for seconds has more than one chance
        factory.write_tour(folder, factory.tour(1, names=f"{number}_{{}}.jpg", latitude=40 + number))
        stopped = Watched()
        sandbox.faults = [when_asked(FINISH, stopped.stop.set), Fault(FINISH, delay=0.4, times=None)]
        assert upload_here(folder, sandbox, stopped).code == 130
        if "published" in states(folder):
            return
    pytest.fail("it was not awaited")


def test_a_sequence_is_published_although_another_is_unconfirmed_or_fails(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = NEVER
    for number, latitude in ((1, 52), (2, 53)):
        factory.write_tour(folder, factory.tour(2, names=f"{number}_{{}}.jpg", latitude=latitude))
    sandbox.faults += [Fault(FINISH, status=500), Fault(FINISH, status=400, body=NO)]
    assert upload_here(folder, sandbox).code == 1
    assert sorted(states(folder)) == ["published", "unconfirmed", "uploading"] and len(sandbox.finish_calls) == 1


def test_no_publish_begins_once_the_run_ends(sandbox: Sandbox, folder: Path) -> None:
    """A publish waits for the rate limit when the run is stopped: it was certainly not made."""

    def stop(ended: Callable[[], bool]) -> None:
        fast.stop.set()
        wait_until(ended)

    fast = Watched(Waiting(400, stop))
    sandbox.faults.append(Fault(FINISH, status=429, headers={"Retry-After": "500"}))
    assert upload_here(folder, sandbox, fast).code == 130 and states(folder) == ["uploading"]
    assert sandbox.finish_calls == [] and upload_here(folder, sandbox).code == 0


@pytest.mark.parametrize("ending", ["stop", "401"])
def test_a_manifest_that_arrives_as_the_run_ends_is_not_published(
    sandbox: Sandbox, tmp_path: Path, ending: str
) -> None:
    folder, fast = factory.write_tour(tmp_path / "tour", factory.tour(2)), Watched()
    factory.write_tour(folder, factory.tour(2, names="B{}.jpg", latitude=52))
    factory.write_tour(folder, factory.tour(1, names="C{}.jpg", latitude=53))
    sandbox.live_after, ended, last = NEVER, threading.Event(), f"POST /{keys_of(folder)['C1.jpg']}"

    def end() -> bool:
        if was_asked(sandbox, MANIFEST, 2) and was_asked(sandbox, FINISH) and was_asked(sandbox, last):
            fast.stop.set() if ending == "stop" else None
            ended.set()
        return ended.is_set()

    refusal: Json = {} if ending == "stop" else {"status": 401, "body": BAD_TOKEN}

    def told() -> bool:
        return end() and (ending == "stop" or any("401" in text for _, text in fast.messages))

    sandbox.faults += [Held(MANIFEST, after=1, until=told), Held(FINISH, until=end)]
    sandbox.faults.append(Held(last, until=end, **refusal))
    assert upload_here(folder, sandbox, fast).code == (130 if ending == "stop" else 4)
    assert (
        len(sandbox.finish_calls) == 1
        and sorted(states(folder))[1:] == ["uploading", "uploading"][: len(states(folder)) - 1]
    )
    sandbox.clear_faults()
    sandbox.live_after = 0
    assert upload_here(folder, sandbox).code == 0
    assert_published_once(sandbox, 5)


MOMENTS: dict[
    str, tuple[Json, set[str], int]
] = {  # when the run is killed, what the file says then, the next run's code
    "while a photo is sent": ({"match": PHOTO}, set(), 0),
    "while the manifest is sent": ({"match": MANIFEST}, set(), 0),
    "before the publish takes effect": ({"match": FINISH}, {"publishing"}, 1),
    "after the publish has taken effect": ({"match": FINISH, "processed": True}, {"publishing"}, 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_between_the_steps(sandbox: Sandbox, folder: Path, moment: str) -> None:
    fault, saved, code = MOMENTS[moment]
    sandbox.faults.append(Fault(hang=3600, times=None, **fault))
    with started(folder, sandbox) as process:
        wait_until(lambda: was_asked(sandbox, fault["match"]) and (not saved or set(states(folder)) == saved))
        wait_until(lambda: fault["match"] != FINISH or len(sandbox.finish_calls) == fault.get("processed", 0))
        kill(process, sandbox)
    assert resume_of(folder)["closed"] is False and set(states(folder)) <= (saved or {"uploading"})
    sandbox.clear_faults()
    assert upload_here(folder, sandbox).code == code and (set(states(folder)) == {"published"}) == (code == 0)
    if code:
        assert upload_here(folder, sandbox).code == 1 and sandbox.finish_calls == []
        assert republish(folder, sandbox).code == 0
    assert_published_once(sandbox, 8)


def test_killed_after_the_result_is_saved(sandbox: Sandbox, folder: Path) -> None:
    factory.write_tour(folder, factory.tour(2, names="X{}.jpg", latitude=52))
    sandbox.live_after = NEVER
    others = [key for name, key in keys_of(folder).items() if name.startswith("X")]
    sandbox.faults.append(Fault("POST.*" + "|".join(others), hang=3600, times=None))
    with started(folder, sandbox) as process:
        wait_until(lambda: sandbox.clusters and "published" in states(folder))
        kill(process, sandbox)
    sandbox.clear_faults()
    before, first = len(sandbox.requests), {f"/{photo.session_key}" for photo in sandbox.published}
    assert upload_here(folder, sandbox).code == 0 and len(sandbox.clusters) == 2
    assert not first & {request.path for request in sandbox.requests[before:]}


# ---- --republish ID ----


def aged(folder: Path, hours: float) -> None:
    """Make the file handles in the resume file so old."""
    then = (datetime.now(timezone.utc) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    path = folder / "mapillary_uploader.json"
    path.write_text(re.sub(r'"uploaded_at": "[^"]*"', f'"uploaded_at": "{then}"', path.read_text()))


def test_republish_sends_the_same_manifest_again_and_warns_of_a_second_copy(
    sandbox: Sandbox, unconfirmed: Path
) -> None:
    factory.write_tour(unconfirmed, factory.tour(2, names="B{}.jpg", latitude=52))
    sandbox.faults.append(Fault(FINISH, lost=True))
    assert upload_here(unconfirmed, sandbox).code == 1 and states(unconfirmed) == ["unconfirmed"] * 2
    aged(unconfirmed, 47)
    first, posts, fast = next(iter(resume_of(unconfirmed)["sequences"])), len(sandbox.posts()), Watched()
    result = upload_here(unconfirmed, sandbox, fast, republish=frozenset([first]))
    assert result.code == 1 and states(unconfirmed) == ["published", "unconfirmed"]  # the other one isn't meant
    assert sandbox.finish_calls[2:] == sandbox.finish_calls[:1] and len(sandbox.posts()) == posts
    assert [text for _, text in fast.messages if first in text and "a second copy on Mapillary is possible" in text]


def test_republish_uploads_anew_what_has_expired_or_changed(sandbox: Sandbox, unconfirmed: Path) -> None:
    aged(unconfirmed, 49)
    sandbox.forget_uploads()
    posts, fast = len(sandbox.posts()), Watched()
    assert republish(unconfirmed, sandbox, fast).code == 0 and len(sandbox.posts()) == posts + 9
    assert [text for _, text in fast.messages if "a second copy on Mapillary is possible" in text]
    assert len(sandbox.clusters) == 2 and [p.md5 for p in sandbox.clusters[0].photos] == [
        p.md5 for p in sandbox.clusters[1].photos
    ]


def test_republish_after_photos_were_blurred_sends_the_blurred_ones(sandbox: Sandbox, unconfirmed: Path) -> None:
    factory.write_tour(unconfirmed, factory.tour(8, picture="blurred"))
    result = republish(unconfirmed, sandbox)
    assert result.code == 0 and len(sandbox.clusters) == 2
    before, after = ({photo.md5 for photo in cluster.photos} for cluster in sandbox.clusters)
    assert len(after) == 8 and not before & after


def test_republish_is_a_full_run(sandbox: Sandbox, unconfirmed: Path) -> None:
    factory.write_tour(unconfirmed, factory.tour(2, names="B{}.jpg", latitude=52))
    assert republish(unconfirmed, sandbox).code == 0 and states(unconfirmed) == ["published"] * 2
    assert sizes(sandbox) in ([8, 8, 2], [8, 2, 8])


def test_republish_looks_first_and_calls_nothing_where_the_photos_are_there(
    sandbox: Sandbox, unconfirmed: Path
) -> None:
    sandbox.live_after = 0
    assert republish(unconfirmed, sandbox).code == 0 and len(sandbox.finish_calls) == 1


ANSWERS: dict[str, Json] = {
    "500": {"status": 500}, "HTML": {"body": b"<html>"}, "{}": {"body": {}}, "data null": {"body": {"data": None}},
    "an error with 200": {"body": NO}, "cut JSON": {"body": b'{"data": ['}, "400": {"status": 400, "body": NO},
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_republish_does_nothing_where_the_look_up_fails(sandbox: Sandbox, unconfirmed: Path, answer: str) -> None:
    sandbox.faults.append(Fault(IMAGES, times=None, **ANSWERS[answer]))
    assert republish(unconfirmed, sandbox).code == 1 and states(unconfirmed) == ["unconfirmed"]
    assert len(sandbox.finish_calls) == 1 and len(sandbox.posts()) == 9


BREAKS: dict[str, Json] = {  # what breaks a --republish off; `aged` where it uploads anew
    "a rejected photo": {},
    "a photo that doesn't arrive": {"match": PHOTO, "status": 500},
    "a photo refused": {"match": PHOTO, "status": 400},
    "a manifest refused": {"match": MANIFEST, "status": 400},
    "a token refused": {"match": PHOTO, "status": 401},
    "a publish refused": {"match": FINISH, "status": 400, "body": NO},
    "a publish refused with 401": {"match": FINISH, "status": 401, "body": BAD_TOKEN},
    "a publish put off for ever": {"match": FINISH, "status": 429},
    "a publish put off as transient": {"match": FINISH, "status": 400, "body": TRANSIENT},
    "a publish without an answer": {"match": FINISH, "status": 500},
    "a full disk": {},
    "a kill": {"match": PHOTO, "hang": 3600},
}


@pytest.mark.parametrize(
    ("trouble", "anew"),
    [
        (name, anew)
        for name, fault in BREAKS.items()
        for anew in (False, True)
        if anew or fault.get("match") in (None, FINISH)
    ],
)
def test_however_a_republish_breaks_off_the_sequence_stays_unconfirmed(
    sandbox: Sandbox, unconfirmed: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, anew: bool
) -> None:
    fault, uuid = BREAKS[trouble], only_id(unconfirmed)
    if anew:
        aged(unconfirmed, 49)
        sandbox.forget_uploads()
    sandbox.faults += [Fault(times=None, **fault)] if fault else []
    calls, writes, fsync = len(sandbox.finish_calls), itertools.count(), os.fsync
    if trouble == "a kill":
        with started(unconfirmed, sandbox, "--republish", uuid) as process:
            wait_until(lambda: was_asked(sandbox, PHOTO, 9))
            process.kill()
    elif trouble == "a full disk":

        def full(handle: int) -> None:
            if next(writes) >= 2:  # the first save is of the start
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert republish(unconfirmed, sandbox).code == 1
    else:
        if trouble == "a rejected photo":
            (unconfirmed / "bad.jpg").write_bytes(b"")
        code = 4 if "401" in trouble or "token" in trouble else 1
        assert republish(unconfirmed, sandbox, patience=0).code == code
    assert len(sandbox.finish_calls) == calls
    sandbox.clear_faults()
    (unconfirmed / "bad.jpg").unlink(missing_ok=True)
    assert upload_here(unconfirmed, sandbox).code == 1 and len(sandbox.finish_calls) == calls
    assert states(unconfirmed) == ["unconfirmed"] and only_id(unconfirmed) == uuid
    assert len(resume_of(unconfirmed)["sequences"][uuid]["photos"]) == 8
    assert republish(unconfirmed, sandbox).code == 0 and sizes(sandbox) == [8, 8]


def test_republish_wants_all_photos_back(sandbox: Sandbox, unconfirmed: Path) -> None:
    victim = unconfirmed / "GS0003_calculated.jpg"
    good = victim.read_bytes()
    victim.unlink()
    result = upload(unconfirmed, sandbox, "--republish", only_id(unconfirmed))
    assert result.code == 1 and victim.name in result.err and "put them back" in result.err
    assert states(unconfirmed) == ["unconfirmed"] and len(sandbox.finish_calls) == 1
    victim.write_bytes(good)
    assert republish(unconfirmed, sandbox).code == 0 and sizes(sandbox) == [8, 8]


@pytest.mark.parametrize("renamed", [False, True], ids=["one is gone", "one was renamed and the look-up fails"])
def test_a_republish_that_does_nothing_forgets_no_photo(sandbox: Sandbox, unconfirmed: Path, renamed: bool) -> None:
    factory.write_tour(unconfirmed, factory.tour(2, names="B{}.jpg", latitude=52))  # so that the file is saved
    victim, elsewhere, uuid = (
        unconfirmed / "GS0003_calculated.jpg",
        unconfirmed.parent / "gone.jpg",
        only_id(unconfirmed),
    )
    victim.rename(unconfirmed / "renamed.jpg" if renamed else elsewhere)
    sandbox.faults += [Fault(IMAGES, status=400, body=NO)] * renamed
    settings: Json = {"republish": frozenset([uuid]), "skip_invalid": True}
    assert upload_here(unconfirmed, sandbox, **settings).code == 1 and sizes(sandbox) == [8, 2]
    assert len(resume_of(unconfirmed)["sequences"][uuid]["photos"]) == 8
    if not renamed:
        elsewhere.rename(victim)
    assert upload_here(unconfirmed, sandbox).code == 1 and sizes(sandbox) == [8, 2]
    assert upload_here(unconfirmed, sandbox, **settings).code == 0 and sizes(sandbox) == [8, 2, 8]


def test_republish_stopped_in_the_call_stays_unconfirmed(sandbox: Sandbox, unconfirmed: Path) -> None:
    sandbox.faults.append(Fault(FINISH, hang=3600))
    with started(unconfirmed, sandbox, "--republish", only_id(unconfirmed)) as process:
        wait_until(lambda: was_asked(sandbox, FINISH, 2))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert upload_here(unconfirmed, sandbox).code == 1 and states(unconfirmed) == ["unconfirmed"]
    assert len(sandbox.finish_calls) == 1


def test_photos_of_an_unconfirmed_sequence_are_never_sent_by_themselves(sandbox: Sandbox, unconfirmed: Path) -> None:
    aged(unconfirmed, 100)
    for path in unconfirmed.glob("*.jpg"):
        os.utime(path, (1, 1))
    victim = min(unconfirmed.glob("*.jpg"))
    victim.rename(unconfirmed / "renamed.jpg")
    (unconfirmed / "GS0002_calculated.jpg").unlink()
    factory.write_tour(
        unconfirmed, dict(itertools.islice(factory.tour(3, sequence_id="anew", names="A{}.jpg").items(), 2, 3))
    )
    posts = len(sandbox.posts())
    assert upload_here(unconfirmed, sandbox).code == 1 and len(sandbox.posts()) == posts
    assert states(unconfirmed) == ["unconfirmed"]


# ---- what others have sent; what is refused later ----


@pytest.mark.parametrize("failures", [0, 2])
def test_bytes_that_nobody_here_sent_are_not_published(sandbox: Sandbox, tmp_path: Path, failures: int) -> None:
    here, other = factory.write_tour(tmp_path / "here", factory.tour(1)), tmp_path / "other"
    shutil.copytree(here, other)
    sandbox.faults.append(Fault(FINISH, status=401, body=BAD_TOKEN))
    assert upload_here(here, sandbox).code == 4
    sandbox.faults.append(Fault(OFFSET, status=500, times=failures))  # it must be asked more than once
    result = upload_here(other, sandbox)
    assert result.code == 3 and sandbox.clusters == [] and [s.state for s in result.sequences] == ["held"]
    held = frozenset(sequence.uuid for sequence in result.sequences)
    assert upload_here(other, sandbox, republish=held).code == 0
    assert_published_once(sandbox, 1)


@pytest.mark.parametrize("handle", ["expired", "forgotten"])
def test_a_photo_that_is_refused_later_is_not_published_with_its_old_handle(
    sandbox: Sandbox, folder: Path, handle: str
) -> None:
    sandbox.faults.append(Fault(FINISH, status=400 if handle == "forgotten" else 401, body=NO))
    upload_here(folder, sandbox)
    aged(folder, 49)
    refused = next(key for key in sandbox.uploads if key.endswith("jpg"))
    sandbox.faults.append(Fault(refused, status=400, times=None))
    assert upload_here(folder, sandbox, skip_invalid=True).code == 3 and states(folder) == ["published"]
    assert len(sandbox.published) == 7 and refused not in [photo.session_key for photo in sandbox.published]
