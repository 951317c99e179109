"""README, "When something fails", publishing: what can't be undone is done once, or it is said that nobody knows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

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
from sandbox import Fault, Sandbox, graph_error, upload_error
from support import NEVER, account, add_sequences, full_disk, resume_of, service_of, sizes, upload_here

SECOND_COPY = "a second copy on Mapillary is possible"


def only_id(folder: Path) -> str:
    """The id of the one sequence in the resume file."""
    (uuid,) = resume_of(folder)["sequences"]
    return str(uuid)


def republish(folder: Path, sandbox: Sandbox, run: mu.Run | None = None, **settings: float) -> mu.Result:
    """A run with --republish for the first sequence."""
    return upload_here(folder, sandbox, run, republish=frozenset([*resume_of(folder)["sequences"]][:1]), **settings)


@pytest.fixture
def unconfirmed(sandbox: Sandbox, folder: Path) -> Path:
    """A folder that was published, but the answer was lost and no photo shows yet."""
    sandbox.live_after = NEVER
    sandbox.faults.append(Fault(FINISH, lost=True))
    assert upload_here(folder, sandbox).code == 1 and states(folder) == ["unconfirmed"]
    return folder


# ---- answers to the call ----

UNCLEAR: dict[str, Json] = {  # these leave it open whether the call has worked
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
    "an answer lost behind a proxy": {"lost": True},
    "an answer cut": {"body": b'{"cluster_id": "77"}', "headers": {"Content-Length": "9999", "Connection": "close"}},
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_a_publish_without_a_clear_answer_is_unconfirmed_and_never_called_again_by_itself(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if "proxy" in name:  # the sandbox understands what proxies are asked
        for variable, value in {"http_proxy": sandbox.url, "no_proxy": "", "NO_PROXY": ""}.items():
            monkeypatch.setenv(variable, value)
    folder, watched = factory.write_tour(tmp_path / "tour", factory.tour(2)), Watched()
    sandbox.live_after = NEVER
    sandbox.faults.append(Fault(FINISH, processed=True, **UNCLEAR[name]))
    result = upload_here(folder, sandbox, watched)
    assert result.code == (4 if re.match("40[13]", name) else 1)
    assert states(folder) == ["unconfirmed"] and [s.state for s in result.sequences] == ["unconfirmed"]
    (told,) = [text for text in watched.told("error") if "not known whether" in text]
    assert f"--republish {only_id(folder)}" in told
    for _ in range(2):  # it doesn't show yet
        assert upload_here(folder, sandbox).code == 1 and states(folder) == ["unconfirmed"]
    sandbox.live_after = 0
    assert upload_here(folder, sandbox).code == 0 and states(folder) == ["published"]
    assert len(sandbox.finish_calls) == 1 and len(sandbox.posts()) == 3
    assert_published_once(sandbox, 2)


def test_an_id_that_another_sequence_has_is_no_answer(sandbox: Sandbox, folder: Path) -> None:
    sandbox.live_after = NEVER
    assert upload_here(folder, sandbox).code == 0
    other: Json = {"cluster_id": sandbox.clusters[0].cluster_id}  # of an earlier run's, then also of this run's
    sandbox.faults.append(Fault(FINISH, processed=True, body=other, times=None))
    assert upload_here(add_sequences(folder, 2, 2), sandbox).code == 1
    assert states(folder) == ["published", "unconfirmed", "unconfirmed"]


PROXIES: dict[str, tuple[bytes | None, str]] = {  # what it answers, and what that leaves
    "refuses the tunnel": (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "uploading"),
    "is not there": (None, "uploading"),
    "hangs up": (b"", "unconfirmed"),
    "opens the tunnel and hangs up": (b"HTTP/1.1 200 Connection established\r\n\r\n", "unconfirmed"),
}


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_that_fails(sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (answer, left), owner = PROXIES[name], account(sandbox)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as peer:
                        peer.recv(4096)
                        peer.sendall(answer or b"")

        listener.close() if answer is None else threading.Thread(target=serve, daemon=True).start()
        for variable, value in {"no_proxy": "127.0.0.1", "NO_PROXY": "", "https_proxy": proxy}.items():
            monkeypatch.setenv(variable, value)
        service = mu.Service("https://graph.example", service_of(sandbox).uploads)
        result = mu.publish(mu.check_folder(folder, mu.Settings(patience=0)), owner, service, Watched())
        assert result.code == 1 and states(folder) == [left] and len(sandbox.posts()) >= 9


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [(400, NO, 1), (404, NO, 1), (422, NO, 1), (401, NO, 4), (401, BAD_TOKEN, 4), (403, graph_error("no", code=10), 4)],
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


@pytest.mark.parametrize("name", ["no connection", "transient for ever"])
def test_publishes_that_never_get_through_end_with_the_patience_and_go_on_later(
    sandbox: Sandbox, folder: Path, name: str
) -> None:
    owner, service, watched = account(sandbox), service_of(sandbox), Watched()
    if name == "no connection":  # only the one of the two hosts is there
        with socket.create_server(("127.0.0.1", 0)) as listener:
            service = service._replace(graph=f"http://127.0.0.1:{listener.getsockname()[1]}")
    sandbox.faults.append(Fault(FINISH, status=400, body=TRANSIENT, times=None))
    result = mu.publish(mu.check_folder(folder), owner, service, watched)
    assert result.code == 1 and states(folder) == ["uploading"] and sandbox.finish_calls == []
    assert sum(watched.pauses) == 600
    sandbox.clear_faults()
    assert upload_here(folder, sandbox).code == 0
    assert_published_once(sandbox, 8)


# ---- the order of things ----


def test_what_is_about_to_happen_stands_in_the_resume_file_before_it_does(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(MANIFEST, status=401))
    assert upload_here(folder, sandbox).code == 4 and resume_of(folder)["closed"] is True
    found: list[Json] = []  # what the file says as the manifest and the publish arrive
    sandbox.faults = [when_asked(match, lambda: found.append(resume_of(folder))) for match in (MANIFEST, FINISH)]
    assert upload_here(folder, sandbox).code == 0
    first, publishing = found
    assert first["closed"] is publishing["closed"] is False and resume_of(folder)["closed"] is True
    (sequence,) = publishing["sequences"].values()
    assert sequence["state"] == "publishing" and sequence["publish_tried_at"]
    assert sequence["manifest_handle"] == sandbox.finish_calls[0]
    assert all(photo["file_handle"] for photo in sequence["photos"].values()) and len(sequence["photos"]) == 8


def test_a_publish_waits_for_no_upload_and_no_photo_for_a_publish_but_for_a_manifest(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    folder = add_sequences(tmp_path / "two", 1, 3)
    later = "|".join(key for name, key in keys_of(folder).items() if name != "A1.jpg")
    sandbox.faults.append(Held(f"POST.*({later})", until=lambda: was_asked(sandbox, FINISH), times=None))
    assert upload_here(folder, sandbox, workers=2).code == 0
    assert_published_once(sandbox, 4)
    sandbox.reset()
    sandbox.faults = [Held(FINISH, until=lambda: was_asked(sandbox, PHOTO, 4), times=None)]
    assert upload_here(add_sequences(tmp_path / "four", 1, 1, 1, 1), sandbox, workers=1).code == 0
    assert [post.path[-3:] for post in sandbox.posts()] == ["jpg", "son"] * 4
    assert_published_once(sandbox, 4)


def test_a_sequence_is_published_although_another_is_unconfirmed_or_fails(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.faults += [Fault(FINISH, status=500), Fault(FINISH, status=400, body=NO)]
    assert upload_here(folder := add_sequences(tmp_path / "tour", 2, 2, 2), sandbox).code == 1
    assert sorted(states(folder)) == ["published", "unconfirmed", "uploading"] and len(sandbox.finish_calls) == 1


def test_a_stopped_run_gives_a_publish_a_moment_to_answer(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.live_after = NEVER
    for number in range(3):  # a machine that stands still for seconds has more than one chance
        folder, stopped = factory.write_tour(tmp_path / str(number), factory.tour(1, latitude=number)), Watched()
        sandbox.faults = [when_asked(FINISH, stopped.stop.set), Fault(FINISH, delay=0.4, times=None)]
        assert upload_here(folder, sandbox, stopped).code == 130
        if states(folder) == ["published"]:
            return
    pytest.fail("it was not awaited")


@pytest.mark.parametrize("ending", ["stop", "401"])
def test_a_manifest_that_arrives_as_the_run_ends_is_not_published(
    sandbox: Sandbox, tmp_path: Path, ending: str
) -> None:
    folder, watched, stop = add_sequences(tmp_path / "tour", 2, 2, 1), Watched(), ending == "stop"
    sandbox.live_after, ended, last = NEVER, threading.Event(), f"POST /{keys_of(folder)['C1.jpg']}"

    def end() -> bool:
        if was_asked(sandbox, MANIFEST, 2) and was_asked(sandbox, FINISH) and was_asked(sandbox, last):
            watched.stop.set() if stop else None
            ended.set()
        return ended.is_set()

    def told() -> bool:
        return end() and (stop or any("401" in text for _, text in watched.messages))

    refusal: Json = {} if stop else {"status": 401, "body": BAD_TOKEN}
    sandbox.faults += [Held(MANIFEST, after=1, until=told), Held(FINISH, until=end), Held(last, until=end, **refusal)]
    assert upload_here(folder, sandbox, watched).code == (130 if stop else 4) and len(sandbox.finish_calls) == 1
    assert {*sorted(states(folder))[1:]} <= {"uploading"}  # but the first
    sandbox.clear_faults()
    sandbox.live_after = 0
    assert upload_here(folder, sandbox).code == 0
    assert_published_once(sandbox, 5)


MOMENTS: dict[str, tuple[Json, str, int]] = {  # of a kill; what the file says then, and the next run's code
    "while a photo is sent": ({"match": PHOTO}, "uploading", 0),
    "while the manifest is sent": ({"match": MANIFEST}, "uploading", 0),
    "before the publish takes effect": ({"match": FINISH}, "publishing", 1),
    "after the publish has taken effect": ({"match": FINISH, "processed": True}, "publishing", 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_between_the_steps(sandbox: Sandbox, folder: Path, moment: str) -> None:
    fault, saved, code = MOMENTS[moment]
    sandbox.faults.append(Fault(hang=3600, times=None, **fault))
    with started(folder, sandbox) as process:
        wait_until(lambda: was_asked(sandbox, fault["match"]) and states(folder) == [saved])
        wait_until(lambda: len(sandbox.finish_calls) == fault.get("processed", 0))
        with pytest.raises(mu.UploaderError, match="another run is at work"):
            upload_here(folder, sandbox)
        kill(process, sandbox)
    assert resume_of(folder)["closed"] is False and states(folder) == [saved]
    sandbox.clear_faults()
    assert upload_here(folder, sandbox).code == code and (states(folder) == ["published"]) == (code == 0)
    if code:
        assert upload_here(folder, sandbox).code == 1 and sandbox.finish_calls == []
        assert republish(folder, sandbox).code == 0
    assert_published_once(sandbox, 8)


# ---- --republish ID ----


def aged(folder: Path, hours: float) -> None:
    """Make the file handles in the resume file so old."""
    then = (datetime.now(timezone.utc) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    path = folder / "mapillary_uploader.json"
    path.write_text(re.sub(r'"uploaded_at": "[^"]*"', f'"uploaded_at": "{then}"', path.read_text()))


def test_republish_sends_the_same_manifest_again_and_warns_of_a_second_copy(
    sandbox: Sandbox, unconfirmed: Path
) -> None:
    sandbox.faults.append(Fault(FINISH, lost=True))
    assert upload_here(add_sequences(unconfirmed, 2), sandbox).code == 1 and states(unconfirmed) == ["unconfirmed"] * 2
    aged(unconfirmed, 47)
    first, posts, watched = next(iter(resume_of(unconfirmed)["sequences"])), len(sandbox.posts()), Watched()
    assert republish(unconfirmed, sandbox, watched).code == 1
    assert states(unconfirmed) == ["published", "unconfirmed"]  # the other one isn't meant
    assert sandbox.finish_calls[2:] == sandbox.finish_calls[:1] and len(sandbox.posts()) == posts
    assert [text for _, text in watched.messages if first in text and SECOND_COPY in text]


@pytest.mark.parametrize("change", ["expired", "blurred"])
def test_republish_uploads_what_has_expired_or_changed_and_is_a_full_run(
    sandbox: Sandbox, unconfirmed: Path, change: str
) -> None:
    if change == "expired":
        aged(unconfirmed, 49)
        sandbox.forget_uploads()
    else:
        factory.write_tour(unconfirmed, factory.tour(8, picture="blurred"))
    posts, watched = len(sandbox.posts()), Watched()
    assert republish(add_sequences(unconfirmed, 2), sandbox, watched).code == 0
    assert states(unconfirmed) == ["published"] * 2 and sorted(sizes(sandbox)) == [2, 8, 8]
    assert len(sandbox.posts()) == posts + 9 + 3 and SECOND_COPY in str(watched.messages)
    first, second = ({photo.md5 for photo in each.photos} for each in sandbox.clusters if len(each.photos) == 8)
    assert len(second) == 8 and (first == second if change == "expired" else not first & second)


LOOKS: dict[str, Json] = {
    "500": {"status": 500}, "400": {"status": 400, "body": NO}, "HTML": {"body": b"<html>"}, "{}": {"body": {}},
    "data null": {"body": {"data": None}}, "other data": {"body": {"data": {"id": "1"}}},
    "an error with 200": {"body": NO}, "cut JSON": {"body": b'{"data": ['},
}  # fmt: skip


@pytest.mark.parametrize("answer", LOOKS)
def test_republish_looks_first_and_does_nothing_where_that_fails_or_finds_the_photos(
    sandbox: Sandbox, unconfirmed: Path, answer: str
) -> None:
    before = resume_of(unconfirmed)["sequences"]
    sandbox.faults.append(Fault(IMAGES, times=None, **LOOKS[answer]))
    assert republish(unconfirmed, sandbox).code == 1 and resume_of(unconfirmed)["sequences"] == before
    sandbox.clear_faults()
    sandbox.live_after = 0
    assert republish(unconfirmed, sandbox).code == 0 and states(unconfirmed) == ["published"]
    assert len(sandbox.finish_calls) == 1 and len(sandbox.posts()) == 9


BREAKS: dict[str, Json] = {  # what breaks a --republish off
    "a rejected photo": {},
    "a photo that is gone": {},
    "photos that are all gone": {},
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
    "a stop in the call": {"match": FINISH, "hang": 3600},
}


@pytest.mark.parametrize(
    ("trouble", "anew"),  # where it needs not upload anew, no photo and no manifest is sent
    [(name, anew) for name in BREAKS for anew in (False, True) if anew or BREAKS[name].get("match") in (None, FINISH)],
)
def test_however_a_republish_breaks_off_the_sequence_stays_unconfirmed(
    sandbox: Sandbox, unconfirmed: Path, trouble: str, anew: bool
) -> None:
    fault, uuid, bad = BREAKS[trouble], only_id(unconfirmed), unconfirmed / "bad.jpg"
    gone = {"a photo that is gone": 1, "photos that are all gone": 8}.get(trouble, 0)
    photos = {path: path.read_bytes() for path in sorted(unconfirmed.glob("*.jpg"))}
    if anew:
        aged(unconfirmed, 49)
        sandbox.forget_uploads()
    sandbox.faults += [Fault(times=None, **fault)] if fault else []
    if "hang" in fault:
        number, asked = (signal.SIGTERM, 2) if fault["match"] == FINISH else (signal.SIGKILL, 9)
        with started(unconfirmed, sandbox, "--republish", uuid) as process:
            wait_until(lambda: was_asked(sandbox, fault["match"], asked))
            process.send_signal(number)
            process.communicate(timeout=60)
        assert process.returncode == (143 if number == signal.SIGTERM else -number)
    else:
        if trouble == "a rejected photo":
            bad.touch()
        for path in [*photos][:gone]:
            path.unlink()
        with full_disk(3 if "disk" in trouble else 10**9):  # the first save is of the start
            result = republish(unconfirmed, sandbox, patience=0)
        assert result.code == (4 if "401" in trouble or "token" in trouble else 1)
    if gone:
        assert re.search(f"put them back.*{min(photos).name}", str(result.sequences[0].problems))
    for path in [*photos][:gone]:
        path.write_bytes(photos[path])
    sandbox.clear_faults()
    bad.unlink(missing_ok=True)
    posts = len(sandbox.posts())
    assert upload_here(unconfirmed, sandbox).code == 1 and len(sandbox.posts()) == posts
    assert states(unconfirmed) == ["unconfirmed"] and only_id(unconfirmed) == uuid and len(sandbox.finish_calls) == 1
    assert len(resume_of(unconfirmed)["sequences"][uuid]["photos"]) == 8
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


def test_photos_of_an_unconfirmed_sequence_are_never_sent_by_themselves(sandbox: Sandbox, unconfirmed: Path) -> None:
    aged(unconfirmed, 100)
    for path in unconfirmed.glob("*.jpg"):
        os.utime(path, (1, 1))
    min(unconfirmed.glob("*.jpg")).rename(unconfirmed / "renamed.jpg")
    (unconfirmed / "GS0002_calculated.jpg").unlink()
    tagged_anew = factory.tour(3, sequence_id="anew", names="A{}.jpg")
    (unconfirmed / "A3.jpg").write_bytes(tagged_anew["A3.jpg"])
    posts = len(sandbox.posts())
    assert upload_here(unconfirmed, sandbox).code == 1 and len(sandbox.posts()) == posts
    assert states(unconfirmed) == ["unconfirmed"]


# ---- what others have sent; what is refused later ----


def test_bytes_that_nobody_here_sent_are_not_published(sandbox: Sandbox, tmp_path: Path) -> None:
    here, other = factory.write_tour(tmp_path / "here", factory.tour(1)), tmp_path / "other"
    shutil.copytree(here, other)
    sandbox.faults.append(Fault(FINISH, status=401, body=BAD_TOKEN))
    assert upload_here(here, sandbox).code == 4
    sandbox.faults.append(Fault(OFFSET, status=500, times=2))  # it must be asked more than once
    result = upload_here(other, sandbox)
    assert result.code == 3 and sandbox.clusters == [] and [s.state for s in result.sequences] == ["held"]
    assert upload_here(other, sandbox, republish=frozenset([result.sequences[0].uuid])).code == 0
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
