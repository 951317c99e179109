#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["requests>=2.32", "piexif>=1.1.3", "Pillow>=10", "click>=8.1"]
# ///
"""Mapillary Uploader: checks, describes, uploads and publishes a folder of 360° photos.

    python mapillary_uploader.py -d photos/ -u user

The photos are those that Trek View's Sequence Maker has tagged. Four steps, which stand right behind the records:

1. read and check every photo of the folder; nothing is sent before all are judged;
2. plan: group photos into sequences, order them, cut them to Mapillary's limits, describe each;
3. upload each photo, with Mapillary's description in place of Sequence Maker's JSON;
4. publish each sequence as soon as all its photos are there.

What was done is kept in `mapillary_uploader.json` in the folder, so that a run that was broken off goes on where it
stopped and no photo is published twice. The photos themselves are never changed.

From Python: `check_folder` does steps 1 and 2, `publish` does 3 and 4, `check_live` asks what is live. They work in any
thread, print nothing, and leave no thread or connection behind; what goes wrong is an `UploaderError`.

One `Photo` goes through all four steps, and each step fills in what it finds out. Times are integers, milliseconds
since 1970 in UTC, unless a name says else; positions are degrees, lengths metres.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # Ctrl-C shows no traceback while modules load
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import base64
import configparser
import contextlib
import errno
import hashlib
import html
import io
import json
import math
import re
import shlex
import socket
import stat
import statistics
import struct
import sys
import threading
import time
import traceback
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from functools import lru_cache, partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from xml.etree import ElementTree

try:
    import click
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"error: the package {missing.name} is not installed: pip install -r requirements.txt\n")
    sys.exit(2)

if TYPE_CHECKING:
    import requests

# requests, Pillow and piexif are imported where they are used: --help and usage errors answer at once without them.

__version__ = "2.0.0"

T = TypeVar("T")

MAX_PIXELS = 100_000_000  # one photo, width x height; our own limit
MAX_BYTES = 50 * 1024 * 1024  # one photo; our own limit
MAX_HEADER_BYTES = 16 * 1024 * 1024  # ours: what may stand before the pixels (extended XMP of depth photos is ~5 MB)
SEQUENCE_PHOTOS = 1_000  # mapillary_tools 0.14.7, constants.MAX_SEQUENCE_LENGTH
SEQUENCE_PIXELS = 6_000_000_000  # mapillary_tools 0.14.7, constants.MAX_SEQUENCE_PIXELS
FASTEST_KMH = 400  # mapillary_tools 0.14.7, constants.MAX_CAPTURE_SPEED_KMH
LEAP_METRES = 1_000  # up to it a fast leg is a warning; one of under 50 m, in a second at least, is never fast
EARLIEST_CAPTURE = 946_684_800_000  # 2000-01-01: a clock before it was never set
EARLIEST_NOW = 1_767_225_600_000  # 2026-01-01, older than this program: a machine's clock before it is wrong
MINUTE, DAY = 60_000, 86_400_000
HANDLE_LIFE = 2 * DAY  # the official client's; about 96 h seems to be the server's
OVERDUE_DAYS, RENEW_DAYS = 7, 7
COPYING_SECONDS = 600  # a younger folder in which a connected photo is missing is still being copied
BLOCK = 1024 * 1024  # read from disk and hashed at a time
PIECE = 16 * 1024  # handed to the network at a time
CONNECT_SECONDS, ANSWER_SECONDS, SLOWEST_BYTES_A_SECOND = 30, 60, 51_200  # the last two: mapillary_tools
LONGEST_RETRY_WAIT = 16  # seconds, as mapillary_tools
RATE_LIMIT_SECONDS, LONGEST_RATE_LIMIT = 10, 15 * 60
FIRST_OUTAGE_WAIT, LONGEST_OUTAGE_WAIT = 30, 300
NEAR_MS, NEAR_METRES = 1_000, 2.0  # how far a photo on Mapillary may be from what was sent
TICK = 0.1  # seconds between looks at whether to stop

GRAPH = "https://graph.mapillary.com"
UPLOADS = "https://rupload.facebook.com/mapillary_public_uploads"
PHOTO_PAGE = "https://www.mapillary.com/app/?pKey="
PUBLIC_CLIENT_TOKEN = "MLY|5675152195860640|6b02c72e6e3c801e5603ab0495623282"  # the official client's, for /login
RESUME_NAME, LOCK_NAME = "mapillary_uploader.json", "mapillary_uploader.lock"
TEMPORARY_NAME = ".mapillary_uploader.json.tmp"  # one fixed name: the lock keeps others away, the next run clears it
SKIP_NAME = "mapillary_uploader.skip"


# ----------------------------------------------------------------------------------------------------------------------
# Exit codes and errors
# ----------------------------------------------------------------------------------------------------------------------


class Exit(IntEnum):
    """Exit codes; README.md says what each asks of a person or a monitor."""

    DONE, UNFINISHED, USAGE, REJECTED, SIGN_IN, BUSY, OVERDUE = range(7)
    INTERRUPTED, TERMINATED = 130, 143


def worst(codes: Iterable[Exit]) -> Exit:
    """Where several codes apply, the first in this order; DONE where there is none."""
    order = (130, 143, Exit.BUSY, Exit.USAGE, Exit.SIGN_IN, Exit.OVERDUE, Exit.UNFINISHED, Exit.REJECTED, Exit.DONE)
    return min(codes, key=order.index, default=Exit.DONE)


class UploaderError(Exception):
    """Root of all errors here: what is wrong, a hint on what to do about it, and the exit code that it leads to."""

    code = Exit.UNFINISHED

    def __init__(self, message: str, hint: str = "", code: Exit | None = None) -> None:
        super().__init__(message)
        self.hint, self.code = hint, self.code if code is None else code

    def __str__(self) -> str:
        return f"{self.args[0]}. {self.hint}" if self.hint else str(self.args[0])


class UsageError(UploaderError):
    """Wrong options, folder, resume file or machine settings."""

    code = Exit.USAGE


class SignInError(UploaderError):
    """No token, a refused one, or another account's."""

    code = Exit.SIGN_IN


class Stopped(UploaderError):
    """The caller has set `stop`."""

    code = Exit.INTERRUPTED


class Rejection(UploaderError):
    """A photo that doesn't pass a check."""

    code = Exit.REJECTED

    def __init__(self, problem: Problem, detail: object = "") -> None:
        self.problem = problem._replace(detail=str(detail)[:80])
        super().__init__(str(self.problem))


class ServiceError(UploaderError):
    """Mapillary's answer is no use, or none came. `without_effect`: the call has certainly done nothing."""

    without_effect = False
    status = 0

    def __init__(self, message: str, hint: str = "", **facts: Any) -> None:
        super().__init__(message, hint)
        vars(self).update(facts)


class Refused(ServiceError):
    """A final no: another try wouldn't have an effect either."""


class TokenRefused(Refused):
    """Mapillary doesn't accept the token."""

    code = Exit.SIGN_IN


class AlreadyThere(ServiceError):
    """Mapillary holds all these bytes already, and nobody here has sent them."""


class Passing(ServiceError):
    """Worth another try (lost connection, timeout, 5xx …), after `delay` seconds; None: the usual wait."""

    delay: float | None = None


class Throttled(Passing):
    """The rate limit: everybody must wait."""

    without_effect = True


@contextlib.contextmanager
def failing_as(what: str, hint: str, kind: type[UploaderError] = UsageError) -> Iterator[None]:
    """Raise an error of that kind in place of an OSError: what failed, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {str(error.strerror or error).lower()}", hint) from error


# ----------------------------------------------------------------------------------------------------------------------
# Records
# ----------------------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Why a photo is rejected, warned of, or its sequence held back: what is wrong, what to do, this case's detail."""

    what: str
    fix: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return self.what + f" ({self.detail})" * bool(self.detail) + f": {self.fix}" * bool(self.fix)


class Slot(NamedTuple):
    """Where ImageDescription stands in the file: byte order, offset of its type, offset and size of its value."""

    order: str
    type_at: int
    at: int
    size: int


@dataclass(slots=True, eq=False)
class Photo:
    """One file, and all that the four steps find out about it. The resume file keeps the last two groups."""

    file: str  # path in the folder, "/" between its parts
    state: str = "ready"  # ready, rejected, held, copy, uploaded, published, failed
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    doubts: tuple[Problem, ...] = ()  # why its whole sequence is held back
    failure: str = ""  # why it could not be uploaded
    changed_at: int = 0  # the later of the file's times that isn't in the future, but for clocks that differ a little
    # Read and checked: what Sequence Maker says of it
    pixels: int = 0
    sequence_id: str = ""
    taken_at: int = 0  # as written; with `zoneless`, by a clock whose zone is not known yet
    zoneless: bool = False
    clock_gap: int | None = None  # camera's clock minus GPS time, milliseconds
    altitude: float | None = None
    heading: float | None = None
    orientation: int = 1
    connections: tuple[str, ...] = ()
    slot: Slot | None = None
    uuid: str | None = None  # planned: MAPSequenceUUID
    # What it is known by later
    photo_id: str = ""  # "" where Sequence Maker left none
    shot: str = ""  # MD5 of both clocks, position and camera as Sequence Maker wrote them
    picture: str = ""  # MD5 of its pixels' length, begin and end
    size: int = 0
    mtime_ns: int = 0
    # Planned and uploaded
    description_md5: str = ""
    session_key: str = ""  # set before the first byte is sent
    file_handle: str | None = None
    uploaded_at: int | None = None
    captured_at: int = 0  # as sent
    latitude: float = 0.0
    longitude: float = 0.0
    make: str = ""
    model: str = ""
    image_id: str | None = None  # once Mapillary shows it

    def take(self, check: Callable[..., T], *arguments: Any) -> T | None:
        """What a check returns; None where it rejects, which is noted: so all problems are found in one pass."""
        try:
            return check(*arguments)
        except Rejection as error:
            self.reject(error.problem)
            return None

    def reject(self, problem: Problem) -> None:
        """Note a problem."""
        self.problems += (problem,)
        self.state = "rejected"

    def usable(self, now: int) -> bool:
        """Whether it has a file handle that hasn't expired."""
        return bool(self.file_handle) and (self.uploaded_at or 0) > now - HANDLE_LIFE

    def document(self) -> dict[str, Any]:
        """The photo in the --json document."""
        facts: dict[str, Any] = {"file": self.file, "state": self.state}
        problems = self.problems + self.doubts * (self.state == "held")
        facts["problems"] = [*map(str, problems), *filter(None, [self.failure])]
        facts |= {"warnings": [*map(str, self.warnings)], "sequence": self.uuid, "image_id": self.image_id}
        return facts | {"description": description_of(self) if self.slot and self.captured_at else None}


@dataclass(eq=False)
class Sequence:
    """A sequence of Mapillary: planned, or in the resume file."""

    uuid: str  # MAPSequenceUUID
    photos: list[Photo] = field(default_factory=list)
    state: str = "ready"  # ready, held, uploading, publishing, unconfirmed, published
    problems: list[Problem] = field(default_factory=list)  # why it is held back
    manifest_handle: str | None = None
    publish_tried_at: int | None = None
    cluster_id: str | None = None
    published_at: int | None = None
    shown_before: list[str] = field(default_factory=list)  # images that were on Mapillary before it was sent

    @property
    def settled(self) -> bool:
        """Published, or perhaps published: its photos are never sent again by themselves."""
        return self.state in ("publishing", "unconfirmed", "published")

    @property
    def live(self) -> int:
        """How many of its photos Mapillary shows."""
        return sum(1 for photo in self.photos if photo.image_id)

    def overdue(self, now: int) -> bool:
        """Published, or tried to, seven days ago, and not all live."""
        since = self.published_at or self.publish_tried_at
        return self.settled and self.live < len(self.photos) and since is not None and now - since > OVERDUE_DAYS * DAY

    def document(self, now: int) -> dict[str, Any]:
        """The sequence in the --json document."""
        state = "unconfirmed" if self.state == "publishing" else self.state
        facts: dict[str, Any] = {"sequence": self.uuid, "state": state, "problems": [*map(str, self.problems)]}
        facts |= {"photos": len(self.photos), "live": self.live, "overdue": self.overdue(now)}
        return facts | {"cluster_id": self.cluster_id, "published_at": self.published_at and iso(self.published_at)}


@dataclass(eq=False)
class Resume:
    """A folder's resume file, held in memory; the only thing here that remembers from run to run."""

    service: str = ""
    username: str = ""
    user_id: str = ""
    organization_id: str | None = None
    closed: bool = True  # the last run ended in order: whatever it began to send stands here
    sequences: dict[str, Sequence] = field(default_factory=dict)
    session_keys: set[str] = field(default_factory=set)  # of all sessions that were begun here
    changed: bool = False
    read_from: bytes = b""  # empty where there is no file yet
    texts: dict[str, bytes] = field(default_factory=dict)  # of the photos of sequences in which none changes any more

    def published(self) -> list[Photo]:
        """All photos that are published, or perhaps are."""
        return [photo for sequence in self.sequences.values() if sequence.settled for photo in sequence.photos]


@dataclass(frozen=True)
class Settings:
    """How a folder is checked and uploaded; README.md's options of the same names."""

    utc_offset: int | None = None  # minutes
    min_age: float | None = None  # seconds; None: only where a connected photo is missing
    skip_invalid: bool = False
    republish: frozenset[str] = frozenset()  # MAPSequenceUUIDs
    patience: float = 10  # minutes
    workers: int = 4
    retries: int = 3


@dataclass(frozen=True)
class Account:
    """Who publishes: the account that the token belongs to, and the organization, if any."""

    token: str = field(repr=False)
    user_id: str
    username: str
    organization_id: str | None = None
    organization: str = ""  # its name


class Service(NamedTuple):
    """Where Mapillary is: its Graph API and its upload service."""

    graph: str = GRAPH
    uploads: str = UPLOADS

    @property
    def name(self) -> str:
        """What the resume file calls it: a try against a stand-in is never taken for a publication."""
        return "mapillary" if self == (GRAPH, UPLOADS) else "test"


@dataclass(frozen=True)
class Application:
    """One's own OAuth application, as registered with Mapillary."""

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str


@dataclass(frozen=True)
class Profile:
    """A sign-in as the official client keeps it; `expires` (ISO 8601, "" = unknown) is ours: OAuth's tokens end."""

    name: str
    token: str = field(repr=False)
    username: str = ""
    user_id: str = ""
    expires: str = ""
    path: Path | None = None  # the file that it was found in


class Progress(NamedTuple):
    """How far a call is. Sizes in bytes; `before`: photos that were there already; `seconds` since it began."""

    step: str  # "check" or "upload"
    done: int
    total: int
    done_bytes: int = 0
    total_bytes: int = 0
    before: int = 0
    seconds: float = 0


class Clock:
    """Time and waiting; tests put another in its place."""

    def now(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    def seconds(self) -> float:
        """A clock that never goes back."""
        return time.monotonic()

    def wait(self, seconds: float, stop: Callable[[], bool]) -> None:
        """Wait, but no longer than until `stop` says so."""
        end = self.seconds() + seconds
        while not stop() and (left := end - self.seconds()) > 0:
            time.sleep(min(left, TICK))


class Run:
    """What a caller may override to follow a call, and `stop`, which any thread may set to end it within 3 s."""

    clock = Clock()
    stop_code = Exit.INTERRUPTED  # of a call that was stopped

    def __init__(self) -> None:
        self.stop = threading.Event()

    def progress(self, progress: Progress) -> None:
        """Called often, always in the thread of the call."""

    def message(self, level: str, text: str) -> None:
        """What happens: level "debug", "info", "warning" or "error". Any thread; it must not raise."""

    def check(self) -> None:
        """Raise Stopped where the caller wants an end."""
        if self.stop.is_set():
            raise Stopped("stopped", "What was done is saved; run again to go on", self.stop_code)


@dataclass(eq=False)
class Tour:
    """A folder after steps 1 and 2: what is in it, and what would be sent. It can be pickled."""

    folder: Path
    settings: Settings = Settings()
    photos: list[Photo] = field(default_factory=list)  # in natural order
    sequences: list[Sequence] = field(default_factory=list)  # those of the resume file, then the planned ones
    skipped: list[str] = field(default_factory=list)
    errors: list[UploaderError] = field(default_factory=list)  # what keeps the folder as a whole from being sent
    resume: Resume = field(default_factory=Resume)
    username: str | None = None
    dry_run: bool = False
    written: str = ""  # what became of --output, in words
    checked_at: int = 0

    @property
    def owner(self) -> Account | None:
        """Whom the resume file names; without a token."""
        of = self.resume
        return Account("", of.user_id, of.username, of.organization_id) if of.user_id else None

    @property
    def planned(self) -> list[Sequence]:
        """The sequences to send: not published yet, or to be published once more."""
        again = self.settings.republish
        return [s for s in self.sequences if not s.settled or (s.state == "unconfirmed" and s.uuid in again)]

    @property
    def faulty(self) -> bool:
        """Whether photos are rejected or sequences held back."""
        return any(p.state == "rejected" for p in self.photos) or any(s.problems for s in self.sequences)

    @property
    def sendable(self) -> bool:
        """Whether the photos that pass may be sent: none fails, or settings.skip_invalid lets the rest go."""
        return self.settings.skip_invalid or not self.faulty

    def codes(self) -> list[Exit]:
        """All exit codes that apply."""
        return [error.code for error in self.errors] + [Exit.REJECTED] * self.faulty

    @property
    def code(self) -> Exit:
        """The exit code: DONE where every photo passes."""
        return worst(self.codes())

    def document(self) -> dict[str, Any]:
        """The --json document of the folder; README.md shows one."""
        facts: dict[str, Any] = {"directory": str(self.folder), "username": self.username, "dry_run": self.dry_run}
        facts |= {"exit_code": int(self.code), "photos": [photo.document() for photo in self.photos]}
        facts["sequences"] = [sequence.document(self.checked_at) for sequence in self.sequences]
        errors = sorted(self.errors, key=lambda error: error.code != self.code)  # first what the exit code says
        return facts | {"skipped": self.skipped, "error": str(errors[0]) if errors else None}


@dataclass(eq=False)
class Result(Tour):
    """A folder after steps 3 and 4 or, with `looked_up`, after Mapillary was asked what is live."""

    looked_up: bool = False
    already: int = 0  # photos that were uploaded by earlier runs
    sent: bool = False  # something was uploaded or published or, with `looked_up`, found

    def codes(self) -> list[Exit]:
        """All exit codes that apply; DONE only where nothing is left for anyone to do."""
        codes, states = super().codes(), {photo.state for photo in self.photos}
        open_sequences = any(s.state in ("publishing", "unconfirmed") for s in self.sequences)
        if open_sequences or (self.sendable and states & {"ready", "uploaded", "failed"}):
            codes.append(Exit.UNFINISHED)
        if self.looked_up:
            codes = [Exit.UNFINISHED if code == Exit.REJECTED else code for code in codes]
            codes += [Exit.UNFINISHED for s in self.sequences if s.live < len(s.photos)]
            codes += [Exit.OVERDUE for s in self.sequences if s.overdue(self.checked_at)]
        return codes


# ----------------------------------------------------------------------------------------------------------------------
# The steps
# ----------------------------------------------------------------------------------------------------------------------


def check_photo(path: str | os.PathLike[str], settings: Settings = Settings()) -> Photo:
    """Step 1 of one file: what it says of itself, its `problems` and `warnings`. Opens no other file, never raises.

    What takes a folder to tell (copies, legs, what was published) is for `check_folder`.
    """
    photo = examine(Path(path), os.path.basename(path), Clock().now(), settings.utc_offset)
    if photo.zoneless and settings.utc_offset is None:
        photo.warnings += (NO_ZONE,)
    return photo


def check_folder(folder: str | os.PathLike[str], settings: Settings = Settings(), run: Run | None = None) -> Tour:
    """Steps 1 and 2: check every photo of a folder, and plan its sequences. Writes nothing, needs no network.

    Raise UploaderError where the folder or its resume file can't be used.
    """
    (tour,) = compare_and_plan([read_folder(Path(folder), settings, run or Run())])
    return tour


def check_folders(root: str | os.PathLike[str], settings: Settings = Settings(), run: Run | None = None) -> list[Tour]:
    """The same for every folder below `root`, compared with each other: no photo is sent from two of them.

    What is wrong with one folder stands in its tour's `errors`. Raise UploaderError where there is no folder to check.
    """
    tours = read_folders(Path(root), settings, run or Run())
    unfinished = [tour for tour in tours if any(s.state != "published" for s in tour.resume.sequences.values())]
    return [tour for tour in tours if tour.photos or tour.errors or tour in unfinished]


def description_of(photo: Photo) -> dict[str, Any]:
    """Mapillary's description of a planned photo, exactly as it is sent: degrees, metres, UTC."""
    return dict(json.loads(fitting(photo) or description_bytes(photo)))


def sent_bytes(folder: str | os.PathLike[str], photo: Photo, offset: int = 0) -> Iterator[bytes]:
    """A planned photo's bytes from `offset` on, exactly as they are sent, in blocks of about 1 MiB.

    Raise UploaderError before a byte that isn't what was checked: under its session key Mapillary keeps it for ever.
    """
    unreadable = failing_as("the photo can't be read any more", "See to the disk", UploaderError)
    with unreadable, open_photo(place(Path(folder), photo.file)) as stream:
        check_unchanged(stream, photo)
        head, rest = sent_head(photo, stream)
        stream.seek(rest + max(0, offset - len(head)))
        block = head[offset:]
        while block or (block := stream.read(BLOCK)):
            check_unchanged(stream, photo)
            yield block
            block = b""


def publish(tour: Tour, account: Account, service: Service = Service(), run: Run | None = None) -> Result:
    """Steps 3 and 4: upload what `tour` shows and publish it, or less where Mapillary seems to have it already.

    Nothing is sent while a photo is rejected or a sequence held back, unless settings.skip_invalid. The result shares
    the tour's photos and sequences. Raise UploaderError where the folder is locked, another's, or changed since then.
    """
    run = run or Run()
    result = Result(**vars(tour))
    result.username, result.errors = account.username, list(tour.errors)
    with locked(tour.folder), Client(service, account.token, run, tour.settings) as client:
        check_as_checked(tour, account, service)
        try:
            look_up_unconfirmed(client, result)
            if not tour.errors and result.sendable:
                look_up_planned(client, result)
            if not tour.errors and result.sendable:
                Uploading(client, result).work()
            if tour.resume.changed:
                save_resume(tour.folder, tour.resume)
        except UploaderError as error:
            note_error(result, run, error)
        mark_states(result)
        if new := {name for name in names_in(tour.folder) if is_photo(name)} - {photo.file for photo in tour.photos}:
            text = f"{count_of(new, 'photo')} came in while the run was at work, {shown(min(new))} first"
            note_error(result, run, UploaderError(text, "Run again to go on"))
    return result


def check_live(
    folder: str | os.PathLike[str], account: Account, service: Service = Service(), run: Run | None = None
) -> Result:
    """Ask Mapillary which published photos of a folder are live, and note their ids in its resume file.

    The photos may have been archived; those that are there are compared with the file. Raise UploaderError where the
    folder or its resume file can't be used, or Mapillary can't be asked.
    """
    run = run or Run()
    return look_up_tour(check_folder(folder, Settings(), run), account, service, run)


def account_of(token: str, organization_id: str | None = None, service: Service = Service()) -> Account:
    """Whose token it is, by asking Mapillary; raise UploaderError where it is refused, or there is no organization."""
    with Client(service, valid_token(token), Run(), Settings()) as client:
        data = client.get("/me", fields="id,username")
        user_id, username = as_id(data.get("id")), as_text(data.get("username"))
        if not user_id:
            raise ServiceError("GET /me: an answer without id")
        if organization_id is None:
            return Account(client.token, user_id, username)
        try:
            data = client.get(f"/{organization_id}", fields="slug,description,name")
        except TokenRefused:
            raise
        except Refused as error:
            raise UsageError(f"no organization {shown(organization_id)}: {error}", LOOK_UP_ID) from error
        name = as_text(data.get("name")) or as_text(data.get("slug"))
        if not name:
            raise UsageError(f"{shown(organization_id)} is no organization's id", LOOK_UP_ID)
        return Account(client.token, user_id, username, organization_id, name)


def authorize_url(application: Application, state: str, service: Service = Service()) -> str:
    """Where to send a person's browser so that they allow the application to upload for them (OAuth).

    It ends at application.redirect_uri with `code` and this `state`, which must be compared, or with `error`.
    """
    query = {"client_id": application.client_id, "redirect_uri": application.redirect_uri, "response_type": "code"}
    query |= {"scope": "read write upload", "state": state}
    connect = "https://www.mapillary.com" if service.name == "mapillary" else service.graph
    return f"{connect}/connect?{urlencode(query)}"


def token_from(application: Application, code: str, service: Service = Service()) -> Profile:
    """The sign-in that the `code` of an OAuth redirect stands for, once; raise SignInError where Mapillary won't."""
    return granted(application, service, {"grant_type": "authorization_code", "code": code})


def renewed(application: Application, profile: Profile, service: Service = Service()) -> Profile:
    """The profile with a new token, before the old one has run out; raise SignInError where Mapillary won't."""
    new = granted(application, service, {"grant_type": "refresh_token", "refresh_token": profile.token})
    return replace(profile, token=new.token, expires=new.expires)


def service_from(environment: Mapping[str, str]) -> Service:
    """Where the official client's variables say that Mapillary is, and a check of the machine's proxy and certificates.

    Raise UsageError where an address can't work, or the token would leave this machine in the clear.
    """
    urls = []
    for name, usual in (("MAPILLARY_GRAPH_API_ENDPOINT", GRAPH), ("MAPILLARY_UPLOAD_ENDPOINT", UPLOADS)):
        url = environment.get(name) or usual
        host = host_of(name, url)
        loopback = host == "localhost"
        with contextlib.suppress(ValueError):  # a name
            loopback |= ip_address(host).is_loopback
        if "@" in url or (url.startswith("http:") and not loopback):
            address = shown(url.rpartition("@")[2])
            hint = "Use https://HOST; plain http is for this machine only"
            raise UsageError(f"{name} can't be used: {address}", hint)
        urls.append(url.rstrip("/"))
    check_connection_settings(urls, environment)
    return Service(*urls)


# ----------------------------------------------------------------------------------------------------------------------
# Reading a photo
# ----------------------------------------------------------------------------------------------------------------------

NOT_JPEG = Problem("not a JPEG photo", "remove it from the folder, or export it as JPEG")
DAMAGED_EXIF = Problem("its EXIF is damaged", "take the photo as it was before, and run Sequence Maker on it again")
DAMAGED_XMP = Problem("its XMP can't be read",
                      "write it anew: exiftool -XMP:all= -XMP-GPano:ProjectionType=equirectangular FILE")  # fmt: skip

APP1, START_OF_SCAN, END_OF_IMAGE, START_OF_IMAGE = 0xE1, 0xDA, 0xD9, 0xD8
IDLE_SEGMENTS = {0xC4, *range(0xE0, 0xFF)} - {APP1}  # Huffman tables, other applications' data, comments
BOM, EXIF_MARK, XMP_MARK = b"\xef\xbb\xbf", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
GPANO = "{http://ns.google.com/photos/1.0/panorama/}"
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Exif 3.0, 4.6.2
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
ASCII, TEXT_TYPES = 2, (1, 2, 7, 129)  # the latter: BYTE, ASCII, UNDEFINED, UTF-8
DIRECTORIES = {0x8769: "Exif", 0x8825: "GPS", 0xA005: "Interoperability"}
IMAGE_DESCRIPTION, ORIENTATION, OFFSET_TIME_ORIGINAL, SUB_SEC_TIME_ORIGINAL = 0x010E, 0x0112, 0x9011, 0x9291
THUMBNAIL_AT, THUMBNAIL_SIZE, MAKER_NOTE = 0x0201, 0x0202, 0x927C


class Tag(NamedTuple):
    """One entry of a TIFF directory; `entry` and `at` are offsets of the entry and of its value, `size` bytes long."""

    ifd: str
    number: int
    kind: int
    entry: int
    at: int
    size: int


class Exif:
    """A TIFF block that starts at byte `start` of the file, and its tags; raise Rejection where it isn't one."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        if data[:4] not in TIFF_ORDERS or len(data) < 8:
            raise Rejection(DAMAGED_EXIF, "no TIFF header")
        self.data, self.start, self.order = data, start, TIFF_ORDERS[data[:4]]
        self.tags: list[Tag] = []  # of IFD0, IFD1 and DIRECTORIES, each once; values may lie out of bounds
        rows, short, long = (struct.Struct(self.order + form) for form in ("HHII", "H", "I"))
        todo: list[tuple[str, int]] = [("IFD0", long.unpack_from(data, 4)[0])]
        seen: set[int] = set()
        for ifd, at in todo:
            if at in seen or not 8 <= at <= len(data) - 2:
                continue
            seen.add(at)
            end = at + 2 + 12 * min(short.unpack_from(data, at)[0], (len(data) - at - 2) // 12)
            for entry, row in zip(range(at + 2, end, 12), rows.iter_unpack(data[at + 2 : end])):
                number, kind, count, value = row
                size = count * TYPE_SIZES.get(kind, 0)
                self.tags.append(Tag(ifd, number, kind, entry, entry + 8 if size <= 4 else value, size))
                if number in DIRECTORIES:
                    todo.append((DIRECTORIES[number], value))
            if ifd == "IFD0" and end + 4 <= len(data):
                todo.append(("IFD1", long.unpack_from(data, end)[0]))

    def find(self, ifd: str, number: int) -> list[Tag]:
        """All tags of that number in a directory."""
        return [tag for tag in self.tags if tag.number == number and tag.ifd == ifd]

    def value(self, ifd: str, number: int) -> bytes:
        """A tag's value, b"" where it is missing or lies out of bounds."""
        found = [tag for tag in self.find(ifd, number) if tag.at + tag.size <= len(self.data)]
        return self.data[found[0].at : found[0].at + found[0].size] if found else b""

    def text(self, ifd: str, number: int) -> str:
        """A text tag up to its NUL, without surrounding space."""
        return self.value(ifd, number).split(b"\0")[0].decode("latin-1").strip()

    def number(self, ifd: str, number: int) -> int:
        """A tag's whole number, 0 where there is none."""
        value = self.value(ifd, number)
        return int.from_bytes(value, "little" if self.order == "<" else "big") if len(value) <= 4 else 0


@dataclass(slots=True)
class Head:
    """What stands before the pixels of a JPEG, and what is known of these."""

    exif: list[tuple[bytes, int]]  # each EXIF segment's TIFF block, and where it starts in the file
    xmp: list[bytes]
    width: int
    height: int
    whole: bool  # an end-of-image marker follows the first scan
    picture: str


def read_head(stream: BinaryIO, size: int) -> Head:
    """Read a JPEG's head from a seekable stream of `size` bytes; raise Rejection where it isn't one."""
    if not size:
        raise Rejection(Problem("empty file", "copy it anew from the camera"))
    if stream.read(2) != b"\xff\xd8":
        raise Rejection(NOT_JPEG)
    parts = list(segments(stream, size))
    app1 = [(data, at) for marker, at, data in parts if marker == APP1]
    exif = [(data[len(EXIF_MARK) :], at + len(EXIF_MARK)) for data, at in app1 if data.startswith(EXIF_MARK)]
    xmp = [data[len(XMP_MARK) :] for data, _ in app1 if data.startswith(XMP_MARK)]
    frame = [struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, _, data in parts if marker != APP1]
    scan = parts[-1][1] + len(parts[-1][2])
    return Head(exif, xmp, *read_dimensions(b"\xff\xd8" + b"".join(frame)), *read_pixels(stream, scan, size))


def segments(stream: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes]]:
    """Marker, offset and payload of each segment but the idle ones; the start of the first scan is the last."""
    at = 2
    while True:
        if at > MAX_HEADER_BYTES:
            raise Rejection(NOT_JPEG, "over 16 MB before the pixels")
        stream.seek(at)
        first, marker, length = struct.unpack(">BBH", stream.read(4).ljust(4, b"\xff"))
        if first != 0xFF or marker < 0xC0:  # below are none (ITU T.81, table B.1) but TEM, which Pillow refuses too
            raise Rejection(NOT_JPEG, f"no marker at byte {at}")
        if marker in (START_OF_IMAGE, END_OF_IMAGE):
            raise Rejection(NOT_JPEG, "no image in it")
        if marker == 0xFF and at < size:  # a fill byte (ITU T.81, B.1.1.2)
            at += 1
        elif 0xD0 <= marker <= 0xD7:  # RSTn has no length
            at += 2
        elif length < 2 or at + 2 + length > size:
            raise Rejection(Problem("cut short: the file ends inside its header", "copy it anew from the camera"))
        else:
            if marker not in IDLE_SEGMENTS:
                yield marker, at + 4, stream.read(length - 2)
            if marker == START_OF_SCAN:
                return
            at += 2 + length


def read_pixels(stream: BinaryIO, scan: int, size: int) -> tuple[bool, str]:
    """Whether an end-of-image marker follows the scan at `scan`, and a mark that survives tagging and renaming."""
    stream.seek(scan)
    begin = stream.read(16 * 1024)
    stream.seek(max(scan, size - 4096))
    last = block = stream.read(4096)
    picture = md5(b"%d " % (size - scan) + begin + last)
    if b"\xff\xd9" not in last:  # a long trailer, or none at all: look through everything
        stream.seek(scan)
        last = b""
        while (block := stream.read(BLOCK)) and b"\xff\xd9" not in last + block:
            last = block[-1:]
    return bool(block), picture


@lru_cache(8)  # photos of one camera often have the same tables
def read_dimensions(frame: bytes) -> tuple[int, int]:
    """Width and height by Pillow, from a JPEG's tables and frame header: it reads EXIF slowly and noisily."""
    from PIL.JpegImagePlugin import JpegImageFile  # not Image.open: it has a limit on pixels

    try:
        return JpegImageFile(io.BytesIO(frame)).size
    except Exception as error:  # Pillow raises more than it documents: SyntaxError, struct.error, KeyError, MemoryError
        raise Rejection(NOT_JPEG, f"Pillow: {error}") from error


@lru_cache(8)  # the same
def panorama_of(packet: bytes) -> dict[str, str]:
    """GPano properties of an XMP packet, by name without prefix; attributes and elements. No entity is expanded."""
    if b"<!DOCTYPE" in packet.replace(b"\0", b""):  # in UTF-16 too
        raise Rejection(DAMAGED_XMP, "it declares a document type")
    try:
        root = ElementTree.fromstring(packet.strip(b"\0 \t\r\n"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: an encoding that expat lacks
        raise Rejection(DAMAGED_XMP, error) from error
    found = {name: value for element in root.iter() for name, value in element.items()}
    found |= {str(element.tag): element.text or "" for element in root.iter()}
    return {name[len(GPANO) :]: value for name, value in found.items() if name.startswith(GPANO)}


def open_photo(path: Path) -> BinaryIO:
    """Open a file for reading. Never waits, whatever has become of the file."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb", 128 * 1024)


def place(folder: Path, file: str) -> Path:
    """The path of a file of a folder. Names are UTF-8 whatever the locale: the same in cron's C."""
    return folder / os.fsdecode(file.encode("utf-8", "surrogateescape"))


def md5(data: bytes) -> str:
    """A mark to recognise the same bytes by, as hexadecimal digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Checks
# ----------------------------------------------------------------------------------------------------------------------

TOO_LARGE = Problem("the file is larger than 50 MB", "export it with less quality or resolution")
TOO_MANY_PIXELS = Problem("more than 100 megapixels", "export it with less resolution")
NO_FILE = Problem("can't be read", "see to its permissions and the disk, or remove it from the folder")
NOT_PANORAMA = Problem("not a 360° panorama: its XMP has no GPano ProjectionType equirectangular", "if it is one, "
    "exiftool -XMP-GPano:ProjectionType=equirectangular FILE says so; else remove it from the folder")  # fmt: skip
UNTAGGED = Problem("not tagged by Sequence Maker", "run Sequence Maker on it, and upload what it makes")
BAD_POSITION = Problem("no usable position", "tag it with coordinates, and run Sequence Maker again")
BAD_TIME = Problem("no usable capture time", "set the photo's time right, and run Sequence Maker again")
BAD_SEQUENCE = Problem("no usable sequence id", "run Sequence Maker again")
NO_ROOM = Problem("its EXIF has no room for Mapillary's description", "run Sequence Maker on the original again")
NO_ZONE = Problem("nothing says in which zone its camera's clock was", "say it with --utc-offset (+00:00 for UTC)")

GPS_METHODS, CAMERA_METHODS = ("timegps", "gps", "gpsdatetime", "filename"), ("timecapture", "originaldatetime")
CLOCKS = ("original_originalDateTime", "original_GPSDateTime")
SHOT_KEYS = (*CLOCKS, *(f"original_{key}" for key in ("latitude", "longitude", "camera_make", "camera_model")))
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.ASCII | re.IGNORECASE)
TIME = re.compile(
    r"\s*(\d{4})[:-](\d\d)[:-](\d\d)[T ]\s*(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?\s*(Z|[-+]\d\d(?::?\d\d)?)?\s*",
    re.ASCII | re.IGNORECASE,
)
ZONE = re.compile(r"([-+])(\d\d):?([0-5]\d)?", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def examine(path: Path, file: str, now: int, utc_offset: int | None, known: Photo | None = None) -> Photo:
    """A photo with all that it says of itself. `known`, as it was published, where size and mtime are as then."""
    photo = Photo(file)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Rejection(NO_FILE, "not a regular file")
        if known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return known
        photo.size, photo.mtime_ns = status.st_size, status.st_mtime_ns
        times = (status.st_mtime, status.st_ctime * (os.name == "posix"))  # copying keeps the first
        photo.changed_at = max((int(1000 * t) for t in times if 1000 * t <= now + MINUTE), default=0)
        with open_photo(path) as stream:
            judge(photo, stream, now, utc_offset)
    except Rejection as error:
        photo.reject(error.problem)
    except OSError as error:
        photo.reject(NO_FILE._replace(detail=error.strerror or ""))
    return photo


def judge(photo: Photo, stream: BinaryIO, now: int, utc_offset: int | None = None) -> None:
    """All checks of one photo's bytes, in one pass; raise Rejection for one that ends it. `now`: no photo is newer."""
    if photo.size > MAX_BYTES:
        photo.reject(TOO_LARGE._replace(detail=f"{photo.size:,} bytes"))
    head = read_head(stream, photo.size)
    photo.pixels, photo.picture = head.width * head.height, head.picture
    if photo.pixels > MAX_PIXELS:
        photo.reject(TOO_MANY_PIXELS._replace(detail=f"{head.width} × {head.height}"))
    if not head.whole:
        photo.reject(Problem("cut short: no end-of-image marker", "copy it anew from the camera or stitch it again"))
    photo.take(check_panorama, photo, head)
    exif = find_description(head)
    if record := photo.take(sequence_maker_json, exif):
        read_record(photo, *record, exif, now, utc_offset)
    find_slot(photo, exif)


def check_panorama(photo: Photo, head: Head) -> None:
    """XMP must say that it is a panorama; a warning where it covers part of the sphere."""
    gpano = {name: value for packet in reversed(head.xmp) for name, value in panorama_of(packet).items()}
    kind = gpano.get("ProjectionType", "").strip()
    if kind.casefold() != "equirectangular":
        raise Rejection(NOT_PANORAMA, f"it says {shown(kind[:40])}" if kind else "")
    full = gpano.get("FullPanoWidthPixels"), gpano.get("FullPanoHeightPixels")
    part = gpano.get("CroppedAreaImageWidthPixels"), gpano.get("CroppedAreaImageHeightPixels")
    if not (head.width == 2 * head.height if None in full + part else full == part):
        photo.warnings += (Problem("the panorama covers part of the sphere; the rest will be blank"),)


def find_description(head: Head) -> Exif:
    """The EXIF with its one ImageDescription; raise Rejection where there is none, several, or it is no text."""
    if not head.exif:
        raise Rejection(UNTAGGED, "no EXIF")
    exif = Exif(*head.exif[0])
    found = exif.find("IFD0", IMAGE_DESCRIPTION)
    if not found:
        raise Rejection(UNTAGGED, "no ImageDescription in its EXIF")
    for data, start in head.exif[1:]:
        with contextlib.suppress(Rejection):  # what continues the first one, or is none
            found += Exif(data, start).find("IFD0", IMAGE_DESCRIPTION)
    if len(found) > 1:
        raise Rejection(DAMAGED_EXIF, "two ImageDescriptions")
    if found[0].kind not in TEXT_TYPES:
        raise Rejection(UNTAGGED, "its ImageDescription is not text")
    if found[0].at + found[0].size > len(exif.data):
        raise Rejection(DAMAGED_EXIF, "its ImageDescription lies outside the EXIF segment")
    return exif


def sequence_maker_json(exif: Exif) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sequence Maker's objects `photo` and `sequence`; raise Rejection saying which of the other things it is."""
    data = exif.value("IFD0", IMAGE_DESCRIPTION).rstrip(b"\0 \t\r\n").removeprefix(BOM)
    text = data.decode("utf-8", "surrogateescape")  # a byte that isn't text harms no other string
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"its ImageDescription isn't JSON, it begins {shown(valid_text(text[:30]))}"
        if text[:1] == "{" and isinstance(error, json.JSONDecodeError):
            unfinished = re.fullmatch(r"[\\\w.+-]*", text[error.pos :]) and error.msg != "Extra data"
            cut_off = unfinished or error.msg.startswith("Unterminated")
            how = "cut off" if cut_off else f"damaged at character {error.pos + 1}"
            what = f"the JSON in its ImageDescription is {how}"
        raise Rejection(UNTAGGED, what if text else "its ImageDescription is empty") from None
    if isinstance(value, dict) and value.keys() >= {"MAPLatitude", "MAPLongitude", "MAPCaptureTime"}:
        raise Rejection(Problem("already tagged for Mapillary", "run on the originals that Sequence Maker made"))
    photo, sequence = (value.get("photo"), value.get("sequence")) if isinstance(value, dict) else (None, None)
    if not (isinstance(photo, dict) and isinstance(sequence, dict)):
        raise Rejection(UNTAGGED, "its ImageDescription is JSON of something else")
    return photo, sequence


def read_record(
    photo: Photo, record: dict[str, Any], sequence: dict[str, Any], exif: Exif, now: int, utc_offset: int | None
) -> None:
    """Take from Sequence Maker's objects what Mapillary needs; a problem for each that is no use."""
    altitude, orientation = finite(record.get("original_altitude")), exif.number("IFD0", ORIENTATION)
    written = [(finite(value), value) for value in map(record.get, SHOT_KEYS)]  # marked however it is spelt
    shot = [as_text(value).strip() if number is None else f"{number:.6f}" for number, value in written]
    photo.photo_id, photo.shot = as_text(record.get("id")), md5("\n".join(shot).encode("utf-8", "replace"))
    photo.altitude = None if altitude is None else round(altitude, 3) + 0.0  # no negative zero
    photo.make = as_text(record.get("original_camera_make"))
    photo.model = as_text(record.get("original_camera_model"))
    photo.orientation = orientation if 1 <= orientation <= 8 else 1
    found = record.get("connections")
    connections = {key: found[key] for key in found if key != "null"} if isinstance(found, dict) else {}
    photo.connections = tuple(map(valid_text, connections))
    photo.heading = heading_of(record, connections.values())
    if photo.heading is None:
        photo.warnings += (Problem("no heading: nothing says which way it faces"),)
    photo.latitude, photo.longitude = photo.take(position_of, record) or (0.0, 0.0)
    photo.taken_at = photo.take(capture_time, photo, record, exif, now, utc_offset) or 0
    photo.sequence_id = as_text(sequence.get("id"))
    if not (isinstance(sequence.get("id"), str) and re.fullmatch("[A-Za-z0-9_-]+", photo.sequence_id)):
        photo.reject(BAD_SEQUENCE._replace(detail=f"Sequence Maker wrote {said(sequence.get('id'))}"))


def finite(value: object) -> float | None:
    """A finite number, or the text of one; None for all else (booleans too)."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int beyond float's range
        return None


def as_text(value: object) -> str:
    """Text, or a finite number as text; "" for all else. What isn't valid text becomes U+FFFD."""
    if isinstance(value, str):
        return valid_text(value) if value.strip("\0 \t\r\n") else ""
    return "" if finite(value) is None else str(value)


def valid_text(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: bytes of a name or of JSON that aren't UTF-8."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def said(value: object) -> str:
    """A value of Sequence Maker's JSON in a message."""
    return "nothing" if value in (None, "") else shown(valid_text(repr(value)))[:40]


def position_of(record: Mapping[str, Any]) -> tuple[float, float]:
    """Latitude and longitude in degrees, 7 decimals."""
    position = []
    for name, limit in (("latitude", 90), ("longitude", 180)):
        value = finite(written := record.get(f"original_{name}"))
        if value is None or abs(value) > limit:
            raise Rejection(BAD_POSITION, f"Sequence Maker wrote {said(written)} as {name}")
        position.append(round(value, 7) + 0.0)
    if position == [0, 0]:
        raise Rejection(BAD_POSITION, "latitude and longitude are both 0")
    return position[0], position[1]


def capture_time(photo: Photo, record: Mapping[str, Any], exif: Exif, now: int, utc_offset: int | None) -> int:
    """Capture time by the clock that Sequence Maker connected the photos with; the other is never a fallback.

    A GPS time without zone is UTC. A camera's zone is the one written, or EXIF's, or --utc-offset; else it stays open.
    """
    method = record.get("cli_connection_method")
    by_gps = as_text(method).casefold() in GPS_METHODS
    if not by_gps and as_text(method).casefold() not in CAMERA_METHODS:
        raise Rejection(BAD_TIME, f"Sequence Maker wrote {said(method)} as the clock that it used")
    written = record.get(CLOCKS[by_gps])
    if not (parsed := parse_time(written)):
        raise Rejection(BAD_TIME, f"Sequence Maker wrote {said(written)} as {'GPS' if by_gps else 'camera'} time")
    taken_at, zone, decimals = parsed
    if not by_gps:
        gps = parse_time(record.get(CLOCKS[True]))
        zones = (zone, parse_zone(exif.text("Exif", OFFSET_TIME_ORIGINAL)), utc_offset)
        photo.zoneless = zones[:2] == (None, None)
        zone = next((zone for zone in zones if zone is not None), None)
        photo.clock_gap = taken_at - gps[0] + MINUTE * (gps[1] or 0) if gps else None
        if not decimals:  # "5" is half a second, "05" a twentieth; in "12ab" the letters say nothing
            taken_at += int(re.split("[^0-9]", exif.text("Exif", SUB_SEC_TIME_ORIGINAL))[0][:3].ljust(3, "0"))
    taken_at -= MINUTE * (zone or 0)
    if not EARLIEST_CAPTURE <= taken_at <= now + DAY:
        wrong_here = taken_at > now and now < EARLIEST_NOW
        doubt = f"but this machine's clock says {iso(now)[:10]}" if wrong_here else "was the camera's clock set?"
        raise Rejection(BAD_TIME, f"{iso(taken_at)}; {doubt}")
    return taken_at


def parse_time(value: object) -> tuple[int, int | None, str] | None:
    """A time in EXIF's or ISO 8601's form: milliseconds, cut, as if UTC; zone in minutes; digits of its decimals."""
    match = TIME.fullmatch(value) if isinstance(value, str) else None
    zone = parse_zone(match[8] or "") if match else None
    if not match or (match[8] and zone is None):
        return None
    try:
        year, month, day, hour, minute, second = map(int, match.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    decimals = match[7] or ""
    return (moment - EPOCH) // timedelta(milliseconds=1) + int(decimals[:3].ljust(3, "0")), zone, decimals


def parse_zone(text: str) -> int | None:
    """±HH:MM, ±HHMM, ±HH or Z in minutes; None for all else. No zone is wider than 14 hours (IANA tz database)."""
    match = ZONE.fullmatch("+00" if text in ("Z", "z") else text)
    minutes = 60 * int(match[2]) + int(match[3] or 0) if match else 0
    if not match or minutes > 14 * 60:
        return None
    return -minutes if match[1] == "-" else minutes


def heading_of(record: Mapping[str, Any], connections: Iterable[Any]) -> float | None:
    """Compass heading in [0, 360): the camera's; else towards the next photo; else away from the one before."""
    heading = finite(record.get("original_heading"))
    if heading is None:
        objects = [value for value in connections if isinstance(value, dict)]
        legs = [(finite(value.get("distance_mtrs")) or 0, finite(value.get("heading_deg"))) for value in objects]
        ahead = [degrees for metres, degrees in legs if metres > 0 and degrees is not None]
        behind = [degrees + 180 for metres, degrees in legs if metres < 0 and degrees is not None]  # to the one before
        heading = next(iter(ahead + behind), None)
    return None if heading is None else round(heading % 360, 3) % 360 + 0.0


def find_slot(photo: Photo, exif: Exif) -> None:
    """Note where the description will stand; raise Rejection where it doesn't fit, or would change anything else."""
    own, thumbnail = exif.find("IFD0", IMAGE_DESCRIPTION)[0], exif.number("IFD1", THUMBNAIL_AT)
    end = own.at + own.size
    shared = own.at < 8 or thumbnail < end and own.at < thumbnail + exif.number("IFD1", THUMBNAIL_SIZE)
    for tag in exif.tags:  # a directory has its count before, and its link behind
        shared |= tag.entry - 2 < end and own.at < tag.entry + 16
        shared |= tag.at < end and own.at < tag.at + tag.size and tag.size > 4 and tag is not own
    if shared:
        raise Rejection(DAMAGED_EXIF, "its ImageDescription shares bytes with another tag")
    photo.slot = Slot(exif.order, exif.start + own.entry + 2, exif.start + own.at, own.size)
    roomy = own.size > 600 + 12 * len(photo.sequence_id + photo.make + photo.model)  # whatever it escapes to
    if not roomy and not photo.problems:
        trial = replace(photo, uuid=photo.sequence_id + "_0000", captured_at=photo.taken_at)
        if fitting(trial) is None:
            rewritten(trial, exif)


# ----------------------------------------------------------------------------------------------------------------------
# Folders
# ----------------------------------------------------------------------------------------------------------------------

TWO_VERSIONS_HERE = Problem("two photos have the same photo id and different pictures", "remove one of them")
TWO_VERSIONS = Problem("another version of a published photo that is still here", "remove the one that isn't wanted")
STITCHED_ANEW = Problem(
    "taken where and when a published photo was that is no longer here: the same one, stitched anew?",
    "if it is another one, --republish publishes it",
)
ELSEWHERE = Problem("another version of a photo in another folder", "remove one, or keep one folder out of this run")
COPY = Problem("a copy; it isn't sent")
MISSING = Problem("connected to a photo that isn't here",
                  "is it still being copied, or did Sequence Maker overwrite it?")  # fmt: skip
LOOK = "look there; --republish publishes it all the same"
MAYBE_THERE = Problem(
    "Mapillary has bytes of it that nobody here has sent: from another folder, machine or a lost resume file?", LOOK
)
ON_MAPILLARY = Problem(
    "its photos are on Mapillary already: from another folder, a lost resume file or another program?", LOOK
)
UNLESS_REPUBLISHED = {TWO_VERSIONS, STITCHED_ANEW, MAYBE_THERE, ON_MAPILLARY}  # what --republish overrides
PASSED_OVER = re.compile(
    r"\.|(@eaDir|#recycle|#snapshot|~snapshot|\$RECYCLE\.BIN|RECYCLER|System Volume Information|lost\+found"
    r"|Network Trash Folder)$"
)


def read_folder(folder: Path, settings: Settings, run: Run) -> Tour:
    """Each photo of a folder with what is wrong with it. What was published isn't opened while it is as then."""
    tour = Tour(folder, settings, checked_at=run.clock.now())
    files, tour.skipped = list_folder(folder)
    tour.resume = load_resume(folder)
    if not files and not tour.resume.read_from:
        raise UsageError(f"no photo in {shown(folder)}", "Photos are .jpg or .jpeg; -r looks into the folders below")
    records = tour.resume.sequences.values()
    again = {s.uuid for s in records if s.state == "unconfirmed" and s.uuid in settings.republish}
    known = {photo.file: photo for photo in tour.resume.published() if photo.picture and photo.uuid not in again}
    for done, file in enumerate(files, 1):
        run.check()
        tour.photos.append(examine(place(folder, file), file, tour.checked_at, settings.utc_offset, known.get(file)))
        run.progress(Progress("check", done, len(files)))
    recognise(tour, again)
    return tour


def read_folders(root: Path, settings: Settings, run: Run) -> list[Tour]:
    """Steps 1 and 2 of every folder below `root`, also of those where only a finished resume file is left."""
    tours = []
    for folder, error in find_folders(root, run):
        tour = Tour(folder, settings, checked_at=run.clock.now())
        try:
            if error:
                raise error
            tour = read_folder(folder, settings, run)
        except Stopped:
            raise
        except UploaderError as failure:
            tour.errors.append(failure)
        tours.append(tour)
    if not tours:
        raise UsageError(f"no folder below {shown(root)} holds photos", "Give the folder above them with -d")
    return compare_and_plan(tours)


def compare_and_plan(tours: list[Tour]) -> list[Tour]:
    """What takes all folders to tell, or all photos of one; then step 2."""
    compare(tours)
    for tour in tours:
        find_missing(tour)
        plan(tour)
    here = {sequence.uuid for tour in tours for sequence in tour.sequences}
    unpublished = {sequence.uuid for tour in tours for sequence in tour.sequences if sequence.state != "published"}
    wrong = tours[0].settings.republish - unpublished
    if wrong and not any(tour.errors for tour in tours):
        what = f"sequence {shown(min(wrong))} is {'published already' if min(wrong) in here else 'not here'}"
        raise UsageError(what, "--republish takes the id that the summary names")
    return tours


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """The folder's photos in natural order, and what is skipped: other files; folders that hold photos, as "name/"."""
    photos, skipped = [], []
    for name in sorted(names_in(folder), key=natural_order):
        if is_photo(name):
            photos.append(name)
        elif not name.startswith(".") and name not in (RESUME_NAME, LOCK_NAME):
            is_folder = os.path.isdir(place(folder, name))
            with contextlib.suppress(UploaderError):  # one that can't be read may hold photos
                if is_folder and not any(map(is_photo, names_in(place(folder, name)))):
                    continue
            skipped.append(name + "/" * is_folder)
    return photos, skipped


def names_in(folder: Path) -> list[str]:
    """What is in a folder; names that aren't UTF-8 keep their bytes as lone surrogates. Raise UsageError."""
    with failing_as(f"the folder {shown(folder)} can't be read", "See to its permissions and the disk"):
        try:
            return [os.fsencode(name).decode("utf-8", "surrogateescape") for name in os.listdir(folder)]
        except FileNotFoundError as error:
            raise UsageError(f"no such folder: {shown(folder)}", "Give the folder of photos with -d") from error
        except NotADirectoryError as error:
            raise UsageError(f"{shown(folder)} is a file", "Give the folder that it is in with -d") from error


def is_photo(name: str) -> bool:
    """Whether a file's name is that of a photo."""
    return name.lower().endswith((".jpg", ".jpeg")) and not name.startswith(".")


def natural_order(file: str) -> tuple[list[Any], str]:
    """Sort key of a relative path: numbers by value, IMG_2 before IMG_10."""
    runs: list[Any] = re.split("([0-9]+)", file)  # text, number, text, …
    runs[1::2] = map(int, runs[1::2])
    return runs, file


def recognise(tour: Tour, again: Collection[str]) -> None:
    """Find the photos that are published already, whatever was renamed, tagged anew, patched or stitched anew since."""
    published = tour.resume.published()
    holders = {photo: photo for photo in tour.photos if photo.uuid}  # published photo -> the one that it stands for
    files = {(photo.file, photo.size, photo.mtime_ns): photo for photo in tour.photos}
    for entry in [entry for entry in published if not entry.picture]:  # version 1.0 noted no marks
        if same := files.get((entry.file, entry.size, entry.mtime_ns)):
            entry.picture, entry.shot = same.picture, same.shot
    for photo, entry in pairs(tour, published, holders):
        settle(photo, entry, again)
        if photo.picture != entry.picture:
            photo.warnings += (Problem("changed since it was published; Mapillary keeps the version of then"),)
        elif photo.shot != entry.shot != "":
            photo.warnings += (Problem("published before with another time, place or camera; Mapillary keeps those"),)
        now, then = ((one.picture, one.file, one.photo_id, one.shot) for one in (photo, entry))
        if now == then and entry.uuid not in again:
            entry.size, entry.mtime_ns, tour.resume.changed = photo.size, photo.mtime_ns, True  # not opened next time
    gone = {entry.shot for entry in published if entry not in holders}
    for photo in [photo for photo in tour.photos if photo.shot in gone and not (photo.uuid or photo.problems)]:
        photo.doubts += (STITCHED_ANEW._replace(detail=shown(photo.file)),)


def pairs(tour: Tour, published: Iterable[Photo], holders: dict[Photo, Photo]) -> Iterator[tuple[Photo, Photo]]:
    """Pairs of a photo and a published one: same picture, else same photo.id. Each once; noted in `holders`."""
    for marks in ("picture", "file"), ("picture", "photo_id"), ("picture", "shot"), ("picture",), ("photo_id",):
        same: dict[tuple[str, ...], list[Photo]] = {}
        for entry in published:
            same.setdefault(tuple(getattr(entry, mark) for mark in marks), []).append(entry)
        for photo in [photo for photo in tour.photos if not photo.uuid]:
            key = tuple(getattr(photo, mark) for mark in marks)
            free = [entry for entry in same.get(key, []) if entry not in holders]
            if free and all(key) and (marks != ("picture",) or len(same[key]) == 1):  # of several, which one?
                holders[free[0]] = photo
                yield photo, free[0]


def settle(photo: Photo, entry: Photo, again: Collection[str] = ()) -> None:
    """Take a photo for a published one: it is not sent, unless its sequence is sent `again`."""
    photo.uuid, photo.session_key = entry.uuid, entry.session_key  # without a key an entry isn't kept
    if entry.uuid not in again:
        photo.state, photo.image_id, photo.slot = entry.state, entry.image_id, None
        photo.problems = photo.doubts = photo.warnings = photo.connections = ()


def compare(tours: Collection[Tour]) -> None:
    """Let no photo be sent twice: of equal pictures the first is sent, of two versions with one photo.id none.

    What is published counts as first, as it was then and as it is here now; in a folder, what is in its resume file,
    then what Sequence Maker named.
    """
    seen = defaultdict[str, list[tuple[Photo, Tour]]](list)
    pictures = {(photo.uuid, photo.picture) for tour in tours for photo in tour.resume.published()}
    for tour in tours:
        for photo in (*tour.resume.published(), *(photo for photo in tour.photos if photo.uuid)):
            for mark in marks_of(photo):
                seen[mark].append((photo, tour))
    for here in tours:
        own, kept = set(here.photos), {photo.file for s in here.resume.sequences.values() for photo in s.photos}
        good = [photo for photo in here.photos if photo.picture and not (photo.problems or photo.uuid)]
        first = [photo for photo in good if photo.file in kept]
        named = [photo for photo in good if photo.file.rpartition(".")[0].endswith("_calculated")]
        for photo in dict.fromkeys((*first, *named, *good)):
            alike = [
                (other, there)
                for mark in marks_of(photo)
                for other, there in seen[mark]
                if there is here or not other.uuid or (other.uuid, other.picture) in pictures
            ]
            twins = [pair for pair in alike if pair[0].picture == photo.picture]
            twins = [pair for pair in twins if pair[0] in own] or twins
            others = [pair for pair in alike if pair[0].picture != photo.picture]
            others = [pair for pair in others if pair[0].state != "copy"] or others
            for other, there in twins[:1] + others[:1]:
                settle_with(photo, here, other, there)
            for mark in marks_of(photo):
                seen[mark].append((photo, here))


def marks_of(photo: Photo) -> list[str]:
    """What a photo has in common with its copies, and with other versions of it."""
    return [mark for mark in (photo.photo_id, photo.shot and photo.shot + photo.picture) if mark]


def settle_with(photo: Photo, tour: Tour, other: Photo, there: Tour) -> None:
    """Settle what becomes of a photo that is like another one: published there, a copy, or a version too many."""
    here, folder = there is tour, shown(there.folder)
    if photo.picture == other.picture and other.uuid and not here:
        settle(photo, other)
        photo.warnings = (Problem("published from another folder", detail=folder),)
    elif photo.picture == other.picture:  # it is not sent, and spoils nothing
        detail = f"of {shown(other.file)}" + f" in {folder}" * (not here)
        photo.state, photo.doubts, photo.warnings = "copy", (), (COPY._replace(detail=detail),)
    elif here and other.uuid:
        photo.doubts += (TWO_VERSIONS._replace(detail=shown(photo.file)),) * (not photo.uuid)
    else:
        names = [shown(one.file if here else place(of.folder, one.file)) for one, of in ((other, there), (photo, tour))]
        doubt = (TWO_VERSIONS_HERE if here else ELSEWHERE)._replace(detail=", ".join(names))
        photo.doubts += (doubt,) * (not photo.uuid)
        other.doubts += (doubt,) * (not other.uuid)


def find_missing(tour: Tour) -> None:
    """Warn of connections to photos that can't be sent or aren't here; note an error where it is still being copied."""
    known = {photo.photo_id for sequence in tour.resume.sequences.values() for photo in sequence.photos}
    here, seconds = {photo.photo_id: photo for photo in tour.photos}, tour.settings.min_age or 0
    for photo in [photo for photo in tour.photos if photo.state == "ready"]:
        gone = [other for other in photo.connections if other not in here and other not in known]
        rejected = [here[other].file for other in photo.connections if other in here and here[other].problems]
        if gone:
            photo.warnings += (MISSING._replace(detail=", ".join(map(shown, gone[:2]))),)
            seconds = COPYING_SECONDS if tour.settings.min_age is None else seconds
        if rejected:
            photo.warnings += (Problem("connected to a photo that is rejected", detail=shown(rejected[0])),)
    youngest = max((p for p in tour.photos if not p.uuid), key=lambda p: p.changed_at, default=None)
    if youngest and seconds and (age := max(0, tour.checked_at - youngest.changed_at)) < 1000 * seconds:
        what = f"{shown(youngest.file)} is {age / 1000:.0f} s old: it may still be being copied"
        what += ", since a photo that it belongs with is missing" * (tour.settings.min_age is None)
        tour.errors.append(UploaderError(what, f"Run again when it is {seconds:g} s old, or with --min-age 0"))


def find_folders(root: Path, run: Run) -> Iterator[tuple[Path, UploaderError | None]]:
    """Each folder from `root` down that holds photos or a resume file, or can't be read: that has its error with it."""
    seen: set[tuple[int, int]] = set()  # links are followed, and each real folder is visited once
    names_in(root)
    todo = [root]
    while todo:
        folder = todo.pop()
        try:
            status = folder.stat()
            if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            names = names_in(folder)
        except FileNotFoundError:  # a dangling link
            continue
        except (UploaderError, OSError) as error:
            if getattr(error, "errno", 0) != errno.ELOOP:
                text = f"the folder {shown(folder)} can't be read: {getattr(error, 'strerror', error)}"
                yield folder, error if isinstance(error, UploaderError) else UsageError(text)
            continue
        if SKIP_NAME in names:
            run.message("debug", f"passed over: {shown(folder)}")
            continue
        if any(is_photo(name) or name == RESUME_NAME for name in names):
            yield folder, None
        names.sort(key=natural_order)
        for name in filter(PASSED_OVER.match, names):
            run.message("debug", f"passed over: {shown(place(folder, name))}")
        todo += [place(folder, name) for name in reversed(names) if not (is_photo(name) or PASSED_OVER.match(name))]


# ----------------------------------------------------------------------------------------------------------------------
# Planning
# ----------------------------------------------------------------------------------------------------------------------

ZONE_CONTRADICTED = Problem("its camera's clock and GPS time say another zone than --utc-offset",
                            "leave --utc-offset out, or correct it")  # fmt: skip
LEAP = Problem("a leg faster than 400 km/h", "look at the photo's position and time; mend or remove it")
PHOTOS_GONE = Problem("photos of it are no longer in the folder", "put them back to republish it")


def plan(tour: Tour) -> None:
    """Step 2: group photos into sequences, order them, cut them to Mapillary's limits, and see what holds them back."""
    records = tour.resume.sequences
    sequences = {uuid: s for uuid, s in records.items() if s.settled}
    settled = set(sequences)
    known = {photo.file: photo for s in records.values() if s.state != "published" for photo in s.photos}
    groups: dict[tuple[bool, str], list[Photo]] = {}
    for photo in tour.photos:
        if photo.state == "ready":
            groups.setdefault((bool(photo.uuid), photo.uuid or photo.sequence_id), []).append(photo)
    taken = {*settled, *(name for _, name in groups)}
    for (again, name), photos in groups.items():
        problems = settle_zone(photos, tour.settings.utc_offset)
        photos.sort(key=lambda photo: photo.taken_at)  # stable: in natural order where times are equal
        for photo, captured_at in zip(photos, spread([photo.taken_at for photo in photos])):
            photo.captured_at = captured_at
        problems += check_legs(photos)
        pieces = [photos] if again else cut(photos)
        names = [name] if again else part_names(name, len(pieces), taken, settled)
        for uuid, piece in zip(names, pieces):
            sequences[uuid] = replace(records[uuid], photos=piece) if again else Sequence(uuid, piece)
            sequences[uuid].problems = problems
            for photo in piece:
                adopt(photo, uuid, known.get(photo.file))
    tour.sequences = list(sequences.values())
    for sequence in tour.planned:
        hold_back(sequence, records.get(sequence.uuid), tour.settings.republish)


def adopt(photo: Photo, uuid: str, known: Photo | None) -> None:
    """Give a photo its place in a sequence, and what an earlier run has uploaded of it, if the same would be sent."""
    photo.uuid = uuid
    photo.session_key = photo.session_key or (known.session_key if known else "")  # Mapillary may hold its bytes
    if known and (known.size, known.mtime_ns) == (photo.size, photo.mtime_ns):
        photo.description_md5 = md5(description_bytes(photo))
        if photo.description_md5 == known.description_md5:
            photo.uploaded_at, photo.file_handle = known.uploaded_at, known.file_handle
            photo.state = "uploaded" if photo.file_handle else photo.state


def hold_back(sequence: Sequence, record: Sequence | None, republish: Collection[str]) -> None:
    """Hold a sequence back for its problems and its photos' doubts, but those that --republish overrides."""
    doubts = [doubt for photo in sequence.photos for doubt in photo.doubts]
    if sequence.uuid in republish:
        doubts = [doubt for doubt in doubts if doubt._replace(detail="") not in UNLESS_REPUBLISHED]
    if record and sequence.settled:
        here = {photo.file for photo in sequence.photos if photo.slot}
        gone = {photo.file for photo in record.photos} - here
        if gone and len(record.photos) > len(here):
            doubts.append(PHOTOS_GONE._replace(detail=f"{len(gone)}: {shown(min(gone))}"))
    sequence.problems = list(dict.fromkeys((*sequence.problems, *doubts)))
    if not sequence.settled:
        begun = any(photo.session_key for photo in sequence.photos)
        sequence.state = "held" if sequence.problems else "uploading" if begun else "ready"
    for photo in [photo for photo in sequence.photos if sequence.problems and photo.slot]:
        photo.state = "held"


def settle_zone(photos: Collection[Photo], utc_offset: int | None) -> list[Problem]:
    """Find the zone of camera times that have none by comparing the camera's clock with GPS time; never guess."""
    zoneless = [photo for photo in photos if photo.zoneless]
    gaps = [photo.clock_gap for photo in photos if photo.clock_gap is not None]
    gap = statistics.median(gaps) / MINUTE if gaps else math.inf
    zone = 30 * round(gap / 30) if gaps else 0
    agreed = abs(gap - zone) <= 10 and abs(zone) <= 14 * 60  # a fix may be some minutes stale
    if utc_offset is not None and zoneless and agreed and zone != utc_offset:
        return [ZONE_CONTRADICTED._replace(detail=f"{zone / 60:+g} h")]
    if utc_offset is None and zoneless and not agreed:
        apart = f"clock and GPS time are {abs(gap) / 60:,.1f} h apart"
        return [NO_ZONE._replace(detail=apart if gaps else "there is no GPS time to compare it with")]
    for photo in zoneless if utc_offset is None else ():
        photo.taken_at -= MINUTE * zone
    return []


def spread(times: Collection[int]) -> list[int]:
    """Sorted times, made strictly increasing: equal ones evenly up to the next time or the end of their second."""
    result: list[int] = []
    groups = sorted(Counter(times).items())
    for (taken_at, equal), (later, _) in zip(groups, groups[1:] + [(sys.maxsize, 0)]):
        room = min(later, taken_at - taken_at % 1000 + 1000) - taken_at
        for even in [taken_at + room * index // equal for index in range(equal)]:
            result.append(max(even, result[-1] + 1) if result else even)
    return result


def check_legs(photos: list[Photo]) -> list[Problem]:
    """A problem where two consecutive photos are impossibly far apart; a warning where it may be GPS noise."""
    leaps = []
    for here, there in zip(photos, photos[1:]):
        metres = distance(here, there)
        kmh = 3_600 * metres / max(1_000, there.taken_at - here.taken_at)
        if kmh > FASTEST_KMH:
            way = f"{metres:,.0f} m from {shown(here.file)} to {shown(there.file)}, {kmh:,.0f} km/h"
            if metres > LEAP_METRES:
                leaps.append(way)
            else:
                there.warnings += (Problem("a fast leg; GPS noise?", detail=way),)
    more = f"; {len(leaps) - 1} more" if len(leaps) > 1 else ""
    return [LEAP._replace(detail=leaps[0] + more)] if leaps else []


def cut(photos: Iterable[Photo]) -> list[list[Photo]]:
    """Consecutive pieces of at most SEQUENCE_PHOTOS photos and SEQUENCE_PIXELS pixels."""
    pieces: list[list[Photo]] = [[]]
    pixels = 0
    for photo in photos:
        if len(pieces[-1]) == SEQUENCE_PHOTOS or pixels + photo.pixels > SEQUENCE_PIXELS:
            pieces.append([])
            pixels = 0
        pieces[-1].append(photo)
        pixels += photo.pixels
    return pieces


def part_names(sequence_id: str, count: int, taken: set[str], settled: set[str]) -> list[str]:
    """MAPSequenceUUIDs: the id itself where one part is all there is and was, else `<id>_1`, … but the taken ones."""
    parts = re.compile(re.escape(sequence_id) + r"(_\d+)?")
    if count == 1 and not any(parts.fullmatch(uuid) for uuid in settled):
        return [sequence_id]
    first = 2 if sequence_id in settled else 1
    numbered = (f"{sequence_id}_{number}" for number in range(first, first + count + len(taken)))
    return [uuid for uuid in numbered if uuid not in taken][:count]


def distance(here: Photo, there: Photo) -> float:
    """Metres between two photos' places, on a sphere of 6,371,008.8 m (the IUGG's mean radius)."""
    one, other = math.radians(here.latitude), math.radians(there.latitude)
    half_north, half_east = (other - one) / 2, math.radians(there.longitude - here.longitude) / 2
    chord = math.sin(half_north) ** 2 + math.cos(one) * math.cos(other) * math.sin(half_east) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(min(1, chord)))


# ----------------------------------------------------------------------------------------------------------------------
# Description and tagged bytes: what is sent of a photo
# ----------------------------------------------------------------------------------------------------------------------


def description_bytes(photo: Photo, without: Collection[str] = ()) -> bytes:
    """Mapillary's description of a photo, in the keys of the official client's schema: compact JSON, pure ASCII."""
    heading = {"TrueHeading": photo.heading, "MagneticHeading": photo.heading}
    description = {
        "MAPLatitude": photo.latitude,
        "MAPLongitude": photo.longitude,
        "MAPAltitude": photo.altitude,
        "MAPCaptureTime": re.sub("[-T:.]", "_", iso(photo.captured_at)[:-1]),
        "MAPCompassHeading": None if photo.heading is None else heading,
        "MAPDeviceMake": photo.make or None,
        "MAPDeviceModel": photo.model or None,
        "MAPOrientation": photo.orientation,
        "MAPSequenceUUID": photo.uuid,
        "MAPFilename": valid_text(photo.file.rpartition("/")[2]),
    }
    known = {key: value for key, value in description.items() if value is not None and key not in without}
    return json.dumps(known, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def fitting(photo: Photo) -> bytes | None:
    """The description as it fits the slot: whole, without file name, without make and model too; None: none does."""
    for without in ((), ("MAPFilename",), ("MAPFilename", "MAPDeviceMake", "MAPDeviceModel")):
        value = description_bytes(photo, without)
        if photo.slot and len(value) < photo.slot.size:  # a NUL ends it
            return value
    return None


def sent_head(photo: Photo, stream: BinaryIO) -> tuple[bytes, int]:
    """The photo's first bytes as they are sent, and where in the file the rest begins, which is sent as it is."""
    slot, value = photo.slot, fitting(photo)
    if slot is None or value is None:
        exif = Exif(*read_head(stream, photo.size).exif[0])
        data = rewritten(photo, exif)
        stream.seek(0)
        start = exif.start - len(EXIF_MARK) - 2
        return stream.read(start) + struct.pack(">H", len(data) + 2) + data, exif.start + len(exif.data)
    stream.seek(0)
    end = max(slot.at + slot.size, slot.type_at + 6)
    head = bytearray(stream.read(end))
    head[slot.type_at : slot.type_at + 6] = struct.pack(slot.order + "HI", ASCII, len(value) + 1)
    head[slot.at : slot.at + slot.size] = value.ljust(slot.size, b"\0")
    return bytes(head), end


def rewritten(photo: Photo, exif: Exif) -> bytes:
    """The EXIF segment where no description fits the slot: piexif writes it. Raise Rejection where that harms a tag."""
    import piexif

    try:
        if exif.find("Exif", MAKER_NOTE):  # its own offsets count from the TIFF header: it may not move
            raise ValueError("MakerNote")
        if any(tag.at + tag.size > len(exif.data) or not tag.size for tag in exif.tags):
            raise ValueError("a tag lies out of bounds")  # piexif believes every count: one once took 24 GB
        before = piexif.load(EXIF_MARK + exif.data)
        tags = before | {"0th": before["0th"] | {IMAGE_DESCRIPTION: description_bytes(photo)}}
        data = piexif.dump(tags)
        if other_tags(data) != other_tags(EXIF_MARK + exif.data) or len(data) > 65_533:
            raise ValueError("another tag would change")
    except Exception as error:  # piexif raises struct.error, TypeError, KeyError, MemoryError and more, undocumented
        raise Rejection(NO_ROOM, error) from error
    return bytes(data)


def other_tags(data: bytes) -> tuple[object, ...]:
    """All of an EXIF segment but the description and what only says where things stand; piexif's view and our own."""
    import piexif

    moving = {IMAGE_DESCRIPTION, THUMBNAIL_AT, *DIRECTORIES}
    loaded, exif = piexif.load(data), Exif(data[len(EXIF_MARK) :])
    ifds = {ifd: found for ifd, found in loaded.items() if isinstance(found, dict)}
    values = {ifd: {number: v for number, v in found.items() if number not in moving} for ifd, found in ifds.items()}
    kinds = {(tag.ifd, tag.number, tag.kind) for tag in exif.tags if tag.number != IMAGE_DESCRIPTION}
    return loaded["thumbnail"], values, kinds


def session_of(blocks: Iterable[bytes], suffix: str = "jpg") -> tuple[str, int]:
    """Session key and size of these bytes: the same ones always continue the same session."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return f"mly_tools_{digest.hexdigest()}.{suffix}", size


def check_unchanged(stream: BinaryIO, photo: Photo) -> None:
    """Raise UploaderError where the open file isn't the one that was checked."""
    status = os.fstat(stream.fileno())
    if (status.st_size, status.st_mtime_ns) != (photo.size, photo.mtime_ns):
        raise UploaderError("the photo was changed after it was checked", "Run again when it is at rest")


def iso(ms: int) -> str:
    """ISO 8601 with milliseconds and Z."""
    return (EPOCH + timedelta(milliseconds=ms)).isoformat("T", "milliseconds")[:23] + "Z"


def from_iso(text: str) -> int:
    """Milliseconds of an ISO 8601 time with Z; raise ValueError for anything else."""
    if not text.endswith("Z"):
        raise ValueError(f"{text!r} is no time in UTC")
    return (datetime.fromisoformat(text[:-1] + "+00:00") - EPOCH) // timedelta(milliseconds=1)


# ----------------------------------------------------------------------------------------------------------------------
# Resume file and lock
# ----------------------------------------------------------------------------------------------------------------------

TIMES = ("uploaded_at", "captured_at", "publish_tried_at", "published_at")  # text in the file, milliseconds here
# What the file keeps, and of which type
PHOTO_KEYS: dict[str, Any] = {
    "photo_id": str, "shot": str, "picture": str, "size": int, "mtime_ns": int, "description_md5": str,
    "session_key": str, "file_handle": str | None, "uploaded_at": str | None, "captured_at": str,
    "latitude": int | float, "longitude": int | float, "make": str, "model": str, "image_id": str | None,
}  # fmt: skip
SEQUENCE_KEYS: dict[str, Any] = {
    "state": str, "manifest_handle": str | None, "publish_tried_at": str | None, "cluster_id": str | None,
    "published_at": str | None, "shown_before": list,
}  # fmt: skip
RESUME_KEYS = {"service": str, "username": str, "user_id": str, "organization_id": str | None, "closed": bool}
to_json = json.JSONEncoder(ensure_ascii=False).encode  # letters stay letters
NEW_KEYS: dict[str, Any] = {"shot": "", "picture": "", "shown_before": []}  # which files of version 1.0 lack


def adopt_owner(tour: Tour, account: Account, service: Service) -> None:
    """Make the account the owner of a new resume file; raise UsageError where the file has another one."""
    resume = tour.resume
    if not resume.user_id:
        resume.service, resume.user_id, resume.organization_id = service.name, account.user_id, account.organization_id
    for what, text, now, then in (
        ("account", f"{resume.username} ({resume.user_id})", account.user_id, resume.user_id),
        ("organization", resume.organization_id or "none", account.organization_id, resume.organization_id),
        ("service", resume.service, service.name, resume.service),
    ):
        if now != then:
            where = f"the resume file in {shown(tour.folder)}"
            raise UsageError(f"{where} is of another {what}: {text}", f"Run with that {what}")
    resume.changed |= bool(resume.username) and resume.username != account.username  # it was renamed
    resume.username = account.username


def save_resume(folder: Path, resume: Resume) -> None:
    """Write the resume file atomically; raise UploaderError where it fails."""
    path = resume_path(folder)
    hint = "The old one is still there; make room and run again, what was uploaded is not sent anew"
    with failing_as(f"the resume file {shown(path)} can't be saved", hint, UploaderError):
        write_atomically(path, path.with_name(TEMPORARY_NAME), resume_text(resume))
    resume.changed = False


def resume_text(resume: Resume) -> Iterator[bytes]:
    """JSON for people to read, a line a photo. A name that isn't valid text keeps its \\udcXX."""
    keys = {photo.session_key for sequence in resume.sequences.values() for photo in sequence.photos}
    facts = {"format": 1} | record_to(resume, RESUME_KEYS) | {"earlier_keys": sorted(resume.session_keys - keys)}
    text = json.dumps(facts, indent=1, ensure_ascii=False)[:-2] + ',\n "sequences": {\n'
    for uuid, sequence in resume.sequences.items():
        final = sequence.state in ("publishing", "published")
        photos = resume.texts.get(uuid, b"") if final else b""
        if not photos:
            begun = [photo for photo in sequence.photos if photo.session_key]
            lines = (f"   {to_json(photo.file)}: {to_json(record_to(photo, PHOTO_KEYS))}" for photo in begun)
            photos = ",\n".join(lines).encode("utf-8", "backslashreplace")
        resume.texts[uuid] = photos if final else b""
        if photos:
            facts = record_to(sequence, SEQUENCE_KEYS) | {"state": sequence.state if sequence.settled else "uploading"}
            text += f'  {to_json(uuid)}: {to_json(facts)[:-1]}, "photos": {{\n'
            yield text.encode("utf-8", "backslashreplace") + photos
            text = "}},\n"
    yield text.rstrip(",\n").encode("utf-8", "backslashreplace") + b"}}\n"


def record_to(record: object, keys: Iterable[str]) -> dict[str, Any]:
    """What the file keeps of a record."""
    values = {key: getattr(record, key) for key in keys}
    return values | {key: iso(values[key]) for key in TIMES if values.get(key) is not None}


def write_atomically(path: Path, temporary: Path, blocks: Iterable[bytes], mode: int = 0o666) -> None:
    """Temporary file, fsync, replace, fsync of the folder: a power cut leaves the old file or the new one, whole."""
    try:
        temporary.unlink(missing_ok=True)  # another user's, perhaps
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.writelines(blocks)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except (OSError, UploaderError):
        with contextlib.suppress(OSError):
            temporary.unlink()  # it may hold a token
        raise
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems can't; the file is in place all the same
            os.fsync(handle)
        os.close(handle)


def resume_path(folder: Path) -> Path:
    """Where the resume file is, a link followed. Raise UsageError where its target is away."""
    path = folder / RESUME_NAME
    if path.is_symlink() and not path.exists():
        what = f"the resume file {shown(path)} is a link, and its target is away"
        raise UsageError(what, "Mount it, or put it back: it knows what is published")
    return Path(os.path.realpath(path))


def load_resume(folder: Path, known: Resume | None = None) -> Resume:
    """Read the folder's resume file, which may be `known`; empty where there is none. A bad one is never that."""
    found = [name for name in names_in(folder) if re.fullmatch(r"mapillary_uploader.*\.json", name)]
    if {*found} - {RESUME_NAME}:
        hint = "Two folders were merged, or a copy was put back: keep one folder's photos and its file, move the rest"
        raise UsageError(f"{shown(folder)} holds {' and '.join(map(shown, sorted(found)))}", hint)
    path = resume_path(folder)
    with failing_as(f"the resume file {shown(path)} can't be read", "See to its permissions and the disk"):
        if not path.exists():
            return Resume()
        text = path.read_bytes()
    if known and text and known.read_from == text:
        return known
    try:
        data = json.loads(text)
        if data["format"] != 1:
            raise UsageError(f"the resume file {shown(path)} was written by a newer version", "Update this program")
        resume = Resume(**record_from(data, RESUME_KEYS), read_from=text)
        resume.sequences = {uuid: sequence_from(uuid, record) for uuid, record in data["sequences"].items()}
        current = {photo.session_key for sequence in resume.sequences.values() for photo in sequence.photos}
        resume.session_keys = current.union(data.get("earlier_keys", ()))
        if not all(isinstance(key, str) for key in resume.session_keys):
            raise ValueError("a wrong type")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        hint = "Restore it from a backup: it knows what is published"
        raise UsageError(f"the resume file {shown(path)} is damaged ({shown(error)})", hint) from error
    return resume


def sequence_from(uuid: str, data: dict[str, Any]) -> Sequence:
    """A sequence from JSON; raise ValueError for wrong types. What died publishing, or anew, is unconfirmed."""
    photos = [Photo(file, **record_from(entry, PHOTO_KEYS), uuid=uuid) for file, entry in data["photos"].items()]
    sequence = Sequence(uuid, photos, **record_from(data, SEQUENCE_KEYS))
    if sequence.state not in ("uploading", "publishing", "unconfirmed", "published"):
        raise ValueError(f"state is {sequence.state!r}")
    if sequence.state == "publishing" or (sequence.state == "uploading" and sequence.publish_tried_at):
        sequence.state = "unconfirmed"
    for photo in photos:
        photo.state = "published" if sequence.state == "published" else "uploaded"
    return sequence


def record_from(data: dict[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps, from JSON; raise ValueError for a wrong type, KeyError for what is missing."""
    values: dict[str, Any] = {key: data[key] if key in data else NEW_KEYS[key] for key in keys}
    for key, wanted in keys.items():
        if not isinstance(values[key], wanted) or isinstance(values[key], bool) != (wanted is bool):
            raise ValueError(f"{key} is {values[key]!r}"[:60])
        if key in TIMES and values[key] is not None:
            values[key] = from_iso(str(values[key]))
    return values


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's kernel lock, which a killed run loses; raise UploaderError at once where another run has it."""
    path, temporary = folder / LOCK_NAME, folder / TEMPORARY_NAME
    with failing_as(f"{shown(path)} can't be written", "The resume file must be kept in it"):
        others = path.exists() and not os.access(path, os.W_OK)  # it is as good for locking
        stream = open(path, "rb" if others else "a+b")  # noqa: SIM115
    with stream:
        with failing_as(f"{shown(path)} can't be locked", "Use a file system with locks"):
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                hint = "Wait for it; from cron that is normal"
                raise UploaderError(f"another run is at work on {shown(folder)}", hint, Exit.BUSY) from error
        with failing_as(f"{shown(temporary)} is in the way", "Remove it"):
            temporary.unlink(missing_ok=True)  # of a run that was killed while it saved
        yield


# ----------------------------------------------------------------------------------------------------------------------
# Mapillary client
# ----------------------------------------------------------------------------------------------------------------------

LOOK_UP_ID = "Look up its id on mapillary.com"
REQUEST_LIMITS = (4, 17, 32, 613)  # codes of Facebook's Graph API
UNCLEAR = (408, 409, 425, 499)  # a gateway's: the call may have gone through


def host_of(name: str, url: str) -> str:
    """The host that an http address names; raise UsageError where it is none, with the variable that it is from."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", url):
            return parts.hostname
    raise UsageError(f"{name} is no address that can be used", "It takes https://HOST or http://HOST:PORT")


def check_connection_settings(urls: Iterable[str], environment: Mapping[str, str]) -> None:
    """Raise UsageError where a proxy or certificate variable names what can't work: no retry would mend that."""
    import ssl
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = environment.get(name)
        with failing_as(f"{name} names no file of certificates: {shown(path)}", "Correct it, or unset it"):
            if path and not os.path.isdir(path):
                ssl.create_default_context(cafile=path)
    proxies = {name[:-6].lower(): name for name in sorted(environment) if name.lower().endswith("_proxy")}
    without = {"no": environment[proxies["no"]]} if "no" in proxies else {}
    for url in urls:
        name = proxies.get(url.partition(":")[0]) or proxies.get("all") or ""
        proxy = environment.get(name)
        if proxy and not proxy_bypass_environment(host_of("", url), without):
            host_of(name, proxy if "://" in proxy else f"http://{proxy}")


class Line:
    """A thread's connections to Mapillary, which another thread can cut: a call that hangs can't end by itself."""

    def __init__(self, token: str) -> None:
        import requests
        from requests.adapters import HTTPAdapter

        sockets = self.sockets = weakref.WeakSet[socket.socket]()
        self.busy, self.ends_at = False, math.inf  # whether a call is under way, and when it must be over (monotonic)

        class Adapter(HTTPAdapter):
            def get_connection_with_tls_context(self, *args: Any, **named: Any) -> Any:
                pool: Any = super().get_connection_with_tls_context(*args, **named)
                if pool.ConnectionCls is type(pool).ConnectionCls:

                    class Connection(pool.ConnectionCls):  # type: ignore[misc]
                        def connect(self) -> None:
                            super().connect()
                            sockets.add(self.sock)

                    pool.ConnectionCls = Connection
                return pool

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"OAuth {token}"  # ~/.netrc can't replace it
            return request

        self.session = requests.Session()
        self.session.auth = authorize
        self.session.headers["User-Agent"] = f"mapillary-uploader/{__version__}"
        self.session.mount("http://", Adapter())
        self.session.mount("https://", Adapter())

    def cut(self) -> None:
        """End the call that is under way: its socket answers that nothing more will come."""
        for end in list(self.sockets):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)  # not SSLSocket's, which another thread is using


class Client(contextlib.AbstractContextManager["Client"]):
    """Mapillary, for all threads of a call: the connections, the retries, the rate limit, the end.

    The token goes to the two hosts of `service` only: redirects are not followed.
    """

    def __init__(self, service: Service, token: str, run: Run, settings: Settings) -> None:
        self.service, self.token, self.run, self.retries = service, token, run, settings.retries
        self.clock, self.secrets = run.clock, [token]  # what no message may show
        self.ended = threading.Event()  # no call begins, no byte goes out any more
        self.senders = ThreadPoolExecutor(settings.workers)  # each keeps its connection
        self.others = ThreadPoolExecutor(10)
        self.lines: list[Line] = []
        self._of_thread = threading.local()
        self._opens_at = 0.0
        self._limited_since = math.inf  # since when nothing has got through the rate limit

    def cut(self) -> None:
        """End all calls that are under way; none begins any more."""
        self.ended.set()
        for line in [*self.lines]:
            line.cut()

    def __exit__(self, *_: object) -> None:
        """Nothing stays behind: threads end as soon as their calls do, which are cut."""
        self.cut()
        for threads in (self.senders, self.others):
            threads.shutdown(wait=not any(line.busy for line in self.lines), cancel_futures=True)
        for line in self.lines:
            line.session.close()

    def watch(self) -> None:
        """Cut each call that is over its time: the time limits of sockets are only between two bytes."""
        for line in [line for line in self.lines if line.busy and line.ends_at < time.monotonic()]:
            line.cut()

    def upload(self, key: str, size: int, body: Callable[[int], Iterator[bytes]], known: bool) -> tuple[str, bool]:
        """Send an upload session, whose bytes from an offset on are `body`; its file handle, and whether any were sent.

        After a failure, and first if `known` (it was begun before), the server is asked how much it has, and sent the
        rest. Safe to repeat: the key is made from the bytes. Where more has arrived, the count of failures starts anew.
        Raise AlreadyThere where the session is complete although it was never begun here.
        """
        failures = reached = 0
        ask, sent, foreign = known, False, False
        while True:
            try:
                offset = self._offset(key) if ask else 0
                failures, reached = (0, offset) if offset > reached else (failures, reached)
                if offset > size:
                    raise ServiceError(f"Mapillary says it holds {offset:,} bytes of it, more than its {size:,}")
                if offset == size and foreign:
                    raise AlreadyThere("Mapillary has it already, and this folder's resume file doesn't know of it")
                sent, foreign = sent or offset < size, False
                handle = self._send(key, offset, body(offset), size)
                self._limited_since = math.inf
                return handle, sent
            except TokenRefused:
                self.ended.set()  # no other thread may begin a call
                raise
            except Passing as error:
                first = error.status == 412 and not ask
                foreign |= first
                failures = self._wait(error, failures + (not first))
                ask = True

    def finish(self, manifest_handle: str, organization_id: str | None) -> str:
        """Publish a manifest, over a fresh connection; its cluster id. **Called once**, but after a rate limit.

        Raise an error `without_effect`, or Stopped, where it was certainly not published; else nobody knows.
        """
        content = {"file_handle": manifest_handle, "file_type": "mly_bundle_manifest"}
        content |= {} if organization_id is None else {"organization_id": organization_id}

        def call() -> dict[str, Any]:
            self._line().session.close()  # the next connection is a fresh one
            try:
                return self._call("POST", f"{self.service.graph}/finish_upload", json=content)
            except Passing as error:
                if error.without_effect:
                    raise
                raise ServiceError(str(error)) from error

        data = self.persist(call)
        cluster_id = as_id(data.get("cluster_id"))
        if not re.fullmatch("[1-9][0-9]*", cluster_id) or data.get("success") is False:
            raise ServiceError("POST /finish_upload: an answer without cluster id")
        return cluster_id

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """GET of the Graph API."""
        call = partial(self._call, "GET", self.service.graph + path, params=parameters)
        return self._attended(partial(self.persist, call))

    def search(self, url: str) -> dict[str, Any]:
        """GET of one page of a search, its `data` a list; where that is too much for Mapillary, with half the limit."""

        def ask(url: str) -> dict[str, Any]:
            try:
                data = self._call("GET", url)
            except Passing as error:
                given = re.search(r"[?&]limit=(\d+)", url)
                if error.status < 500 or isinstance(error, Throttled) or not given or int(given[1]) <= 100:
                    raise
                return ask(f"{url[: given.start(1)]}{max(100, int(given[1]) // 2)}{url[given.end(1) :]}")
            if not isinstance(data.get("data"), list):
                raise ServiceError("GET /images: an answer without data")
            return data

        return self._attended(partial(self.persist, partial(ask, url)))

    def post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """POST of JSON to the Graph API, once."""
        return self._attended(partial(self._call, "POST", self.service.graph + path, json=content))

    def _attended(self, call: Callable[[], T]) -> T:
        """Have another thread make a call, so that this one can leave it when it is told to stop."""
        future = self.others.submit(call)
        while not wait([future], TICK).done:
            self.watch()
            self.run.check()
        return future.result()

    def persist(self, call: Callable[[], T]) -> T:
        """Call until it works: only for what may be done twice, or fails without effect."""
        failures = 0
        while True:
            try:
                result = call()
                self._limited_since = math.inf
                return result
            except Passing as error:
                failures = self._wait(error, failures + 1)

    def _wait(self, error: Passing, failures: int) -> int:
        """Wait before another try, 1, 2, 4 … s or as the server says; raise the error where there were too many.

        A rate limit makes all threads wait, and counts as no failure. Give the failures.
        """
        delay = min(2 ** max(failures - 1, 0), LONGEST_RETRY_WAIT) if error.delay is None else error.delay
        if isinstance(error, Throttled):
            now = self.clock.seconds()
            since = self._limited_since = min(now, self._limited_since)
            failures, delay = max(0, failures - 1), min(delay, LONGEST_RATE_LIMIT - (now - since))
            if delay <= 0:
                raise error
            self._opens_at = max(self._opens_at, now + delay)
        elif failures > self.retries:
            raise error
        delay = min(delay, LONGEST_RATE_LIMIT)
        self.run.message("debug", f"{error}; trying again in {delay:g} s")
        self.clock.wait(delay, self.ended.is_set)
        return failures

    def _offset(self, key: str) -> int:
        offset = self._call("GET", f"{self.service.uploads}/{key}").get("offset")
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise Passing(f"GET {key}: an answer without offset")
        return offset

    def _send(self, key: str, offset: int, body: Iterator[bytes], size: int) -> str:
        line = self._line()
        seconds = ANSWER_SECONDS + size / SLOWEST_BYTES_A_SECOND

        def pieces() -> Iterator[bytes]:
            line.ends_at = math.inf  # a slow line may take its time, as long as it goes on
            for block in body:
                # Small ones: requests gives each CONNECT_SECONDS, so a server that reads 1 kB/s is not cut off
                for at in range(0, len(block), PIECE):
                    if self.ended.is_set():
                        raise Stopped("stopped")
                    yield block[at : at + PIECE]
            line.ends_at = time.monotonic() + seconds

        headers = {"Offset": str(offset), "X-Entity-Name": key}
        url = f"{self.service.uploads}/{key}"
        handle = self._call("POST", url, seconds, headers=headers, data=pieces()).get("h")
        if not isinstance(handle, str) or not handle:
            raise Passing(f"POST {key}: an answer without file handle")
        return handle

    def _line(self) -> Line:
        """This thread's own: a session of requests is not made to be shared."""
        if not hasattr(self._of_thread, "line"):
            self._of_thread.line = Line(self.token)
            self.lines.append(self._of_thread.line)
        return self._of_thread.line  # type: ignore[no-any-return]

    def _call(self, method: str, url: str, limit: float = 0, **rest: Any) -> dict[str, Any]:
        import requests

        while (left := self._opens_at - self.clock.seconds()) > 0 and not self.ended.is_set():
            self.clock.wait(left, self.ended.is_set)
        name = f"{method} {url.partition('?')[0].removeprefix(self.service.graph).removeprefix(self.service.uploads)}"
        line, limits = self._line(), (CONNECT_SECONDS, limit or ANSWER_SECONDS)
        started = time.monotonic()
        line.ends_at, line.busy = started + sum(limits), True
        try:
            if self.ended.is_set():
                raise Stopped("stopped")
            answer = line.session.request(method, url, timeout=limits, allow_redirects=False, **rest)
        except (requests.RequestException, OSError, ValueError) as error:  # ValueError: an address that can't be read
            raise broken(name, error) from error
        finally:
            line.busy = False
        data: Any = {}
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(answer.content)
        data = data if isinstance(data, dict) else {}
        message = "" if answer.ok else server_message(answer, data, self.secrets)
        took = 1000 * (time.monotonic() - started)
        self.run.message("debug", f"{name}: {answer.status_code} in {took:.0f} ms{message and ', ' + message}")
        return judge_answer(name, answer, data, message)


def broken(name: str, error: Exception) -> Passing:
    """What a failed call means: it had no effect where the connection didn't come about, else nobody knows."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    reason = getattr(reason, "original_error", reason)  # what a proxy error stands for: it may be an answer lost
    text, words = type(reason or error).__name__, str(error)
    never_left = any(sign in words for sign in ("CERTIFICATE_VERIFY_FAILED", "Tunnel connection failed"))
    if isinstance(reason, (NewConnectionError, ConnectTimeoutError)) or never_left:
        return Passing(f"{name}: no connection ({text})", without_effect=True)
    return Passing(f"{name}: the connection was lost ({text})")


def server_message(answer: requests.Response, data: Mapping[str, Any], secrets: Iterable[str]) -> str:
    """What the server says of a failure, without secrets: error.message, debug_info.message, or a text's start."""
    text = ""
    for key in ("error", "debug_info"):
        if isinstance(data.get(key), dict):
            text = text or str(data[key].get("error_user_msg") or data[key].get("message") or "")
    size, text = (300, text) if text else (100, answer.text)
    for form in (form for secret in secrets if secret for form in (secret, quote(secret, safe=""))):
        text = re.sub(re.escape(form), "[token]", text, flags=re.IGNORECASE)  # before it is cut anywhere
    text = text if size == 300 else " ".join(re.sub("<[^>]*>", " ", text[:4000]).split())
    return shown(text)[:size]


def judge_answer(name: str, answer: requests.Response, data: dict[str, Any], message: str) -> dict[str, Any]:
    """The data of a good answer; else raise what its status and its JSON say: passing, a rate limit, or a final no."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    status = answer.status_code
    if 200 <= status < 300:
        return data
    graph = data["error"] if isinstance(data.get("error"), dict) else {}
    info = data["debug_info"] if isinstance(data.get("debug_info"), dict) else {}
    text = f"{name}: HTTP {status}{message and ', ' + message}"
    without_effect = bool(graph) and 400 <= status < 500 and status not in UNCLEAR
    facts: dict[str, Any] = {"status": status, "without_effect": without_effect}
    asked = None
    with contextlib.suppress(InvalidHeader, ValueError, OverflowError):  # missing, or neither seconds nor a date
        asked = Retry().parse_retry_after(answer.headers.get("Retry-After", ""))
    if status == 429 or graph.get("code") in REQUEST_LIMITS or info.get("type") == "RequestRateLimitedError":
        backoff = finite(data.get("backoff"))
        asked = asked if backoff is None else max(0.0, backoff / 1000)
        raise Throttled(text, status=status, delay=asked or RATE_LIMIT_SECONDS)
    transient = graph.get("is_transient") is True or info.get("retriable") is True
    if status >= 500 or status in (408, 412, 421, 425) or (transient and status >= 400):
        raise Passing(text, **facts, delay=0 if status == 412 else asked)
    if status in (401, 403) or info.get("type") == "NotAuthorizedError":
        raise TokenRefused(f"Mapillary refuses the token ({text})", "Sign in again with --login", **facts)
    raise Refused(text, **facts)


def as_id(value: object) -> str:
    """An id as text, "" where it is none."""
    return "" if isinstance(value, bool) or not isinstance(value, (str, int)) else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Upload and publish
# ----------------------------------------------------------------------------------------------------------------------

REFUSED = Problem("Mapillary refuses it", "look at the photo, and remove it if it is no use")


def check_as_checked(tour: Tour, account: Account, service: Service) -> None:
    """Raise UploaderError where the resume file or a photo isn't as it was when the folder was checked."""
    fresh = load_resume(tour.folder, tour.resume)
    if fresh.read_from != tour.resume.read_from:
        then, now = (re.sub(rb'"image_id": [^}]*', b"", resume.read_from) for resume in (tour.resume, fresh))
        if then != now:
            what = f"another run has worked on {shown(tour.folder)} since it was checked"
            raise UploaderError(what, "Check it again")
        for uuid, sequence in tour.resume.sequences.items():
            for photo, found in zip(sequence.photos, fresh.sequences[uuid].photos):
                photo.image_id = found.image_id
    for photo in [photo for sequence in tour.planned for photo in sequence.photos if photo.slot]:
        with contextlib.suppress(OSError):
            status = place(tour.folder, photo.file).stat()
            if (status.st_size, status.st_mtime_ns) == (photo.size, photo.mtime_ns):
                continue
        raise UploaderError(f"{shown(photo.file)} was changed or removed since it was checked", "Check it again")
    adopt_owner(tour, account, service)


class Uploading:
    """Steps 3 and 4. The calling thread decides and keeps the books; the others hash, and talk to Mapillary.

    A round does what is left to do, until it is done or nothing gets through. What has failed in a passing way is tried
    again in the next round, at once where something got through meanwhile, else after a wait, for --patience minutes.
    """

    def __init__(self, client: Client, result: Result) -> None:
        self.client, self.result, self.settings, self.run = client, result, result.settings, client.run
        self.resume = result.resume
        self.todo: deque[Photo] = deque()  # to hash
        self.ready: deque[tuple[Photo | Sequence, str, int, Callable[[int], Iterator[bytes]]]] = deque()  # to send
        self.to_publish: deque[Sequence] = deque()
        self.running: dict[Future[Any], partial[None]] = {}  # what is under way, and what comes then
        self.sequences = {sequence.uuid: sequence for sequence in result.planned if not sequence.problems}
        self.missing: Counter[str] = Counter()  # per sequence, how many photos haven't arrived
        self.failed: list[tuple[Photo | Sequence, UploaderError]] = []  # of this round, in a passing way
        self.refused: set[Photo] = set()  # once; a second time is believed
        self.in_row, self.got_through = 0, False  # failures since something got through; whether any did, in this round
        self.was_closed = self.resume.closed
        self.arrived = self.arrived_bytes = self.expected = self.expected_bytes = 0
        self.started, self.save_at = client.clock.seconds(), 0.0

    def work(self) -> None:
        """Upload and publish all that is planned; raise what ends the run. The resume file is saved in any case."""
        self.bring_in_line()
        for sequence in self.sequences.values():
            self.enlist(sequence)
        self.expected, self.expected_bytes = len(self.todo), sum(photo.size for photo in self.todo)
        if self.todo or self.ready or self.to_publish:
            self.resume.closed, self.result.sent = False, True
            self.save()
            try:
                self.rounds()
            finally:
                self.wind_up()

    def bring_in_line(self) -> None:
        """Bring the resume file's unpublished sequences in line with the plan; no session key is forgotten."""
        here = {mark for photo in self.result.photos for mark in (photo.file, photo.picture)} - {""}
        for uuid, record in [(uuid, s) for uuid, s in self.resume.sequences.items() if not s.settled]:
            gone = [photo.file for photo in record.photos if here.isdisjoint((photo.file, photo.picture))]
            names = f"{count_of(gone, 'uploaded photo')} gone from the folder, {shown(min(gone, default=''))} first"
            text = f"sequence {uuid}: {names}"
            if len(gone) == len(record.photos):
                error = UploaderError(f"{text}; nothing is left of it, it is dropped", "Put them back to publish them")
                note_error(self.result, self.run, error)
            elif gone:
                self.run.message("warning", f"{text}; the rest goes on without")
            del self.resume.sequences[uuid]
            self.resume.changed = True
        # What is held back stays as it was perhaps published
        self.resume.sequences |= {s.uuid: s for s in self.result.planned if not (s.settled and s.problems)}
        now = self.client.clock.now()
        self.result.already = sum(1 for p in self.result.photos if p.state == "published" or p.usable(now))

    def enlist(self, sequence: Sequence) -> None:
        """Queue what is left to do of a sequence."""
        now = self.client.clock.now()
        missing = [photo for photo in sequence.photos if not photo.usable(now)]
        self.missing[sequence.uuid] = len(missing)
        self.todo += missing
        if sequence.state == "unconfirmed":
            how = "uploaded anew" if missing else "published again"
            self.run.message("warning", f"sequence {sequence.uuid} is {how}: a second copy on Mapillary is possible")
        if missing:  # it lists other handles; this run may be broken off before there is another
            sequence.manifest_handle = None
        if sequence.state == "unconfirmed" and sequence.manifest_handle:
            self.to_publish.append(sequence)
        else:
            self.send_if_complete(sequence)

    def send_if_complete(self, sequence: Sequence) -> None:
        """Queue the manifest of a sequence once all its photos have arrived; it goes before other photos."""
        if not self.missing[sequence.uuid] and sequence.photos:
            handles = [photo.file_handle for photo in sequence.photos]
            body = json.dumps({"version": "1", "upload_type": "images", "image_handles": handles}).encode()
            self.ready.appendleft((sequence, *session_of([body], "json"), lambda offset: iter((body[offset:],))))

    def rounds(self) -> None:
        """Do all there is to do, or until nothing has got through for --patience minutes of waiting."""
        waited, patience = 0.0, 60 * self.settings.patience
        while self.round(1 if waited else max(2, self.settings.workers)):
            if self.got_through:
                waited = 0.0
            elif waited < patience:
                text = f"nothing gets through to Mapillary ({self.failed[-1][1]}); trying again for up to "
                self.run.message("debug" if waited else "warning", f"{text}{patience / 60:g} min")
                self.save()
                seconds = min(patience - waited, max(FIRST_OUTAGE_WAIT, min(waited, LONGEST_OUTAGE_WAIT)))
                self.client.clock.wait(seconds, self.run.stop.is_set)
                self.run.check()
                waited += seconds
            else:
                for job, error in self.failed:
                    if isinstance(job, Photo):
                        job.failure = str(error)
                text = f"nothing gets through to Mapillary; given up after {waited / 60:.0f} min"
                note_error(self.result, self.run, UploaderError(text, "Run again to go on"))
                return
            self.todo += [job for job, _ in self.failed if isinstance(job, Photo)]
            for sequence in [job for job, _ in self.failed if isinstance(job, Sequence)]:
                self.send_if_complete(sequence)
            self.failed = []

    def round(self, enough: int) -> bool:
        """Keep the threads at work until all is done, or `enough` jobs have failed in a row; whether any has failed."""
        self.in_row, self.got_through = 0, False
        while True:
            if self.in_row < enough:
                self.fill()
            if not self.running:
                return bool(self.failed)
            for future in wait(self.running, TICK, FIRST_COMPLETED).done:
                self.running.pop(future)(future)
            self.client.watch()
            self.run.check()
            sizes, seconds = (self.arrived_bytes, self.expected_bytes), self.client.clock.seconds() - self.started
            self.run.progress(Progress("upload", self.arrived, self.expected, *sizes, self.result.already, seconds))
            if self.client.clock.seconds() > self.save_at:
                self.save()

    def fill(self) -> None:
        """Give the threads what they have room for: one photo is hashed ahead, a publish waits for no photo."""
        while self.to_publish and self.under_way(self.published) < 8:
            self.publish(self.to_publish.popleft())
        while self.ready and self.under_way(self.photo_sent, self.manifest_sent) < self.settings.workers:
            self.send(*self.ready.popleft())
        while self.todo and self.under_way(self.hashed) + len(self.ready) < 2:
            photo = self.todo.popleft()
            future = self.client.others.submit(session_of, sent_bytes(self.result.folder, photo))
            self.running[future] = partial(self.hashed, photo)

    def under_way(self, *then: Callable[..., None]) -> int:
        """How many jobs of a kind are under way, by what comes then."""
        return sum(1 for following in self.running.values() if following.func in then)

    def hashed(self, photo: Photo, future: Future[tuple[str, int]]) -> None:
        """A photo's session key is known: it is noted before the first byte is sent."""
        try:
            self.ready.append((photo, *future.result(), partial(sent_bytes, self.result.folder, photo)))
        except UploaderError as error:
            self.not_sent(photo, error)

    def send(self, job: Photo | Sequence, key: str, size: int, body: Callable[[int], Iterator[bytes]]) -> None:
        """Have a thread send a photo or a sequence's manifest; it asks first where an earlier run may have begun it."""
        known = key in self.resume.session_keys or not self.was_closed or str(job.uuid) in self.settings.republish
        self.resume.session_keys.add(key)
        future = self.client.senders.submit(self.client.upload, key, size, body, known)
        if isinstance(job, Sequence):
            self.running[future] = partial(self.manifest_sent, job)
        else:
            self.running[future] = partial(self.photo_sent, job, job.session_key != key)
            job.session_key, job.description_md5 = key, md5(description_bytes(job))

    def photo_sent(self, photo: Photo, fresh: bool, future: Future[tuple[str, bool]]) -> None:
        """A photo has arrived, or not; `fresh`: under a key that it didn't have before."""
        sequence = self.sequences[str(photo.uuid)]
        try:
            photo.file_handle, sent = future.result()
        except AlreadyThere:
            self.resume.session_keys.discard(photo.session_key)
            photo.session_key = ""
            self.todo = deque(other for other in self.todo if other.uuid != photo.uuid)
            if not sequence.problems:
                problem = MAYBE_THERE._replace(detail=shown(photo.file))
                sequence.problems, sequence.state = [problem], "held"
                text = f"sequence {sequence.uuid}: {problem}"
                note_error(self.result, self.run, UploaderError(text, "", Exit.REJECTED))
        except UploaderError as error:
            self.not_sent(photo, error)
        else:
            if sent or fresh or not photo.uploaded_at:
                photo.uploaded_at = self.client.clock.now()
            photo.state = "uploaded"
            self.in_row, self.got_through = 0, True
            self.arrived, self.arrived_bytes = self.arrived + 1, self.arrived_bytes + photo.size
            self.missing[sequence.uuid] -= 1
            self.send_if_complete(sequence)

    def manifest_sent(self, sequence: Sequence, future: Future[tuple[str, bool]]) -> None:
        """A manifest has arrived, or not; where nobody here has sent it, somebody may have published it."""
        try:
            sequence.manifest_handle, _ = future.result()
        except AlreadyThere as error:
            sequence.state, sequence.publish_tried_at = "unconfirmed", self.client.clock.now()
            note_error(self.result, self.run, unclear(sequence, f": {error}"))
            self.save()
        except UploaderError as error:
            self.not_sent(sequence, error)
        else:
            self.in_row = 0
            self.to_publish.append(sequence)

    def not_sent(self, job: Photo | Sequence, error: UploaderError) -> None:
        """A photo or a manifest didn't get there: for now, for good, or (--skip-invalid) as a photo that is no use."""
        if isinstance(error, Stopped):
            return  # what ends the run comes from elsewhere
        if isinstance(error, TokenRefused):
            raise error
        name = shown(job.file) if isinstance(job, Photo) else f"the manifest of sequence {job.uuid}"
        if isinstance(error, Passing):
            self.in_row += 1
            self.failed.append((job, error))
            self.run.message("debug", f"{name}: {error}")
        elif not isinstance(job, Photo):
            note_error(self.result, self.run, UploaderError(f"{name}: {error}", "Run again to go on"))
        elif isinstance(error, Refused) and self.settings.skip_invalid and job not in self.refused:
            self.refused.add(job)
            self.failed.append((job, error))
            self.got_through = True  # an answer is no outage
        elif isinstance(error, Refused) and self.settings.skip_invalid:
            self.run.message("error", f"{name}: {error}")
            job.reject(REFUSED._replace(detail=str(error)))
            sequence = self.sequences[str(job.uuid)]
            sequence.photos.remove(job)  # an older handle must not be published
            self.missing[sequence.uuid] -= 1
            self.send_if_complete(sequence)
        else:
            self.run.message("error", f"{name}: {error}")
            job.failure = str(error)

    def publish(self, sequence: Sequence) -> None:
        """Save the intent, then have the call made at once."""
        before = sequence.state, sequence.publish_tried_at
        sequence.state, sequence.publish_tried_at = "publishing", self.client.clock.now()
        try:
            self.save()
        except UploaderError:
            sequence.state, sequence.publish_tried_at = before  # the call is not made
            raise
        call = partial(self.client.finish, str(sequence.manifest_handle), self.resume.organization_id)
        self.running[self.client.others.submit(call)] = partial(self.published, sequence, before)

    def published(self, sequence: Sequence, before: tuple[str, int | None], future: Future[str]) -> None:
        """What became of a publish: done, certainly not done, or nobody knows. Saved before anything else happens."""
        error = future.exception()
        if error is None and future.result() in {s.cluster_id for s in self.resume.sequences.values()}:
            error = ServiceError("POST /finish_upload: the answer is another sequence's cluster id")
        if error is None:
            sequence.state, sequence.cluster_id = "published", future.result()
            sequence.published_at = self.client.clock.now()
            self.in_row, self.got_through = 0, True
            count = count_of(sequence.photos, "photo")
            self.run.message("info", f"published sequence {sequence.uuid}: {count} (cluster {sequence.cluster_id})")
        elif not (isinstance(error, Stopped) or (isinstance(error, ServiceError) and error.without_effect)):
            sequence.state = "unconfirmed"
            note_error(self.result, self.run, unclear(sequence, f": {error}"))
        else:
            sequence.state, sequence.publish_tried_at = before  # a call of an earlier run may still have had an effect
            if isinstance(error, Passing) and not isinstance(error, Throttled):
                self.in_row += 1
                self.failed.append((sequence, error))
            elif not isinstance(error, (Stopped, TokenRefused)):
                text = f"sequence {sequence.uuid} was not published: {error}"
                note_error(self.result, self.run, UploaderError(text, "Run again to go on"))
                if isinstance(error, Refused):  # its handles may be what is wrong
                    sequence.manifest_handle = None
                    for photo in sequence.photos:
                        photo.file_handle = None
        self.save()
        if isinstance(error, TokenRefused) or (error and not isinstance(error, (ServiceError, Stopped))):
            raise error

    def wind_up(self) -> None:
        """However the rounds have ended: give publishes two seconds to answer, and save what is known."""
        self.client.ended.set()
        wait([future for future, then in self.running.items() if then.func == self.published], 2)
        self.client.cut()
        wait(self.running, 0.5)
        for future in [future for future in self.running if future.done()]:
            with contextlib.suppress(UploaderError):
                self.running.pop(future)(future)
        settled = all(s.settled for s in self.sequences.values() if not s.problems)  # a killed run has begun no other
        self.resume.closed = self.was_closed or settled
        self.save()

    def save(self) -> None:
        """Save the resume file, and say when next: it may cost a few percent of the run."""
        started = self.client.clock.seconds()
        save_resume(self.result.folder, self.resume)
        ended = self.client.clock.seconds()
        self.save_at = ended + max(3, 40 * (ended - started))


def unclear(sequence: Sequence, why: str = "") -> UploaderError:
    """Nobody knows whether a sequence was published."""
    hint = "Each run looks whether its photos have appeared, and never publishes it again by itself. If they aren't "
    hint += f"there after some days, --republish {sequence.uuid} does; a second copy on Mapillary is then possible"
    return UploaderError(f"it is not known whether sequence {sequence.uuid} was published{why}", hint)


def note_error(result: Result, run: Run, error: UploaderError) -> None:
    """Something that decides the exit code, as it happens."""
    result.errors.append(error)
    run.message("error", str(error))


def mark_states(result: Result) -> None:
    """Bring the states of photos and sequences in line with what became of each other."""
    for sequence in result.planned:
        if sequence.state == "ready" and any(photo.session_key for photo in sequence.photos):
            sequence.state = "uploading"
    states = {sequence.uuid: sequence.state for sequence in result.sequences}
    for photo in result.photos:
        if photo.failure and photo.state != "rejected":
            photo.state = "failed"
        elif states.get(str(photo.uuid)) in ("published", "held") and photo.state in ("uploaded", "ready", "held"):
            photo.state = states[str(photo.uuid)]


# ----------------------------------------------------------------------------------------------------------------------
# Look-ups: what is on Mapillary?
# ----------------------------------------------------------------------------------------------------------------------


def find_images(client: Client, username: str, photos: Iterable[Photo]) -> dict[str, Photo]:
    """What Mapillary shows of an account within the photos' capture window, ± 2 s; all pages. By id, without file."""
    times = [photo.captured_at for photo in photos]
    query = {"start_captured_at": iso(min(times) - 2_000), "end_captured_at": iso(max(times) + 2_000), "limit": "2000"}
    query |= {"creator_username": username, "fields": "id,captured_at,geometry,make,model"}
    images: dict[str, Photo] = {}
    seen: set[str] = set()
    page: Any = f"{client.service.graph}/images?{urlencode(query)}"
    while isinstance(page, str) and page not in seen:
        if not page.startswith(client.service.graph + "/"):
            raise ServiceError("GET /images: its next page is on another host", "It is not followed: report this")
        data = client.search(page)
        seen.add(page)
        for image in data["data"]:
            images |= image_of(image)
        paging = data.get("paging")
        page = paging.get("next") if isinstance(paging, dict) else None
    return images


def image_of(data: Any) -> dict[str, Photo]:
    """An image from JSON, by its id; {} where it lacks what it takes to recognise it."""
    try:
        longitude, latitude, captured_at = map(finite, [*data["geometry"]["coordinates"][:2], data["captured_at"]])
    except (TypeError, KeyError, ValueError):
        return {}
    if not as_id(data.get("id")) or captured_at is None or latitude is None or longitude is None:
        return {}
    image = Photo("", captured_at=int(captured_at), latitude=latitude, longitude=longitude)
    image.make, image.model = as_text(data.get("make")), as_text(data.get("model"))
    return {as_id(data["id"]): image}


class Neighbours:
    """All photos that compete for Mapillary's images, so that a neighbour's image proves nothing."""

    def __init__(self, photos: Iterable[Photo]) -> None:
        self.by_second: dict[int, list[Photo]] = {}
        for photo in photos:
            self.by_second.setdefault(photo.captured_at // 1000, []).append(photo)

    def nearest(self, images: Mapping[str, Photo]) -> Iterator[tuple[str, list[Photo]]]:
        """Each image's id with the photo that it may be, or several as near in time, then place; earliest first."""
        # Where all times are cut to whole seconds, each stands for all of its second
        whole = all(image.captured_at % 1000 == 0 for image in images.values())
        for image_id, image in sorted(images.items(), key=lambda item: item[1].captured_at):
            second, near = image.captured_at // 1000, {}
            for photo in [photo for s in (second - 1, second, second + 1) for photo in self.by_second.get(s, ())]:
                same_second = whole and photo.captured_at // 1000 == second
                ms = 0 if same_second else abs(photo.captured_at - image.captured_at)
                metres = distance(photo, image)
                cameras = ((photo.make, image.make), (photo.model, image.model))
                other = any(a and b and a.casefold().split() != b.casefold().split() for a, b in cameras)
                if ms <= NEAR_MS and metres <= NEAR_METRES and not other:
                    near[photo] = ms, round(metres, 1)
            if near:
                yield image_id, [photo for photo in near if near[photo] == min(near.values())]

    def match(self, images: Mapping[str, Photo]) -> dict[Photo, list[str]]:
        """The ids of the images that are a photo; of several photos just as near, one that has the fewest yet.

        A second copy of a photo makes a second id of it, and never takes its neighbour's place.
        """
        found: dict[Photo, list[str]] = {}
        noted = {photo.image_id for photos in self.by_second.values() for photo in photos}
        for image_id, photos in self.nearest({key: image for key, image in images.items() if key not in noted}):
            photo = min(photos, key=lambda one: (len(found.get(one, ())) + bool(one.image_id), one.captured_at))
            found.setdefault(photo, []).append(image_id)
        return found

    def ids_of(self, sequence: Sequence, images: Mapping[str, Photo], unsent: Collection[Photo] = ()) -> list[str]:
        """The images that prove photos of a sequence: of several photos just as near, each must have an image.

        Of those `unsent`, one is enough: nobody knows which of them is there.
        """
        found, own, ids = self.match(images), set(sequence.photos), []
        for image_id, near in self.nearest(images):
            without = {photo for photo in near if photo not in found and not photo.image_id}
            if own & {*near} and (not without or without < {photo for photo in near if photo in unsent}):
                ids.append(image_id)
        return ids


def look_up_unconfirmed(client: Client, result: Result) -> None:
    """Settle publishes of earlier runs whose outcome is not known; one that can't be asked for isn't republished."""
    resume = result.resume
    try:
        look_up(client, resume, "unconfirmed")
    except ServiceError as error:
        client.run.message("warning", f"unconfirmed sequences can't be looked up now: {error}")
        republish = result.settings.republish - {s.uuid for s in resume.sequences.values() if s.settled}
        result.settings = replace(result.settings, republish=republish)
    known = {uuid: sequence for uuid, sequence in resume.sequences.items() if sequence.state == "published"}
    result.sequences = [known.get(sequence.uuid, sequence) for sequence in result.sequences]
    for sequence in resume.sequences.values():
        if sequence.state == "unconfirmed" and sequence.uuid not in result.settings.republish:
            note_error(result, client.run, unclear(sequence))


def look_up_tour(tour: Tour, account: Account, service: Service, run: Run) -> Result:
    """Note in a checked folder's resume file what is live by now."""
    if tour.owner and account.organization_id is None:
        account = replace(account, organization_id=tour.owner.organization_id)
    with locked(tour.folder), Client(service, account.token, run, tour.settings) as client:
        check_as_checked(tour, account, service)
        resume = tour.resume
        result = Result(**vars(tour), looked_up=True)
        result.username, result.errors = account.username, []
        try:
            look_up(client, resume, "unconfirmed")
            look_up(client, resume, "published")
        finally:
            result.sent = resume.changed
            if resume.changed:
                save_resume(tour.folder, resume)  # what was found before a call failed stays found
        planned, known = {s.uuid for s in tour.sequences}, {photo.uuid for photo in resume.published()}
        result.sequences = [*tour.sequences, *(s for uuid, s in resume.sequences.items() if uuid not in planned)]
        here = [photo for photo in tour.photos if photo.uuid not in known and photo.state not in ("published", "copy")]
        result.photos = resume.published() + here
        mark_states(result)
        return result


def look_up(client: Client, resume: Resume, state: str) -> None:
    """Note which photos of all sequences in a state Mapillary shows; one proves that an unconfirmed one was published.

    What it showed before a sequence was sent doesn't count. Warn of photos that are there twice.
    """
    for sequence in [s for s in resume.sequences.values() if s.state == state]:
        missing = [photo for photo in sequence.photos if not photo.image_id]
        images = find_images(client, resume.username, missing) if missing else {}
        images = {key: image for key, image in images.items() if key not in sequence.shown_before}
        neighbours = Neighbours(resume.published())
        if state == "unconfirmed":
            if not neighbours.ids_of(sequence, images):
                continue
            sequence.state, sequence.published_at, resume.changed = "published", sequence.publish_tried_at, True
            client.run.message("info", f"sequence {sequence.uuid} was published: its photos are on Mapillary")
        found = neighbours.match(images)
        for photo in [photo for photo in missing if photo in found]:
            ids = sorted(found[photo])
            photo.image_id, resume.changed = ids[0], True
            if len(ids) > 1:
                text = f"{shown(photo.file)} is on Mapillary more than once: {', '.join(ids)}; was it uploaded before?"
                client.run.message("warning", text)


def look_up_planned(client: Client, result: Result) -> None:
    """Hold a sequence back of which Mapillary shows photos before they are sent, and note what it shows."""
    resume, new = result.resume, [s for s in result.planned if not s.settled]
    unsent = dict.fromkeys(photo for s in new for photo in s.photos)
    neighbours = Neighbours([*resume.published(), *unsent])
    for sequence in [s for s in new if not s.problems]:
        images: dict[str, Photo] = {}
        try:
            images = find_images(client, resume.username, sequence.photos)
        except ServiceError as error:
            client.run.message("warning", f"whether sequence {sequence.uuid} is on Mapillary can't be seen: {error}")
        known = resume.sequences.get(sequence.uuid, sequence).shown_before  # to an earlier run
        there = sequence.shown_before = list(dict.fromkeys((*neighbours.ids_of(sequence, images, unsent), *known)))
        if there and sequence.uuid not in result.settings.republish:
            detail = f"{count_of(there, 'photo')}, {PHOTO_PAGE}{there[0]}"
            sequence.problems, sequence.state = [ON_MAPILLARY._replace(detail=detail)], "held"
            client.run.message("error", f"sequence {sequence.uuid}: {sequence.problems[0]}")


# ----------------------------------------------------------------------------------------------------------------------
# Sign-in
# ----------------------------------------------------------------------------------------------------------------------

PROFILE_KEYS = ("user_upload_token", "MAPSettingsUsername", "MAPSettingsUserKey", "MAPTokenExpires")


def granted(application: Application, service: Service, grant: Mapping[str, str]) -> Profile:
    """Exchange a code or an old token for a token and its end; raise SignInError where Mapillary won't."""
    with Client(service, valid_token(application.client_secret), run := Run(), Settings()) as client:
        client.secrets += [grant.get("refresh_token", ""), grant.get("code", "")]
        content = {"client_id": application.client_id, "redirect_uri": application.redirect_uri, **grant}
        try:
            data = client.post("/token", content)
        except Refused as error:
            raise SignInError(f"Mapillary gives no token: {error.args[0]}", "Sign in again: codes soon end") from error
    lifetime = finite(data.get("expires_in"))
    expires = iso(run.clock.now() + int(1000 * lifetime)) if lifetime else ""
    return Profile("", valid_token(data.get("access_token")), expires=expires)


def valid_token(value: object) -> str:
    """The token without surrounding space; raise SignInError where a header can't carry it."""
    token = str(value or "").strip()
    if not re.fullmatch(r"[\x21\x23-\x26\x28-\x7e]+", token):
        raise SignInError("the token holds characters that no token has", "Copy it anew, without quotes around it")
    return token


def profile_files(environment: Mapping[str, str]) -> list[Path]:
    """The official client's profile files, on every system the same; the first is where sign-ins are saved."""
    if own := environment.get("MAPILLARY_CONFIG_PATH"):
        return [Path(own)]
    folder = Path(environment.get("HOME") or os.path.expanduser("~")) / ".config" / "mapillary" / "configs"
    client_token = environment.get("MAPILLARY_CLIENT_TOKEN") or PUBLIC_CLIENT_TOKEN
    return list(dict.fromkeys([folder / client_token.replace("|", "_"), *sorted(folder.glob("MLY_*"))]))


def read_config(path: Path) -> configparser.ConfigParser:
    """A profile file; empty where there is none. Raise SignInError where it isn't INI."""
    config = configparser.ConfigParser(interpolation=None)
    config.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        with contextlib.suppress(FileNotFoundError):
            config.read_string(path.read_text("utf-8"), str(path))
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise SignInError(f"the profile file {shown(path)} can't be read: {shown(error)}", "Mend it") from error
    return config


def find_profile(name: str, environment: Mapping[str, str], run: Run) -> Profile | None:
    """The profile whose MAPSettingsUsername is `name`, else the one called so."""
    profiles = []
    for path in profile_files(environment):
        try:
            config = read_config(path)
        except SignInError as error:
            if "MAPILLARY_CONFIG_PATH" in environment:
                raise
            run.message("warning", str(error))  # another file may hold the profile
            continue
        for section in config.sections():
            token, username, user_id, expires = (config.get(section, key, fallback="").strip() for key in PROFILE_KEYS)
            profile = Profile(section, token, username, user_id, expires, path)
            if profile.token and name in (section, profile.username):
                profiles.append(profile)
                if os.name == "posix" and path.stat().st_mode & 0o077:
                    run.message("warning", f"others can read the tokens in {shown(path)}: chmod 600 it")
    return min(profiles, key=lambda profile: profile.username != name, default=None)


def save_profile(profile: Profile, path: Path) -> None:
    """Save atomically with mode 0600, leaving other sections as they are; raise SignInError where that fails."""
    path = Path(os.path.realpath(path))  # a link stays one
    config, text = read_config(path), io.StringIO()
    try:
        if not profile.name.isprintable():
            raise ValueError("no profile can have that name")
        if not config.has_section(profile.name):
            config.add_section(profile.name)
        values = (profile.token, profile.username, profile.user_id, profile.expires)
        for key, value in zip(PROFILE_KEYS, values):
            config.remove_option(profile.name, key)
            if value:
                config.set(profile.name, key, value)
        config.write(text)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, path.with_name(f".{path.name}.{os.getpid()}.tmp"), [text.getvalue().encode()], 0o600)
    except (OSError, ValueError) as error:
        hint = "Set MAPILLARY_ACCESS_TOKEN instead"
        raise SignInError(f"the profile can't be saved to {shown(path)}: {shown(error)}", hint) from error


class SignIn:
    """How the command line finds out who publishes: from the environment, a profile file, or a person."""

    def __init__(self, name: str, environment: Mapping[str, str], service: Service, run: Run) -> None:
        self.name, self.environment, self.service, self.run = name, environment, service, run
        token = environment.get("MAPILLARY_ACCESS_TOKEN", "").strip()
        self.given = Profile("", token) if token else None
        self.can_ask = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
        self.help = f"Set MAPILLARY_ACCESS_TOKEN, or sign in once: {own_name()} --login -u {shlex.quote(name)}"
        names = ("MAPILLARY_CLIENT_ID", "MAPILLARY_CLIENT_SECRET", "MAPILLARY_REDIRECT_URI")
        application = Application(*(environment.get(name, "") for name in names))
        self.application = application if application.client_id and application.client_secret else None

    def account(self, organization_id: str | None) -> Account:
        """The account to publish as; raise SignInError where there is none, or it isn't `name`'s."""
        profile = self.given or find_profile(self.name, self.environment, self.run)
        if profile is None and self.can_ask:
            profile = self.log_in()
        if profile is None:
            raise SignInError(f"no token for {shown(self.name)}", self.help)
        account = account_of(self.renewed(profile).token, organization_id, self.service)
        if self.name not in (account.username, profile.name):
            raise SignInError(f"the token belongs to {shown(account.username)}, not to {shown(self.name)}", self.help)
        of = f" for the organization {shown(account.organization)} ({organization_id})" * (organization_id is not None)
        self.run.message("info", f"account {shown(account.username)} ({account.user_id}){of}")
        return account

    def log_in(self) -> Profile:
        """Sign in: a token as it is, OAuth with one's own application, or e-mail and password; check whose, save it."""
        if not (self.given or self.can_ask):
            raise SignInError("signing in needs a terminal", "Set MAPILLARY_ACCESS_TOKEN")
        profile = self.given or (self.by_oauth(self.application) if self.application else self.by_password())
        account = account_of(profile.token, None, self.service)
        if account.username != self.name:
            what = f"that is the account {shown(account.username)}, not {shown(self.name)}"
            raise SignInError(what, "Sign in as that account, or give the name of this one with -u")
        path = profile_files(self.environment)[0]
        profile = replace(profile, name=self.name, username=account.username, user_id=account.user_id)
        save_profile(profile, path)
        self.run.message("info", f"signed in as {shown(self.name)}; saved in {shown(path)}")
        return profile

    def ask(self, question: str, hidden: bool = False) -> str:
        """Ask on the terminal; raise SignInError where the person gives up, or a signal ends it."""
        try:
            return str(click.prompt(question, hide_input=hidden, err=True, default="", show_default=False))
        except click.Abort as error:
            raise SignInError("not signed in", "Run --login again", self.run.stop_code) from error

    def by_password(self) -> Profile:
        """A token by e-mail and password, as the official client does; asks up to three times."""
        click.echo(
            "Sign in with your Mapillary e-mail and password. An account that signs in through Google or Facebook\n"
            "has none: set MAPILLARY_ACCESS_TOKEN, or MAPILLARY_CLIENT_ID and MAPILLARY_CLIENT_SECRET.",
            err=True,
        )
        token = self.environment.get("MAPILLARY_CLIENT_TOKEN") or PUBLIC_CLIENT_TOKEN
        with Client(self.service, token, self.run, Settings()) as client:
            for _ in range(3):
                email, password = self.ask("E-mail").strip(), self.ask("Password (not shown)", hidden=True)
                client.secrets.append(password)
                try:
                    data = client.post("/login", {"email": email, "password": password, "locale": "en_US"})
                    return Profile("", valid_token(data.get("access_token")))
                except Refused as error:
                    self.run.message("error", f"Mapillary says: {error.args[0]}")
        raise SignInError("not signed in", "Reset the password on mapillary.com, or set MAPILLARY_ACCESS_TOKEN")

    def by_oauth(self, application: Application) -> Profile:
        """OAuth: a person opens an address, and pastes the one that the browser ends at."""
        if not application.redirect_uri:
            raise UsageError("MAPILLARY_REDIRECT_URI is not set", "Set it to your application's callback address")
        state = base64.urlsafe_b64encode(os.urandom(24)).decode()
        click.echo("Open this address, allow the access, and paste the address that the browser ends at:", err=True)
        click.echo(authorize_url(application, state, self.service), err=True)
        answer = parse_qs(urlsplit(self.ask("Address").strip()).query)
        if "error" in answer:
            raise SignInError(f"Mapillary did not allow it: {shown(answer['error'][0])}", "Allow it, or use a token")
        if answer.get("state") != [state] or not answer.get("code"):
            raise SignInError("that address is not the answer to this sign-in", "Paste the whole address")
        return token_from(application, answer["code"][0], self.service)

    def renewed(self, profile: Profile) -> Profile:
        """The profile, with a new token where OAuth's is about to run out and the application's secret is there."""
        left, soon = math.inf, RENEW_DAYS * DAY
        with contextlib.suppress(ValueError):  # none that we wrote
            left = from_iso(profile.expires) - self.run.clock.now()
        if left <= soon and self.application:
            try:
                profile, left = renewed(self.application, profile, self.service), math.inf
                save_profile(profile, profile.path or profile_files(self.environment)[0])
            except UploaderError as error:  # a new token that can't be saved serves this run all the same
                self.run.message("warning", f"the token could not be renewed, or not be saved: {error}")
        whose = f"the token of profile {shown(profile.name)}"
        if left <= 0:
            raise SignInError(f"{whose} has run out", self.help)
        if left <= soon:
            self.run.message("warning", f"{whose} runs out on {profile.expires[:10]}")
        return profile


# ----------------------------------------------------------------------------------------------------------------------
# Map: what is known of folders, as GeoJSON and as a page that draws it
# ----------------------------------------------------------------------------------------------------------------------

THUMBNAIL_BYTES, THUMBNAIL_FILES = 5_000_000, 1_000  # on a page, as base64; how many photos are opened for them
PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
script-src 'sha256-%s'"><title>Photos for Mapillary</title><style>:root{color-scheme:light dark;--bad:#d3261b}
@media(prefers-color-scheme:dark){:root{--bad:#ff6e62}}body,svg{font:15px/1.5 system-ui,sans-serif;fill:CanvasText}
body{margin:auto;padding:12px;max-width:1000px;overflow-wrap:anywhere}td{padding-right:16px}figure{margin:16px 0}
svg{display:block;background:Canvas;border:1px solid #8888}circle{r:6px;fill:#2484dd;stroke:Canvas;stroke-width:2px}
.wedge{fill:#2484dd;opacity:.6}.leg{fill:none;stroke:#2484dd;stroke-width:2px;vector-effect:non-scaling-stroke}
.bar{stroke:CanvasText}.gap{stroke-dasharray:1 6}.odd{stroke:#f09000}.fast{stroke:var(--bad)}.bad{fill:var(--bad)}
aside{position:fixed;max-width:280px;padding:8px 12px;white-space:pre-line;background:Canvas;border:1px solid;
pointer-events:none}aside:empty{display:none}aside a{pointer-events:auto}aside img{display:block;height:90px}
@media(max-width:640px){circle{r:13px;stroke-width:6px}.wedge{d:path("M0 0L-20-60H20Z")}svg{font-size:38px}
td{display:block}}</style><h1>Photos for Mapillary</h1><p>Dot: a photo; wedge: where it faces; orange ring: something is
odd; dotted: a gap; red: left out, or a leg too fast.%s<aside></aside><script>%s</script></html>"""
SCRIPT = """const box = document.querySelector("aside")
onpointermove = onclick = ({clientX: x, clientY: y, target, type}) => { // the box stays: it may hold a link
  const [dot, ...more] = document.elementsFromPoint(x, y).filter(at => at.dataset.box)
  if (box.contains(target) || !dot && type != "click") return
  box.innerHTML = dot?.dataset.box ?? ""
  if (more[0]) box.append(`\\nalso here: ${more.map(at => at.dataset.file).join(", ")}`)
  box.style = `left:max(0px,min(${x + 14}px,100% - 310px));top:max(0px,min(${y + 14}px,100% - ${box.offsetHeight}px))`
}"""


def map_html(tours: Collection[Tour]) -> str:
    """A page that draws folders: it loads nothing, runs no script but its own, shows thumbnails of photos at hand."""
    pictures, own = thumbnails_of(tours), base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return PAGE % (own, "".join(part for tour in tours for part in drawn(tour, pictures)), SCRIPT)


def drawn(tour: Tour, pictures: Mapping[Photo, str]) -> Iterator[str]:
    """A folder on the page: counts, a table of its sequences, a plan of each, one of the photos elsewhere, reasons."""
    facts = {p[0]: known | {"jpeg": pictures.get(p[0])} for p, known in known_of(tour) if known["kind"] != "sequence"}
    others = [photo for photo in facts if facts[photo]["kind"] == "left out" and (photo.latitude or photo.longitude)]
    states = (f"{count:,} {state}" for state, count in Counter(photo.state for photo in facts).items())
    yield f"<h2>{html.escape(shown(tour.folder))}</h2><p>{', '.join(states)}<table>"
    for sequence in tour.sequences:
        yield f"<tr><td>{html.escape(shown(sequence_line(sequence, tour))).replace(', ', '<td>')}"
    yield "".join(["</table>", *(f'<p style="color:var(--bad)">{html.escape(shown(error))}' for error in tour.errors)])
    tracks = {f"sequence {shown(s.uuid)}": s.photos for s in tour.sequences} | {"in no sequence": []}
    yield from (plan_of(html.escape(name), tracks[name], others, facts) for name in tracks if tracks[name] or others)
    odd = [(one["file"], Problem(text)) for one in facts.values() for text in one["odd"]]
    for _, problem, names in [*findings(tour), *grouped("odd", odd)]:
        yield f"<details{' open' * (len(names) < 9)}><summary>{len(names):,} × {html.escape(str(problem))}</summary>"
        yield f"{html.escape(', '.join(names))}</details>"


def plan_of(title: str, track: list[Photo], others: list[Photo], facts: Mapping[Photo, dict[str, Any]]) -> str:
    """A track to scale, north up, with those of `others` that lie there, which it takes; without one, all others."""
    frame = track or others
    middle = frame[len(frame) // 2]
    ways = {photo: offset(middle, photo) for photo in (*track, *others)}
    xs, ys = [ways[photo].real for photo in frame], [ways[photo].imag for photo in frame]
    scale = min(880 / max(20, max(xs) - min(xs)), 560 / max(10, max(ys) - min(ys)))  # of 1,000 units across, a metre
    high = round(max(320, scale * (max(ys) - min(ys)) + 140))
    corner = complex(min(xs) + max(xs) - 1000 / scale, min(ys) + max(ys) + high / scale) / 2
    spots = {photo: ((way - corner) * scale).conjugate() for photo, way in ways.items()}
    at = {p: f"{z.real:.2f} {z.imag:.2f}" for p, z in spots.items() if 0 < z.real < 1000 and 0 < z.imag < high}
    others[:] = [photo for photo in others if photo not in at]
    bar = max(n * 10**zeros for n in (1, 2, 5) for zeros in range(8) if n * 10**zeros * scale <= 250)
    svg = [f'<path class="leg bar" d="M20 {high - 24}v8h{bar * scale:.2f}v-8" data-metres="{bar}"/>']
    svg.append(f'<text x="26" y="{high - 30}">{f"{bar} m" if bar < 1000 else f"{bar // 1000} km"}, north up</text>')
    svg += [f'<path class="leg {" ".join(facts[p]["odd"])}" d="M{at[p]}L{at[q]}"/>' for p, q in zip(track, track[1:])]
    svg += [dot_of(photo, middle, spot, facts[photo]) for photo, spot in at.items()]
    for photo, dy, end in [(track[0], "-.6em", "first"), (track[-1], "1.3em", "last")] if track else []:
        svg.append(f'<text transform="translate({at[photo]})" dx=".6em" dy="{dy}">{end}</text>')
    link = f'<a href="https://www.openstreetmap.org/?mlat={middle.latitude}&amp;mlon={middle.longitude}&amp;zoom=16">'
    return f'<figure><svg viewBox="0 0 1000 {high}">{"".join(svg)}</svg>{title}, {link}on OpenStreetMap</a></figure>'


def dot_of(photo: Photo, middle: Photo, at: str, facts: Mapping[str, Any]) -> str:
    """A photo on the plan around `middle`, with what the script tells of it."""
    told = [(key, value) for key, values in facts.items() for value in (values if type(values) is list else [values])]
    lines = [f"{key}: {html.escape(str(value))}" for key, value in told if value not in (None, "") and key != "jpeg"]
    lines += [f'<a href="{html.escape(facts["page"])}">on Mapillary</a>'] if facts["page"] else []
    lines += [f'<img src="data:image/jpeg;base64,{facts["jpeg"]}">'] if facts["jpeg"] else []
    turn = math.remainder(middle.longitude - photo.longitude, 360) * math.sin(math.radians(middle.latitude))
    turn += photo.heading or 0
    wedge = f'<path class="wedge" d="M0 0L-9-26H9Z" transform="translate({at})rotate({turn:.0f})"/>'
    look = "bad" if facts["kind"] == "left out" else "odd" if facts["odd"] or facts["warnings"] else ""
    texts = f'data-file="{html.escape(facts["file"])}" data-box="{html.escape("<br>".join(lines))}"'
    return f'{wedge * (photo.heading is not None)}<circle class="{look}" transform="translate({at})" {texts}/>'


def offset(here: Photo, there: Photo) -> complex:
    """Metres east and, as imaginary part, north on the straight way there: azimuthal equidistant, true everywhere."""
    a, b, turn = map(math.radians, (here.latitude, there.latitude, there.longitude - here.longitude))
    way = complex(math.cos(b) * math.sin(turn), math.cos(a) * math.sin(b) - math.sin(a) * math.cos(b) * math.cos(turn))
    return way / (abs(way) or 1) * distance(here, there)


def odd_of(track: list[Photo]) -> dict[Photo, list[str]]:
    """What is odd about a sequence's photos; to PAGE the words "fast" and "gap" are classes."""
    legs = [(offset(p, q), max(1_000, q.captured_at - p.captured_at)) for p, q in zip(track, track[1:])] or [(0j, 1)]
    far = max(50, 10 * statistics.median(abs(way) for way, _ in legs))
    late = max(60_000, 10 * statistics.median(ms for _, ms in legs))
    odd = {}
    for photo, (way, ms) in zip(track, [*legs, legs[-1]]):
        fast, slow = 3_600 * abs(way) / ms > FASTEST_KMH, abs(way) > far or ms > late
        against = math.cos(math.radians(photo.heading or 0) - math.atan2(way.real, way.imag)) < -0.5
        hour = (photo.captured_at / 3_600_000 + photo.longitude / 15) % 24  # by a mean sun
        odd[photo] = ["a fast leg to the next photo"] * (fast and photo is not track[-1])
        odd[photo] += ["a gap to the next photo"] * (slow and not fast and photo is not track[-1])
        odd[photo] += ["it faces against the track"] * (photo.heading is not None and abs(way) > 1 and against)
        odd[photo] += ["taken at night: is its time right?"] * (not 4 < hour < 22)
        odd[photo] += ["its sequence was cut into parts"] * (photo.sequence_id not in ("", photo.uuid))
    return odd


def map_geojson(tours: Collection[Tour]) -> dict[str, Any]:
    """What is known of folders as a GeoJSON FeatureCollection (RFC 7946): a line a sequence, a point a photo.

    Degrees, metres, UTC. The geometry is null where no place is known; `kind` is "sequence", "photo" or "left out".
    """
    found = [(p, {"folder": shown(tour.folder)} | facts) for tour in tours for p, facts in known_of(tour)]
    features = [{"type": "Feature", "geometry": line_of(photos), "properties": facts} for photos, facts in found]
    return {"type": "FeatureCollection", "features": features}


def known_of(tour: Tour) -> list[tuple[list[Photo], dict[str, Any]]]:
    """What is known of each sequence, then of each photo, at last of those that are in no sequence."""
    odd = {photo: texts for sequence in tour.sequences for photo, texts in odd_of(sequence.photos).items()}
    uuids = {sequence.uuid for sequence in tour.sequences}
    rest = [p for p in tour.photos if p not in odd and (p.state == "rejected" or p.uuid not in uuids)]
    known = [(s.photos, {"kind": "sequence"} | s.document(tour.checked_at)) for s in tour.sequences]
    for photo in (*odd, *rest):
        time, model = photo.captured_at or photo.taken_at, photo.model.removeprefix(photo.make).strip()
        facts = photo.document() | {"kind": "photo" if photo in odd else "left out", "odd": odd.get(photo, [])}
        facts |= {"time": iso(time) if time else None, "heading": photo.heading, "altitude": photo.altitude}
        facts |= {"camera": f"{photo.make} {model}", "page": photo.image_id and PHOTO_PAGE + photo.image_id}
        known.append(([photo], facts))
    return [(p, {k: shown(v) if type(v) is str else v for k, v in f.items() if k != "description"}) for p, f in known]


def line_of(photos: Iterable[Photo]) -> dict[str, Any] | None:
    """Geometry of these photos' places: a point or a line, which is cut at the antimeridian (RFC 7946, 3.1.9)."""
    lines: list[list[tuple[float, float]]] = [[]]
    for east, north in ((photo.longitude, photo.latitude) for photo in photos if photo.longitude or photo.latitude):
        west, south = lines[-1][-1] if lines[-1] else (east, north)
        if abs(east - west) > 180:
            edge = math.copysign(180, west)
            crossing = round(south + (edge - west) / (east - west + 2 * edge or 1) * (north - south), 7)
            lines[-1].append((edge, crossing))
            lines.append([(-edge, crossing)])
        lines[-1].append((east, north))
    kind = "MultiLineString" if lines[1:] else "LineString" if lines[0][1:] else "Point"
    at = {"MultiLineString": lines, "LineString": lines[0], "Point": lines[0][-1] if lines[0] else None}[kind]
    return {"type": kind, "coordinates": at} if at else None


def thumbnails_of(tours: Collection[Tour]) -> dict[Photo, str]:
    """Thumbnails in EXIF as base64: of all photos at hand, or evenly of as many as a page carries."""
    folders = {photo: tour.folder for tour in tours for photo in tour.photos}
    found: dict[Photo, str] = {}
    for photo, folder in list(folders.items())[:: math.ceil(len(folders) / THUMBNAIL_FILES) or 1]:
        with contextlib.suppress(UploaderError, OSError, IndexError), open_photo(place(folder, photo.file)) as stream:
            check_unchanged(stream, photo)
            exif = Exif(*read_head(stream, photo.size).exif[0])
            data = exif.data[exif.number("IFD1", THUMBNAIL_AT) :][: exif.number("IFD1", THUMBNAIL_SIZE)]
            found |= {photo: base64.b64encode(data).decode()} if data.startswith(b"\xff\xd8") else {}
    while sum(map(len, found.values())) > THUMBNAIL_BYTES:
        found = dict([*found.items()][::2])
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Console
# ----------------------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """Text as it may be shown: control characters and what isn't valid text are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def count_of(things: Collection[object], noun: str) -> str:
    """ "1 photo", "2 photos"."""
    return f"{len(things):,} {noun}{'s' * (len(things) != 1)}"


def first_of(names: Collection[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" … {len(names) - most:,} more (--json lists all)" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more


def in_words(size: float) -> str:
    """Bytes as kB, MB or GB."""
    unit, name = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if size >= pair[0]), (1e3, "kB"))
    return f"{size / unit:,.1f} {name}"


def quoted(word: str) -> str:
    """A word of a command for pasting into bash, whatever is in it, as far as stdout can show it."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    if word.isprintable() and word.encode(encoding, "replace").decode(encoding) == word:
        return shlex.quote(word)
    hexed = ("".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in word)
    return "$'" + "".join(c if " " <= c <= "~" and c not in "\\'" else x for c, x in zip(word, hexed)) + "'"


def own_name() -> str:
    """How this program was started, to be pasted into a shell."""
    script = sys.argv[0].endswith(".py")
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1] if script else sys.argv[:1]
    return " ".join(map(quoted, words))


class Console(Run):
    """stderr: dated log lines or, on a terminal, coloured ones above a progress bar. Never fails."""

    LEVELS = ("debug", "info", "warning", "error")

    def __init__(self) -> None:
        super().__init__()
        self.signalled = False
        self.working = False  # a signal sets `stop`; before, it raises KeyboardInterrupt
        self.folder = ""  # with --recursive, the one that a line is about
        self.drawn_at, self.bar, self.lock = self.clock.seconds(), False, threading.Lock()
        self.lowest, self.terminal = "error", bool(sys.stderr and sys.stderr.isatty())

    def message(self, level: str, text: str) -> None:
        """A line of the log."""
        if self.LEVELS.index(level) < self.LEVELS.index(self.lowest):
            return
        line = f"{self.folder}: {text}" if self.folder else text
        line = f"{level}: {line}" if level in ("warning", "error") else line
        if not self.terminal:
            line = f"{iso(self.clock.now())[:19]}Z {line}"
        elif level in ("warning", "error") and not os.environ.get("NO_COLOR"):
            line = click.style(line, fg="red" if level == "error" else "yellow")
        self.write(line + "\n")

    def write(self, text: str = "", bar: bool = False) -> None:
        """To stderr, whatever became of it, in place of the bar, which the next progress draws again."""
        with self.lock, contextlib.suppress(OSError, ValueError):
            text, self.bar = "\r\x1b[K" * self.bar + text, bar
            if sys.stderr:
                sys.stderr.write(text)
                sys.stderr.flush()

    def progress(self, progress: Progress) -> None:
        """On a terminal the bar, ten times a second at most; else a log line, every 30 s at most."""
        now = self.clock.seconds()
        if now - self.drawn_at < (0.1 if self.terminal else 30):
            return
        self.drawn_at = now
        width = 79
        with contextlib.suppress(OSError, ValueError):  # stderr's: stdout may be a file
            width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        if self.terminal:
            self.write(f"\r{progress_text(progress, width)}\x1b[K", bar=True)
        else:
            self.message("info", progress_text(progress))


def progress_text(progress: Progress, width: int = 0) -> str:
    """How far it is, in so many columns: as much text as leaves room for a bar. With 0 columns: all text, no bar."""
    done, total = progress.done + progress.before, progress.total + progress.before
    rate = progress.done_bytes / max(0.1, progress.seconds)
    seconds = int((progress.total_bytes - progress.done_bytes) / rate) if rate else 0
    speed = f", {in_words(rate)}/s, {timedelta(seconds=seconds) if rate else '?'} left"
    there = " photos" + f", {progress.before:,} of {total:,} were there" * bool(progress.before)
    sizes = f", {in_words(progress.done_bytes)} of {in_words(progress.total_bytes)}"
    texts = [f"{done:,}/{total:,}{more}{speed}" for more in (there + sizes, there, " photos", "")]
    if progress.step == "check":
        texts = [f"checking photos: {done:,} of {total:,}"]
    text = next((text for text in texts if not width or len(text) <= width - 13), texts[-1])
    room = width - len(text) - 3
    return f"[{'#' * (room * done // max(1, total)):<{room}}] {text}" if room >= 5 else text[: width or None]


def grouped(title: str, pairs: Iterable[tuple[str, Problem]]) -> list[tuple[str, Problem, list[str]]]:
    """Findings without their details, each once, and whom each is about: "name (detail)"."""
    groups: dict[Problem, list[str]] = {}
    for name, problem in pairs:
        groups.setdefault(problem._replace(detail=""), []).append(name + f" ({problem.detail})" * bool(problem.detail))
    return [(title, problem, names) for problem, names in groups.items()]


def findings(tour: Tour) -> list[tuple[str, Problem, list[str]]]:
    """Each reason of a rejection, a hold, a failed upload or a warning, and whom it is about."""
    photos = [(shown(photo.file), photo) for photo in tour.photos]
    failed = [(name, photo.failure.replace(photo.session_key, "…")) for name, photo in photos if photo.failure]
    return [
        *grouped("rejected", ((name, problem) for name, photo in photos for problem in photo.problems)),
        *grouped("held back", ((f"sequence {s.uuid}", problem) for s in tour.sequences for problem in s.problems)),
        *grouped("failed", ((name, Problem(failure)) for name, failure in failed)),
        *grouped("warning", ((name, warning) for name, photo in photos for warning in photo.warnings)),
    ]


def states_of(tours: Collection[Tour]) -> str:
    """How many photos are in which state, in words; of folders in which nothing is new, that it is so."""
    photos = [photo for tour in tours for photo in tour.photos]
    states = Counter(photo.state for photo in photos)
    words = {"published": "published", "uploaded": "uploaded", "ready": "to upload", "failed": "failed"}
    words |= {"held": "held back", "rejected": "rejected", "copy": "copies" if states["copy"] > 1 else "copy"}
    texts = [f"{states[state]:,} {word}" for state, word in words.items() if states[state]]
    sent = [photo for tour in tours for s in tour.sequences if s.settled for photo in s.photos]
    live = sum(1 for photo in sent if photo.image_id)
    if any(isinstance(tour, Result) and tour.looked_up for tour in tours):
        texts = [f"{live:,} of {len(sent):,} published or sent are live", *texts]
    elif all(map(is_unchanged, tours)):
        before = [photo for photo in photos if photo.state == "published"] or sent
        seen = "all live" if all(photo.image_id for photo in before) else "not all seen live yet"
        return ", ".join([f"nothing new: {len(before):,} published before", seen, *texts[bool(states["published"]) :]])
    return f"{count_of(photos, 'photo')}: {', '.join(texts)}" if photos else ", ".join(texts) or "no photo"


def is_unchanged(tour: Tour) -> bool:
    """Whether all was done before, and this run has added nothing."""
    return not (tour.code or tour.dry_run or isinstance(tour, Result) and tour.sent)


def summary_of(tour: Tour, ending: Iterable[str] = ()) -> str:
    """What a person likes to read at the end: counts, sequences, reasons, what was written; a screen at most."""
    counts = f"{shown(tour.folder)}: {states_of([tour])}"
    lines = [f"  {sequence_line(sequence, tour)}" for sequence in tour.sequences]
    lines[10:] = [f"  … {count_of(lines[10:], 'more sequence')} (--json lists all)"] * (len(lines) > 10)
    for title, problem, names in findings(tour):
        lines += [f"  {title}, {len(names):,} × {problem}", f"    {first_of(names, 10)}"]
    folders = [shown(name) for name in tour.skipped if name.endswith("/")]
    rest = [shown(name) for name in tour.skipped if not name.endswith("/")]
    lines += [f"  not looked into: {first_of(folders, 5)}; -r does"] * bool(folders)
    lines += [f"  skipped, no photos: {first_of(rest, 5)}"] * bool(rest)
    lines += [f"  {line}" for line in (tour.written, *ending) if line]
    return "\n".join([counts, *lines, *[counts] * (len(lines) > 12)])


def sequence_line(sequence: Sequence, tour: Tour) -> str:
    """A sequence: photos, distance, first and last time, what is known of it. Never "failed": the API can't tell."""
    track = sorted(sequence.photos, key=lambda photo: photo.captured_at)
    metres = sum(distance(here, there) for here, there in zip(track, track[1:]))
    first, last = (iso(track[0].captured_at)[:19], iso(track[-1].captured_at)[:19]) if track else ("", "")
    span = f", {first}Z to {last[11:] if first[:10] == last[:10] else last}Z" if track else ""
    count, live = len(track), sequence.live
    words = {"ready": "to upload", "held": "held back", "uploading": "not published yet", "published": "published"}
    state = words.get(sequence.state, "publish unconfirmed")
    link = next((f", {PHOTO_PAGE}{photo.image_id}" for photo in sequence.photos if photo.image_id), "")
    if not (sequence.settled and isinstance(tour, Result) and tour.looked_up):
        state += " and live" * (sequence.settled and live == count)
    elif live == count:
        state = f"live{link}"
    else:
        there = f"partly live ({live} of {count})" if live else "sent (none live yet; hours to days are usual)"
        there = there if sequence.state == "published" else f"{state}, none of its photos is there yet"
        late = f"overdue: {there}, {OVERDUE_DAYS} days after publishing"
        state = (late if sequence.overdue(tour.checked_at) else there) + link
    return f"sequence {sequence.uuid}: {count_of(track, 'photo')}, {metres / 1000:,.2f} km{span}: {state}"


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    """The command line, but for what Settings holds."""

    directory: Path = Path()
    username: str = ""
    organization: str | None = None
    recursive: bool = False
    dry_run: bool = False
    map: Path | None = None
    output: Path | None = None
    check: bool = False
    login: bool = False
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    settings: Settings = Settings()
    words: tuple[str, ...] = ()  # as they were given


def main(options: Options, environment: Mapping[str, str], console: Console) -> list[Tour]:
    """The command line's run: sign in, check, publish; what became of each folder. Raise UploaderError."""
    check_options(options)
    service = service_from(environment)
    sign_in = SignIn(options.username, environment, service, console)
    if options.login:
        sign_in.log_in()
        return []
    account = None if options.dry_run else sign_in.account(options.organization)
    console.working = True
    console.message("info", f"checking the photos {'below' if options.recursive else 'in'} {shown(options.directory)}")
    if options.recursive:
        tours = (read_folders if options.check else check_folders)(options.directory, options.settings, console)
    else:
        if account:
            with locked(options.directory):  # a second run ends at once
                pass
        tours = [check_folder(options.directory, options.settings, console)]
    return each(tours, options, console, partial(finish, options, account, service, console))


NOT_REACHED = UploaderError("not reached: the run ended before it", "Run again")


def each(tours: list[Tour], options: Options, console: Console, step: Callable[[Tour], Tour]) -> list[Tour]:
    """Do a step with one folder after the other; an error of one is noted and stops no other, but if it is of all."""
    results: list[Tour] = []
    for tour in tours:
        tour.username, tour.dry_run = options.username or None, options.dry_run
    for tour in tours:
        console.folder = shown(tour.folder) if options.recursive else ""
        try:
            console.check()
            results.append(step(tour))
        except UploaderError as error:
            console.message("error", str(error))
            tour.errors.append(error)
            results.append(tour)
        if {error.code for error in results[-1].errors} & {Exit.SIGN_IN, Exit.INTERRUPTED, Exit.TERMINATED}:
            break
    console.folder, rest = "", tours[len(results) :]
    for tour in rest:
        for own in tour.errors:
            console.message("error", f"{shown(tour.folder)}: {own}")
        tour.errors.append(NOT_REACHED)
    return results + rest


def finish(options: Options, account: Account | None, service: Service, console: Console, tour: Tour) -> Tour:
    """Ask what is live in a folder; or say what was found there, write --output, and publish it."""
    if options.check and account:
        return look_up_tour(tour, account, service, console)
    for title, problem, names in findings(tour):
        count, most = f"{len(names):,} × " * (len(names) > 1), len(names) if options.verbose else 3
        console.message("warning" if title == "warning" else "error", f"{count}{problem} [{first_of(names, most)}]")
    for error in tour.errors:
        console.message("error", str(error))
    if options.verbose:
        for photo in [photo for sequence in tour.planned for photo in sequence.photos if photo.slot]:
            console.message("debug", f"{shown(photo.file)}: {to_json(description_of(photo))}")
    if options.output:
        tour.written = write_output(tour, options.output / os.path.relpath(tour.folder, options.directory))
    if account is None:
        if owner := tour.owner:  # another's, as far as that can be seen without asking?
            same = "" if options.username != owner.username else owner.user_id
            named = replace(owner, user_id=same, organization_id=options.organization)
            adopt_owner(tour, named if options.username else owner, service)
        return tour
    return publish(tour, account, service, console) if tour.photos or tour.resume.read_from else tour


def write_output(tour: Tour, output: Path) -> str:
    """Write the photos as they are sent; how many, in words. A file of other content there is not overwritten."""
    photos = [photo for s in tour.planned if not s.problems for photo in s.photos]
    for photo in photos:
        target, blocks = place(output, photo.file), sent_bytes(tour.folder, photo)
        with failing_as(f"{shown(target)} can't be written", "Choose another --output"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                write_atomically(target, target.with_name(f".{target.name[:200]}.tmp"), blocks)
            elif not target.is_file() or target.read_bytes() != b"".join(blocks):
                raise UsageError(f"{shown(target)} exists with other content", "Choose an empty --output folder")
    return f"{count_of(photos, 'photo')} written to {shown(output)}" + ": none is to be sent" * (not photos)


def check_options(options: Options) -> None:
    """Raise UsageError where options are missing or don't go together."""
    beside = {"--dry-run": options.dry_run, "--republish": options.settings.republish, "--output": options.output}
    wrong = [f"--check and {name}" for name, given in beside.items() if options.check and given]
    if wrong := wrong + ["--quiet and --verbose"] * (options.quiet and options.verbose):
        raise UsageError(f"{wrong[0]} contradict each other", "See --help")
    if not options.username and not options.dry_run:
        raise UsageError("the account is missing", "Give it with -u NAME")
    if options.organization is not None and not re.fullmatch(r"[0-9]+", options.organization, re.ASCII):
        raise UsageError(f"the organization {shown(options.organization)} is no number", "Give its id, not its name")
    if not options.login:
        names_in(options.directory)
    if options.output:
        here, there = options.directory.resolve(), options.output.resolve()
        if here == there or here in there.parents:
            raise UsageError("--output lies in the folder of photos", "Choose a folder elsewhere")


def next_steps(tours: Collection[Tour], options: Options) -> Iterator[str]:
    """What to do now, each as a command of this run's own words with only what must change."""
    code = worst(tour.code for tour in tours)
    sequences = [sequence for tour in tours for sequence in tour.sequences]
    held = [s.uuid for s in sequences if any(p._replace(detail="") in UNLESS_REPUBLISHED for p in s.problems)]
    asked = [(tour, s) for tour in tours for s in tour.sequences if s.uuid in options.settings.republish]
    untried = [s.uuid for t, s in asked if s.state != "published" and (s.publish_tried_at or 0) < t.checked_at]
    left = any(photo.state in ("ready", "uploaded", "failed") for tour in tours for photo in tour.photos)
    sent = any(isinstance(tour, Result) and tour.sent for tour in tours)
    waiting = any(s.settled and s.live < len(s.photos) for s in sequences)
    account = [] if options.username else ["-u", "NAME"]
    if options.check and code == Exit.OVERDUE:
        yield "Overdue: ask Mapillary's support, with the cluster id in the resume file"
    elif options.check and code in (Exit.DONE, Exit.UNFINISHED):
        if waiting or not code:
            yield f"To look again: {again(options)}" if waiting else "All live."
        if left or held:
            yield f"To upload what isn't published: {again(options, drop=['--check'])}"
    elif code == Exit.REJECTED:
        if left and not options.settings.skip_invalid:
            price = "the photos left out would become a second sequence later"
            others = again(options, ["--skip-invalid", *account])
            yield "Nothing was sent. " * (not sent) + f"Mend them, or send the others ({price}): {others}"
        elif left and options.dry_run:
            yield f"Nothing was sent. To upload the others: {again(options, account)}"
        if held:
            yield f"If it isn't on Mapillary yet: {again(options, account, republish=held)}"
    elif options.dry_run and code == Exit.DONE:
        upload = f"Every photo passes; nothing was sent. To upload: {again(options, account)}"
        yield upload if left else "Nothing to upload."
    elif code == Exit.UNFINISHED and not options.dry_run:
        yield f"Not finished. To go on: {again(options, republish=untried)}"
    elif code == Exit.DONE and waiting:
        when = "Done. In some hours to days, see" if sent else "To see"
        yield f"{when} whether it is live: {again(options, ['--check'], ['--output'])}"


def again(options: Options, add: Iterable[str] = (), drop: Iterable[str] = (), republish: Iterable[str] = ()) -> str:
    """This run's command line, without what it is done with; with more words, and sequences to republish."""
    kept, words = [], iter(options.words)
    for word in words:
        if word.partition("=")[0] not in ("--dry-run", "--republish", *drop):
            kept.append(word)
        elif word in ("--republish", "--output"):
            next(words, None)
    kept += [word for uuid in republish for word in ("--republish", uuid)]
    return " ".join([own_name(), *map(quoted, (*kept, *add))])


def tell_results(options: Options, results: list[Tour], console: Console, error: UploaderError | None) -> Exit:
    """Print the summary, or the JSON document, of all folders; the run's exit code."""
    failure = Tour(options.directory, username=options.username or None, dry_run=options.dry_run)
    options.map = None if error else options.map  # it is not written
    told = results if results and not (error and options.recursive) else [*results, failure]
    told[-1].errors += [error] if error else []
    code = worst(tour.code for tour in told)
    if options.json:
        documents = [tour.document() for tour in told]
        documents[-1]["directory"] = documents[-1]["directory"] if options.words else None  # it wasn't understood
        lines = [json.dumps({"exit_code": int(code), "folders": documents} if options.recursive else documents[0])]
    else:
        lines = [] if options.quiet else summaries(options, results)
    console.write()
    try:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError) as failure_of_stdout:  # full, closed, none at all
        if options.json:
            console.message("error", f"the document can't be written: {failure_of_stdout}")
            code = worst([code, Exit.UNFINISHED])
    return code


def summaries(options: Options, results: list[Tour]) -> list[str]:
    """A summary for each folder in which something happened; with --recursive, one line for the others, and totals."""
    changed = [tour for tour in results if not is_unchanged(tour) and NOT_REACHED not in tour.errors]
    ending = [*[f"map written to {shown(options.map)}"] * bool(options.map), *next_steps(results, options)]
    if not options.recursive:
        return [summary_of(tour, ending) for tour in results if tour.photos or tour.sequences]
    lines = [summary_of(tour) for tour in changed[:50]]
    lines += [f"… {count_of(changed[50:], 'more folder')} (--json lists all)"] * (len(changed) > 50)
    if rest := [tour for tour in results if is_unchanged(tour)]:
        lines.append(f"{count_of(rest, 'folder')} unchanged")
    lines += [f"{count_of(results, 'folder')}, {states_of(results)}"] * bool(results)
    for tour in [tour for tour in results if tour.code]:
        lines.append(f"  exit {int(tour.code)}: {shown(tour.folder)}" + ": not reached" * (NOT_REACHED in tour.errors))
    return lines + [f"  {line}" for line in ending]


SECONDS, COUNT = click.FloatRange(0), click.IntRange
YOUNG_HELP = "Stop while a photo is younger: it is being copied. [default: only where something is missing]"
REPUBLISH_HELP = "Publish this sequence although it may be on Mapillary already; may be repeated."


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("-d", "--directory", metavar="DIR", help="The folder of photos. Required, except with --login.")
@click.option("-u", "--username", metavar="NAME", help="The account to publish as. Required, except with --dry-run.")
@click.option("-o", "--organization", metavar="ID", help="Publish for this organization (numeric id).")
@click.option("-r", "--recursive", is_flag=True, help="Every folder below that holds photos, one after the other.")
@click.option("--dry-run", is_flag=True, help="Read, check, plan and describe; send nothing, need no account.")
@click.option("--skip-invalid", is_flag=True, help="Upload the photos that pass although others fail.")
@click.option("--map", metavar="FILE", help="Write a page that shows the tour (or GeoJSON: FILE.geojson).")
@click.option("--output", metavar="DIR", help="Also write the photos there exactly as they are (or would be) sent.")
@click.option("--check", is_flag=True, help="Ask Mapillary which published photos are live, and note their ids.")
@click.option("--republish", metavar="ID", multiple=True, help=REPUBLISH_HELP)
@click.option("--login", is_flag=True, help="Sign in, save the token as profile NAME, exit.")
@click.option("--utc-offset", metavar="±HH:MM", help="Zone of camera times that carry none.")
@click.option("--min-age", metavar="SECONDS", type=SECONDS, help=YOUNG_HELP)
@click.option("--patience", metavar="MINUTES", type=SECONDS, help="How long to wait out an outage. [default: 10]")
@click.option("--workers", metavar="N", type=COUNT(1, 32), help="Photos uploaded at once, 1 to 32. [default: 4]")
@click.option("--retries", metavar="N", type=COUNT(0, 20), help="Retries of a photo or call, 0 to 20. [default: 3]")
@click.option("--json", "json", is_flag=True, help="One JSON document with the result on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Each photo's description; each request with the server's message.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def command(**given: Any) -> Options:
    """Check, describe, upload and publish a folder of 360° photos tagged by Sequence Maker.

    Exit codes: 0 done, 1 not finished (run again), 2 usage, 3 photos rejected or held back, 4 sign-in, 5 another run is
    at work, 6 overdue (--check), 130 and 143 stopped.
    """
    if not given["directory"] and not given["login"]:
        raise click.UsageError("the folder of photos is missing: give it with -d DIR")
    for name in ("min_age", "patience"):
        if math.isnan(given[name] or 0):
            raise click.BadParameter("it is no number", param_hint=f"'--{name.replace('_', '-')}'")
    offset = given["utc_offset"]
    given["utc_offset"] = parse_zone(offset) if offset else None
    if offset and given["utc_offset"] is None:
        raise click.BadParameter(f"{offset!r} is no offset such as +02:00", param_hint="'--utc-offset'")
    given |= {name: Path(given[name]) for name in ("directory", "output", "map") if given[name]}
    given["republish"] = frozenset(given["republish"])
    given = {name: value for name, value in given.items() if value is not None}
    settings = {name: given.pop(name) for name in list(given) if name in Settings.__dataclass_fields__}
    return Options(**given, settings=Settings(**settings))


def cli(arguments: Iterable[str] | None = None) -> int:
    """The command line as a process sees it: the exit code. No traceback reaches a user."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if stream and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = Options(json="--json" in words, recursive=not {"-r", "--recursive"}.isdisjoint(words), quiet=True)
    console, results, error = Console(), [], None
    catch_signals(console)
    try:
        options = command.main(words, prog_name="mapillary_uploader.py", standalone_mode=False)
        if not isinstance(options, Options):  # --help, --version
            return 0
        options.words = tuple(words)
        console.lowest = "error" if options.quiet else "debug" if options.verbose else "info"
        console.terminal &= not options.quiet
        results = main(options, os.environ, console)
        if path := options.map:
            text = json.dumps(map_geojson(results)) if path.suffix.lower() == ".geojson" else map_html(results)
            with failing_as(f"the map {shown(path)} can't be written", "Choose another --map"):
                path.write_text(text, encoding="utf-8")
    except (Exception, KeyboardInterrupt) as failure:
        error = explained(failure, console)
        console.message("error", str(error))
    return int(tell_results(options, results, console, error))


def explained(error: BaseException, console: Console) -> UploaderError:
    """The one place where what ends a run becomes text and exit code."""
    if isinstance(error, UploaderError):
        return error
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return UploaderError("stopped", "", console.stop_code)
    if isinstance(error, click.ClickException):
        return UsageError(error.format_message().rstrip("."), "See --help")
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name).partition(".")[0].replace("PIL", "Pillow")
        return UsageError(f"the package {package} is not installed", "pip install -r requirements.txt")
    line = traceback.extract_tb(error.__traceback__)[-1].lineno
    what = f"unexpected {type(error).__name__} at line {line}: {shown(error)[:200]}"
    return UploaderError(what, "That is a bug: please report it")


def catch_signals(console: Console) -> None:
    """Make Ctrl-C and SIGTERM end the run in order; a second one ends it at once."""

    def stop(number: int, _: object) -> None:
        if console.signalled:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        console.signalled, console.stop_code = True, Exit(128 + number)
        console.stop.set()  # can't wait for itself: this thread never waits for `stop`, it only looks at it
        if not console.working:
            raise KeyboardInterrupt  # where that gets lost, in a destructor, `stop` still ends the run

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, stop)


def script() -> None:
    """The program as a command."""
    os._exit(cli())  # a thread that hangs on a server that never answers would keep the process


if __name__ == "__main__":
    script()
