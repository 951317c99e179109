#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["requests>=2.31", "piexif>=1.1.3", "Pillow>=10", "click>=8.1"]
# ///
"""Mapillary Uploader: checks, describes, uploads and publishes a folder of 360° photos.

    python mapillary_uploader.py -d photos/ -u user

The photos are those that Trek View's Sequence Maker has tagged. `main`, near the end, reads like the four steps:

1. read and check every photo of the folder; nothing is sent before all are judged;
2. plan: group photos into sequences, order them, cut them to Mapillary's limits, describe each;
3. upload each photo, with Mapillary's description in place of Sequence Maker's JSON;
4. publish each sequence as soon as all its photos are there.

What was done is kept in `mapillary_uploader.json` in the folder, so that a run that was broken off goes on where it
stopped and no photo is published twice. The photos themselves are never changed.

The chapters stand in the order of the work, each under a banner: a pure core (bytes in, values out) up to "tagged
bytes", then disk, network and terminal. Times are integers, milliseconds since 1970 in UTC, unless a name says else.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import hashlib
import io
import json
import math
import os
import queue
import re
import signal
import stat
import struct
import sys
import threading
import time
import traceback
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    import requests

# requests, Pillow and piexif are imported where they are used: --help and usage errors answer at once without them.

__version__ = "1.0.0"

T = TypeVar("T")

MAX_PIXELS = 100_000_000  # one photo, width x height; the user's limit
MAX_BYTES = 50 * 1024 * 1024  # one photo; the user's limit
MAX_HEADER_BYTES = 16 * 1024 * 1024  # ours: what may stand before the pixels (extended XMP of depth photos is ~5 MB)
SEQUENCE_PHOTOS = 1_000  # mapillary_tools 0.14.7, constants.MAX_SEQUENCE_LENGTH
SEQUENCE_PIXELS = 6_000_000_000  # mapillary_tools 0.14.7, constants.MAX_SEQUENCE_PIXELS
FASTEST_KMH = 400  # mapillary_tools 0.14.7, constants.MAX_CAPTURE_SPEED_KMH
EARLIEST_CAPTURE = 946_684_800_000  # 2000-01-01: a clock before it was never set
DAY = 86_400_000
HANDLE_HOURS = 48  # the official client's; about 96 h seems to be the server's
OVERDUE_DAYS = 7
BLOCK = 1024 * 1024  # read from disk and hashed at a time
PIECE = 16 * 1024  # handed to the network at a time
CONNECT_SECONDS, ANSWER_SECONDS, SLOWEST_BYTES_A_SECOND = 30, 60, 51_200  # the last two: mapillary_tools
LONGEST_RETRY_WAIT = 16  # seconds, as mapillary_tools
RATE_LIMIT_SECONDS, RATE_LIMIT_PATIENCE = 10, 15 * 60
FIRST_OUTAGE_WAIT, LONGEST_OUTAGE_WAIT = 30, 300

GRAPH = "https://graph.mapillary.com"
UPLOADS = "https://rupload.facebook.com/mapillary_public_uploads"
PUBLIC_CLIENT_TOKEN = "MLY|5675152195860640|6b02c72e6e3c801e5603ab0495623282"  # the official client's, for /login
RESUME_NAME, LOCK_NAME = "mapillary_uploader.json", "mapillary_uploader.lock"
TEMPORARY_NAME = ".mapillary_uploader.json.tmp"  # one fixed name: the lock keeps others away, the next run clears it


# ----------------------------------------------------------------------------------------------------------------------
# Exit codes and errors
# ----------------------------------------------------------------------------------------------------------------------


class Exit(IntEnum):
    """Exit codes; README.md says what each asks of a person or a monitor."""

    DONE = 0
    UNFINISHED = 1
    USAGE = 2
    REJECTED = 3
    SIGN_IN = 4
    BUSY = 5
    OVERDUE = 6
    INTERRUPTED = 130
    TERMINATED = 143


# Where several apply, the first of these.
PRECEDENCE = (
    *(Exit.INTERRUPTED, Exit.TERMINATED, Exit.BUSY, Exit.USAGE, Exit.SIGN_IN, Exit.OVERDUE, Exit.UNFINISHED),
    *(Exit.REJECTED, Exit.DONE),
)


def worst(codes: Iterable[Exit]) -> Exit:
    """The code that stands first in PRECEDENCE; DONE where there is none."""
    return min(codes, key=PRECEDENCE.index, default=Exit.DONE)


class UploaderError(Exception):
    """Root of all errors here: what is wrong, the exit code it leads to, and a hint on what to do about it."""

    code = Exit.UNFINISHED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]}. {self.hint}" if self.hint else str(self.args[0])


class UsageError(UploaderError):
    """Wrong options, folder or resume file."""

    code = Exit.USAGE


class SignInError(UploaderError):
    """No token, a refused one, or another account's."""

    code = Exit.SIGN_IN


class BusyError(UploaderError):
    """Another run holds the folder's lock."""

    code = Exit.BUSY


class Stopped(UploaderError):
    """Ctrl-C or SIGTERM; `code` says which."""

    def __init__(self, code: Exit = Exit.INTERRUPTED) -> None:
        super().__init__("stopped", "What was done is saved; run again to go on")
        self.code = code


class Rejection(UploaderError):
    """A photo that doesn't pass; carries the Problem."""

    code = Exit.REJECTED

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class PhotoChanged(UploaderError):
    """A photo that isn't what was checked any more: its bytes can't be trusted."""


class ServiceError(UploaderError):
    """Mapillary's answer is no use, or none came."""


class Passing(ServiceError):
    """Worth another try: lost connection, timeout, 5xx, `retriable`. `delay`: seconds, None = usual back-off."""

    def __init__(self, message: str, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay
        self.status = 0  # HTTP status, where there was an answer
        self.progressed = False  # set by Transfer: the try before this one moved the server's offset


class NotActedOn(Passing):
    """The request has certainly had no effect: no connection came about, or the server put it off."""


class Unconfirmed(ServiceError):
    """Nobody knows whether a publish has worked."""


class Throttled(ServiceError):
    """The rate limit; `seconds` is what the server asks to wait."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Refused(ServiceError):
    """A final no (4xx)."""


# ----------------------------------------------------------------------------------------------------------------------
# Records
# ----------------------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Why a photo is rejected: what is wrong, what to do about it, and this photo's own detail."""

    what: str
    fix: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.detail}): {self.fix}" if self.detail else f"{self.what}: {self.fix}"


class Tag(NamedTuple):
    """One entry of a TIFF directory; `entry` and `at` are offsets of the entry and of its value, `size` bytes long."""

    ifd: str
    number: int
    kind: int
    entry: int
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class Exif:
    """A TIFF block and where it starts in the file; `again` holds the payloads of further EXIF segments."""

    start: int
    data: bytes
    again: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the pixels of a JPEG. `whole`: an end-of-image marker follows its first scan."""

    width: int
    height: int
    exif: Exif | None
    xmp: tuple[bytes, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """Where ImageDescription's count and value stand in the file; `exif` only where piexif must rewrite the segment."""

    order: str
    count_at: int
    at: int
    size: int
    exif: Exif | None = None


class Source(NamedTuple):
    """The file that a photo was read from: its path in the folder, bytes, mtime in ns, and pixels (width x height)."""

    file: str
    size: int
    mtime_ns: int
    pixels: int


class Splice(NamedTuple):
    """Replace the file's bytes start..end by `data`."""

    start: int
    end: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo that passed. Degrees, metres, milliseconds UTC; `photo_id` is "" where Sequence Maker left none."""

    file: str
    size: int
    mtime_ns: int
    pixels: int
    photo_id: str
    sequence_id: str
    taken_at: int
    latitude: float
    longitude: float
    altitude: float | None
    heading: float | None
    make: str
    model: str
    orientation: int
    connections: tuple[str, ...]
    slot: Slot


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks say of one file. `published`: the sequence in which it, or what counts as it, went before."""

    file: str
    photo: Photo | None = None
    photo_id: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    published: str | None = None

    def warned(self, *texts: str) -> Verdict:
        """The same with further warnings."""
        return replace(self, warnings=self.warnings + texts)

    def rejected(self, *problems: Problem) -> Verdict:
        """The same, rejected."""
        return replace(self, photo=None, problems=self.problems + problems)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the checks need to know from outside: the time now, and --utc-offset in minutes."""

    now: int
    utc_offset: int | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """A photo with its place: the MAPSequenceUUID and the capture time that are sent."""

    photo: Photo
    uuid: str
    captured_at: int


@dataclass(frozen=True, slots=True)
class Part:
    """One Mapillary sequence to publish: photos in capture order."""

    uuid: str
    photos: tuple[Planned, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A photo in the resume file, as it was uploaded. Field for field its JSON."""

    photo_id: str
    size: int
    mtime_ns: int
    description_md5: str
    session_key: str
    file_handle: str | None
    uploaded_at: str
    taken_at: str
    captured_at: str
    latitude: float
    longitude: float
    make: str
    model: str
    image_id: str | None = None
    image_ids: list[str] = field(default_factory=list)  # where Mapillary shows several that may be this photo

    @property
    def ids(self) -> list[str]:
        """All ids under which Mapillary shows it."""
        return self.image_ids or ([self.image_id] if self.image_id else [])

    def usable(self, now: int) -> bool:
        """Whether it has a file handle younger than HANDLE_HOURS."""
        return bool(self.file_handle) and from_iso(self.uploaded_at) > now - HANDLE_HOURS * 3_600_000


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """A sequence in the resume file. state: uploading, publishing, unconfirmed, published."""

    state: str = "uploading"
    manifest_handle: str | None = None
    publish_tried_at: str | None = None
    cluster_id: str | None = None
    published_at: str | None = None
    mapillary_sequence: str | None = None
    live_at: str | None = None
    photos: dict[str, Entry] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Published, or perhaps published: its photos are never sent again by themselves."""
        return self.state in ("publishing", "unconfirmed", "published")

    @property
    def live(self) -> int:
        """How many of its photos Mapillary shows."""
        return sum(1 for entry in self.photos.values() if entry.ids)


@dataclass(frozen=True, slots=True)
class Account:
    """Who publishes: the account that the token belongs to, and the organization, if any."""

    token: str
    user_id: str
    username: str
    organization_id: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. Seconds, minutes and counts as README.md lists them; utc_offset in minutes."""

    directory: Path = Path()
    username: str = ""
    organization: str | None = None
    recursive: bool = False
    dry_run: bool = False
    skip_invalid: bool = False
    output: Path | None = None
    check: bool = False
    republish: bool = False
    login: bool = False
    utc_offset: int | None = None
    min_age: float = 0
    patience: float = 10
    workers: int = 4
    retries: int = 3
    json: bool = False
    quiet: bool = False
    verbose: bool = False


class Clock:
    """Time and waiting; tests put another in its place."""

    def now(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    def seconds(self) -> float:
        """A clock that never goes back."""
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Wait, but raise Stopped at once when the run ends."""
        if stop.wait(seconds):
            raise Stopped()


# ----------------------------------------------------------------------------------------------------------------------
# Reading a photo
# ----------------------------------------------------------------------------------------------------------------------

NOT_JPEG = Problem("not a JPEG photo", "remove it from the folder, or export it as JPEG")
CUT_IN_HEADER = Problem("cut short: the file ends inside its header", "copy it anew from the camera")
CUT_IN_PIXELS = Problem("cut short: no end-of-image marker", "copy it anew from the camera or stitch it again")
DAMAGED_EXIF = Problem("its EXIF is damaged", "take the photo as it was before, and run Sequence Maker on it again")
DAMAGED_XMP = Problem("its XMP can't be read", "write the panorama's XMP again with the stitching software or exiftool")
NOT_PANORAMA = Problem(
    "not a 360° panorama: its XMP has no GPano ProjectionType equirectangular",
    "export it with panorama metadata, or remove it from the folder",
)

APP1, START_OF_SCAN, END_OF_IMAGE, START_OF_IMAGE = 0xE1, 0xDA, 0xD9, 0xD8
IDLE_SEGMENTS = {0xC4, *range(0xE0, 0xFF)} - {APP1}  # Huffman tables, other applications' data, comments
BOM, EXIF_MARK, XMP_MARK = b"\xef\xbb\xbf", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
GPANO = "http://ns.google.com/photos/1.0/panorama/ "
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Exif 3.0, 4.6.2
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
TYPE_UNITS = {3: "H", 8: "H", 12: "Q"} | dict.fromkeys((4, 5, 9, 10, 11, 13), "I")  # what byte order swaps; else bytes
DIRECTORIES = {0x8769: "Exif", 0x8825: "GPS", 0xA005: "Interoperability"}
IMAGE_DESCRIPTION, ORIENTATION, OFFSET_TIME_ORIGINAL, SUB_SEC_TIME_ORIGINAL = 0x010E, 0x0112, 0x9011, 0x9291
THUMBNAIL_AT, THUMBNAIL_SIZE, MAKER_NOTE = 0x0201, 0x0202, 0x927C


def read_head(stream: BinaryIO, size: int) -> Head:
    """Read a JPEG's head from a seekable stream of `size` bytes; raise Rejection where it isn't one."""
    if stream.read(2) != b"\xff\xd8":
        raise Rejection(NOT_JPEG)
    exif: list[Exif] = []
    xmp: list[bytes] = []
    frame = bytearray(b"\xff\xd8")
    scan = 0
    for marker, at, payload in segments(stream, size):
        scan = at + len(payload)
        if marker != APP1:
            frame += struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
        elif payload.startswith(EXIF_MARK):
            exif.append(Exif(at + len(EXIF_MARK), payload[len(EXIF_MARK) :]))
        elif payload.startswith(XMP_MARK):
            xmp.append(payload[len(XMP_MARK) :])
    whole = has_end_of_image(stream, scan, size)
    first = replace(exif[0], again=tuple(other.data for other in exif[1:])) if len(exif) > 1 else next(iter(exif), None)
    return Head(*read_dimensions(bytes(frame)), first, tuple(xmp), whole)


def segments(stream: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes]]:
    """Marker, offset and payload of each segment but the idle ones; the start of the first scan is the last."""
    at = 2
    while True:
        if at > MAX_HEADER_BYTES:
            raise Rejection(NOT_JPEG._replace(detail="over 16 MB before the pixels"))
        stream.seek(at)
        first, marker, length = struct.unpack(">BBH", stream.read(4).ljust(4, b"\xff"))
        if first != 0xFF or marker < 0xC0:  # below are none (ITU T.81, table B.1) but TEM, which Pillow refuses too
            raise Rejection(NOT_JPEG._replace(detail=f"no marker at byte {at}"))
        if marker in (START_OF_IMAGE, END_OF_IMAGE):
            raise Rejection(NOT_JPEG._replace(detail="no image in it"))
        if marker == 0xFF and at < size:  # a fill byte (ITU T.81, B.1.1.2)
            at += 1
        elif 0xD0 <= marker <= 0xD7:  # RSTn has no length
            at += 2
        elif length < 2 or at + 2 + length > size:
            raise Rejection(CUT_IN_HEADER)
        else:
            if marker not in IDLE_SEGMENTS:
                yield marker, at + 4, stream.read(length - 2)
            if marker == START_OF_SCAN:
                return
            at += 2 + length


def has_end_of_image(stream: BinaryIO, scan: int, size: int) -> bool:
    """Whether an end-of-image marker follows the scan that starts at `scan`: the tail first, then all of it."""
    stream.seek(max(scan, size - 4096))
    if b"\xff\xd9" in stream.read(4096):
        return True
    stream.seek(scan)
    last = b""
    while block := stream.read(BLOCK):
        if b"\xff\xd9" in last + block:
            return True
        last = block[-1:]
    return False


def read_dimensions(frame: bytes) -> tuple[int, int]:
    """Width and height by Pillow's JPEG reader, from a JPEG's tables and frame header alone.

    Without EXIF, which Pillow would read too, slowly and noisily. Its limit on pixels stands in Image.open.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        return JpegImageFile(io.BytesIO(frame)).size
    except Stopped:
        raise
    except Exception as error:  # Pillow raises more than it documents: SyntaxError, struct.error, KeyError, MemoryError
        raise Rejection(NOT_JPEG._replace(detail=f"Pillow: {error}"[:80])) from error


def panorama_of(packet: bytes) -> dict[str, str]:
    """GPano properties of an XMP packet, by name without prefix; attributes and elements. No entity is expanded."""
    from xml.parsers import expat

    found: list[tuple[str, str]] = []
    texts: list[str] = []

    def start(_: str, attributes: dict[str, str]) -> None:
        found.extend(attributes.items())
        texts.clear()

    def end(name: str) -> None:
        found.append((name, "".join(texts)))
        texts.clear()

    def refuse(*_: object) -> None:
        raise Rejection(DAMAGED_XMP._replace(detail="it declares a document type"))

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, texts.append
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.strip(b"\0 \t\r\n"), True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: an encoding that expat doesn't know
        raise Rejection(DAMAGED_XMP._replace(detail=str(error))) from error
    return {name[len(GPANO) :]: value for name, value in found if name.startswith(GPANO)}


def read_tags(tiff: bytes) -> list[Tag]:
    """Every entry of IFD0, IFD1, Exif, GPS and Interoperability, each directory once. Values may lie out of bounds."""
    order = tiff_order(tiff)
    todo = [("IFD0", struct.unpack_from(order + "I", tiff, 4)[0])]
    rows = struct.Struct(order + "HHII")
    seen: set[int] = set()
    tags: list[Tag] = []
    for ifd, at in todo:
        if at in seen or not 8 <= at <= len(tiff) - 2:
            continue
        seen.add(at)
        count = min(struct.unpack_from(order + "H", tiff, at)[0], (len(tiff) - at - 2) // 12)
        end = at + 2 + 12 * count
        for entry, (number, kind, values, value) in zip(range(at + 2, end, 12), rows.iter_unpack(tiff[at + 2 : end])):
            size = values * TYPE_SIZES.get(kind, 0)
            tags.append(Tag._make((ifd, number, kind, entry, entry + 8 if size <= 4 else value, size)))
            if number in DIRECTORIES:
                todo.append((DIRECTORIES[number], value))
        if ifd == "IFD0" and end + 4 <= len(tiff):
            todo.append(("IFD1", struct.unpack_from(order + "I", tiff, end)[0]))
    return tags


def tiff_order(tiff: bytes) -> str:
    """struct's sign for the byte order of a TIFF block; raise Rejection where it isn't one."""
    order = TIFF_ORDERS.get(tiff[:4])
    if order is None or len(tiff) < 8:
        raise Rejection(DAMAGED_EXIF._replace(detail="no TIFF header"))
    return order


def tag_bytes(tiff: bytes, tags: Iterable[Tag], ifd: str, number: int) -> bytes:
    """A tag's value, b"" where it is missing or lies out of bounds."""
    for tag in tags:
        if tag.number == number and tag.ifd == ifd and tag.at + tag.size <= len(tiff):
            return tiff[tag.at : tag.at + tag.size]
    return b""


def tag_text(tiff: bytes, tags: Iterable[Tag], ifd: str, number: int) -> str:
    """A text tag up to its NUL, without surrounding space."""
    return tag_bytes(tiff, tags, ifd, number).split(b"\0")[0].decode("latin-1").strip()


def tag_number(tiff: bytes, tags: Iterable[Tag], number: int, ifd: str = "IFD1") -> int:
    """A tag's whole number, 0 where there is none."""
    value = tag_bytes(tiff, tags, ifd, number)
    return int.from_bytes(value, "little" if tiff_order(tiff) == "<" else "big") if len(value) <= 4 else 0


# ----------------------------------------------------------------------------------------------------------------------
# Checks
# ----------------------------------------------------------------------------------------------------------------------

EMPTY = Problem("empty file", "copy it anew from the camera")
TOO_LARGE = Problem("the file is larger than 50 MB", "export it with less quality or resolution")
TOO_MANY_PIXELS = Problem("more than 100 megapixels", "export it with less resolution")
NO_FILE = Problem("can't be read", "see to its permissions, or remove it from the folder")
UNTAGGED = Problem("not tagged by Sequence Maker", "run Sequence Maker on it, and upload what it makes")
ALREADY_DESCRIBED = Problem("already tagged for Mapillary", "run on the originals that Sequence Maker made")
BAD_POSITION = Problem("no usable position", "tag it with coordinates, and run Sequence Maker again")
BAD_TIME = Problem("no usable capture time", "set the photo's time right, and run Sequence Maker again")
BAD_SEQUENCE = Problem("no usable sequence.id", "run Sequence Maker again")
DUPLICATE = Problem("a copy of another photo of the folder", "it may be deleted")
NO_ROOM = Problem("its EXIF has no room for Mapillary's description", "run Sequence Maker on the original again")

GPS_METHODS = ("timegps", "gps", "gpsdatetime", "filename")
CAMERA_METHODS = ("timecapture", "originaldatetime")
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.ASCII | re.IGNORECASE)
TIME = re.compile(
    r"\s*(\d{4})[:-](\d\d)[:-](\d\d)[T ]\s*(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?\s*(Z|[-+]\d\d(?::?\d\d)?)?\s*",
    re.ASCII | re.IGNORECASE,
)
ZONE = re.compile(r"([-+])(\d\d):?([0-5]\d)?", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Findings:
    """Problems and notes of one photo, gathered so that all are found in one pass."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def take(self, check: Callable[..., T], *arguments: Any) -> T | None:
        """What the check returns; None where it rejects, which is noted."""
        try:
            return check(*arguments)
        except Rejection as error:
            self.problems.append(error.problem)
            return None


def judge(stream: BinaryIO, file: str, status: os.stat_result, rules: Rules) -> Verdict:
    """All checks of one photo that need no other. `stream` is seekable; `status` gives size and mtime."""
    found = Findings()
    found.take(check_size, status.st_size)
    head = found.take(read_head, stream, status.st_size) if status.st_size else None
    photo, photo_id = None, ""
    if head:
        found.take(check_pixels, head)
        found.take(check_ending, head)
        found.notes += found.take(check_panorama, head) or []
        tagging = found.take(read_tagging, head)
        if tagging:
            photo_id = as_text(tagging.photo.get("id"))
            source = Source(file, status.st_size, status.st_mtime_ns, head.width * head.height)
            photo = found.take(read_photo, tagging, source, rules, found)
    if photo and not found.problems:
        return Verdict(file, photo, photo_id, (), tuple(found.notes))
    return Verdict(file, None, photo_id, tuple(found.problems), tuple(found.notes))


def check_size(size: int) -> None:
    """The file's size in bytes."""
    if not size:
        raise Rejection(EMPTY)
    if size > MAX_BYTES:
        raise Rejection(TOO_LARGE._replace(detail=f"{size:,} bytes"))


def check_pixels(head: Head) -> None:
    """Width x height, by the image itself: EXIF may say anything."""
    if head.width * head.height > MAX_PIXELS:
        raise Rejection(TOO_MANY_PIXELS._replace(detail=f"{head.width} × {head.height}"))


def check_ending(head: Head) -> None:
    """Pixels that stop short."""
    if not head.whole:
        raise Rejection(CUT_IN_PIXELS)


def check_panorama(head: Head) -> list[str]:
    """Warnings about the panorama's coverage; raise Rejection where it is none."""
    gpano: dict[str, str] = {}
    for packet in head.xmp:
        gpano = panorama_of(packet) | gpano
    kind = gpano.get("ProjectionType", "").strip()
    if kind.casefold() != "equirectangular":
        raise Rejection(NOT_PANORAMA._replace(detail=f"it says {shown(kind[:40])}" if kind else ""))
    full = gpano.get("FullPanoWidthPixels"), gpano.get("FullPanoHeightPixels")
    part = gpano.get("CroppedAreaImageWidthPixels"), gpano.get("CroppedAreaImageHeightPixels")
    whole = head.width == 2 * head.height if None in full + part else full == part
    return [] if whole else ["the panorama covers part of the sphere; the rest will be blank"]


class Tagging(NamedTuple):
    """Sequence Maker's two objects, and the EXIF that they stand in: `own` is the ImageDescription among its tags."""

    photo: dict[str, Any]
    sequence: dict[str, Any]
    exif: Exif
    tags: list[Tag]
    own: Tag


def read_tagging(head: Head) -> Tagging:
    """Sequence Maker's JSON from EXIF ImageDescription; raise Rejection saying what there is instead."""
    if head.exif is None:
        raise Rejection(UNTAGGED._replace(detail="no EXIF"))
    tags = read_tags(head.exif.data)
    description = find_description(head.exif, tags)
    return Tagging(*sequence_maker_json(head.exif.data, description), head.exif, tags, description)


def find_description(exif: Exif, tags: list[Tag]) -> Tag:
    """The one ImageDescription; raise Rejection where there is none, or several, or it lies out of bounds."""
    found = [tag for tag in tags if (tag.ifd, tag.number) == ("IFD0", IMAGE_DESCRIPTION)]
    if not found:
        raise Rejection(UNTAGGED._replace(detail="no ImageDescription in its EXIF"))
    if len(found) > 1 or any(has_description(data) for data in exif.again):
        raise Rejection(DAMAGED_EXIF._replace(detail="two ImageDescriptions"))
    if found[0].at + found[0].size > len(exif.data):
        raise Rejection(DAMAGED_EXIF._replace(detail="its ImageDescription lies outside the EXIF segment"))
    return found[0]


def has_description(tiff: bytes) -> bool:
    """Whether a further EXIF segment is a TIFF block of its own with an ImageDescription."""
    if tiff[:4] not in TIFF_ORDERS or len(tiff) < 8:
        return False
    return any((tag.ifd, tag.number) == ("IFD0", IMAGE_DESCRIPTION) for tag in read_tags(tiff))


def read_photo(tagging: Tagging, source: Source, rules: Rules, found: Findings) -> Photo | None:
    """The photo that Sequence Maker's JSON describes; its problems and warnings go into `found`."""
    photo, sequence, exif, tags, _ = tagging
    heading = heading_of(photo)
    if heading is None:
        found.notes.append("no heading: nothing says which way it faces")
    position = found.take(position_of, photo)
    taken_at = found.take(capture_time, tagging, rules, found)
    sequence_id = found.take(sequence_id_of, sequence)
    slot = found.take(find_slot, tagging)
    if position is None or taken_at is None or sequence_id is None or slot is None:
        return None
    orientation, altitude = tag_number(exif.data, tags, ORIENTATION, "IFD0"), finite(photo.get("original_altitude"))
    shot = Photo(
        *source,
        photo_id=as_text(photo.get("id")),
        sequence_id=sequence_id,
        taken_at=taken_at,
        latitude=position[0],
        longitude=position[1],
        altitude=None if altitude is None else round(altitude, 3) + 0.0,  # no negative zero
        heading=heading,
        make=as_text(photo.get("original_camera_make")),
        model=as_text(photo.get("original_camera_model")),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        connections=tuple(map(valid_text, connections_of(photo))),
        slot=slot,
    )
    return roomy(shot, exif)


def sequence_maker_json(tiff: bytes, own: Tag) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sequence Maker's objects `photo` and `sequence`; raise Rejection saying which of the other things it is."""
    text = tiff[own.at : own.at + own.size].rstrip(b"\0 \t\r\n")
    try:
        # A byte that isn't text becomes a lone surrogate and harms no other string
        value = json.loads(text.removeprefix(BOM).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        begins = f"it begins {shown(text[:30].decode('ascii', 'replace'))}" if text else "it is empty"
        raise Rejection(UNTAGGED._replace(detail=f"its ImageDescription isn't JSON, {begins}")) from None
    if isinstance(value, dict) and value.keys() >= {"MAPLatitude", "MAPLongitude", "MAPCaptureTime"}:
        raise Rejection(ALREADY_DESCRIBED)
    photo, sequence = (value.get("photo"), value.get("sequence")) if isinstance(value, dict) else (None, None)
    if not (isinstance(photo, dict) and isinstance(sequence, dict)):
        raise Rejection(UNTAGGED._replace(detail="its ImageDescription is JSON of something else"))
    return photo, sequence


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


def position_of(photo: Mapping[str, Any]) -> tuple[float, float]:
    """Latitude and longitude in degrees, 7 decimals."""
    position = []
    for name, limit in (("latitude", 90), ("longitude", 180)):
        value = finite(photo.get(f"original_{name}"))
        if value is None or abs(value) > limit:
            raise Rejection(BAD_POSITION._replace(detail=f"{name} is {photo.get(f'original_{name}')!r}"[:60]))
        position.append(round(value, 7) + 0.0)
    if position == [0, 0]:
        raise Rejection(BAD_POSITION._replace(detail="latitude and longitude are both 0"))
    return position[0], position[1]


def sequence_id_of(sequence: Mapping[str, Any]) -> str:
    """Sequence Maker's sequence.id, which becomes MAPSequenceUUID: letters, digits, `_` and `-`."""
    value = sequence.get("id")
    if not (isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]+", value)):
        raise Rejection(BAD_SEQUENCE._replace(detail=f"it is {value!r}"[:60]))
    return value


def capture_time(tagging: Tagging, rules: Rules, found: Findings) -> int:
    """Capture time by the clock that Sequence Maker connected the photos with; the other is never a fallback.

    A GPS time without zone is UTC; a camera's is taken for UTC too where nothing says its zone, which `found` notes.
    """
    method = as_text(tagging.photo.get("cli_connection_method")).casefold()
    if method not in GPS_METHODS + CAMERA_METHODS:
        raise Rejection(BAD_TIME._replace(detail=f"cli_connection_method is {method!r}"[:60]))
    name = "original_GPSDateTime" if method in GPS_METHODS else "original_originalDateTime"
    written = parse_time(tagging.photo.get(name))
    if written is None:
        raise Rejection(BAD_TIME._replace(detail=f"{name} is {tagging.photo.get(name)!r}"[:70]))
    if method in CAMERA_METHODS:
        written = completed(written, tagging, rules)
    taken_at = written.ms - 60_000 * (written.zone or 0)
    if not EARLIEST_CAPTURE <= taken_at <= rules.now + DAY:
        raise Rejection(BAD_TIME._replace(detail=f"{iso(taken_at)}: was the camera's clock set?"))
    if written.zone is None and method in CAMERA_METHODS:
        found.notes.append("its capture time has no zone: UTC is a guess; --utc-offset says which it is")
    return taken_at


class WrittenTime(NamedTuple):
    """A time as it is written: milliseconds as if UTC, the zone in minutes (None: not said), the decimals' digits."""

    ms: int
    zone: int | None
    decimals: str


def completed(written: WrittenTime, tagging: Tagging, rules: Rules) -> WrittenTime:
    """A camera's time: what it lacks comes from EXIF OffsetTimeOriginal and SubSecTimeOriginal, or --utc-offset."""
    tiff, tags = tagging.exif.data, tagging.tags
    zones = (written.zone, parse_zone(tag_text(tiff, tags, "Exif", OFFSET_TIME_ORIGINAL)), rules.utc_offset)
    zone = next((zone for zone in zones if zone is not None), None)
    decimals = "" if written.decimals else tag_text(tiff, tags, "Exif", SUB_SEC_TIME_ORIGINAL)
    return written._replace(ms=written.ms + decimals_ms(decimals), zone=zone)


def parse_time(value: object) -> WrittenTime | None:
    """A time in EXIF's or ISO 8601's form; None where it is no time. Milliseconds are cut, not rounded."""
    match = TIME.fullmatch(value) if isinstance(value, str) else None
    if not match:
        return None
    zone = parse_zone(match[8] or "")
    try:
        year, month, day, hour, minute, second = map(int, match.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    if match[8] and zone is None:
        return None
    decimals = match[7] or ""
    return WrittenTime((moment - EPOCH) // timedelta(milliseconds=1) + decimals_ms(decimals), zone, decimals)


def parse_zone(text: str) -> int | None:
    """±HH:MM, ±HHMM, ±HH or Z in minutes; None for all else. No zone is wider than 14 hours (IANA tz database)."""
    if text in ("Z", "z"):
        return 0
    match = ZONE.fullmatch(text)
    minutes = 60 * int(match[2]) + int(match[3] or 0) if match else 0
    if not match or minutes > 14 * 60:
        return None
    return -minutes if match[1] == "-" else minutes


def decimals_ms(digits: str) -> int:
    """Milliseconds of a second's decimals: "5" = 500, "05" = 50, "12ab" = 120, "" = 0."""
    leading = re.match("[0-9]*", digits)
    return int((leading[0] if leading else "")[:3].ljust(3, "0"))


def heading_of(photo: Mapping[str, Any]) -> float | None:
    """Compass heading in [0, 360): the camera's; else towards the next photo; else away from the one before.

    A connection's distance is negative to the photo before. Without a finite one, or with 0, it says nothing.
    """
    heading = finite(photo.get("original_heading"))
    if heading is None:
        connections = [value for value in connections_of(photo).values() if isinstance(value, dict)]
        legs = [(finite(value.get("distance_mtrs")) or 0, finite(value.get("heading_deg"))) for value in connections]
        ahead = [degrees for metres, degrees in legs if metres > 0 and degrees is not None]
        behind = [degrees + 180 for metres, degrees in legs if metres < 0 and degrees is not None]
        heading = next(iter(ahead + behind), None)
    return None if heading is None else round(heading % 360, 3) % 360 + 0.0


def connections_of(photo: Mapping[str, Any]) -> dict[str, Any]:
    """Sequence Maker's connections, keyed by photo.id, without the bogus "null"; {} where it isn't an object."""
    connections = photo.get("connections")
    return {key: connections[key] for key in connections if key != "null"} if isinstance(connections, dict) else {}


def find_slot(tagging: Tagging) -> Slot:
    """Where the description stands; raise Rejection where writing there would change anything else."""
    exif, own = tagging.exif, tagging.own
    if overlaps(own, exif.data, tagging.tags):
        raise Rejection(DAMAGED_EXIF._replace(detail="its ImageDescription shares bytes with another tag"))
    return Slot(tiff_order(exif.data), exif.start + own.entry + 4, exif.start + own.at, own.size)


def overlaps(own: Tag, tiff: bytes, tags: list[Tag]) -> bool:
    """Whether a tag's value lies over the header, a directory, another tag's value or the thumbnail."""
    end, thumbnail = own.at + own.size, tag_number(tiff, tags, THUMBNAIL_AT)
    if own.at < 8 or (thumbnail < end and own.at < thumbnail + tag_number(tiff, tags, THUMBNAIL_SIZE)):
        return True
    for tag in tags:
        if tag.entry - 2 < end and own.at < tag.entry + 16:  # with the directory's count and its link
            return True
        if tag.at < end and own.at < tag.at + tag.size and tag.size > 4 and tag is not own:
            return True
    return False


def roomy(photo: Photo, exif: Exif) -> Photo:
    """The photo, with its EXIF kept where the longest description that it may get doesn't fit its slot."""
    if photo.slot.size > 600 + 12 * len(photo.sequence_id + photo.make + photo.model):  # room whatever it escapes to
        return photo
    trial = Planned(photo, photo.sequence_id + "_0000", photo.taken_at)
    if fitting(trial) is not None:
        return photo
    if exif.again:
        raise Rejection(NO_ROOM)
    photo = replace(photo, slot=replace(photo.slot, exif=exif))
    rewritten(replace(trial, photo=photo))
    return photo


def find_copies(verdicts: Sequence[Verdict], kept: set[str], same: Callable[[str, str], bool]) -> list[Verdict]:
    """Reject copies: same photo.id, `same` content. A `kept` file (of the resume file) stays, else the first."""
    originals: dict[str, list[str]] = {}
    order = sorted(verdicts, key=lambda verdict: verdict.file not in kept)
    judged: dict[str, Verdict] = {}
    for verdict in order:
        others = originals.setdefault(verdict.photo_id, []) if verdict.photo_id else []
        twin = next((file for file in others if same(file, verdict.file)), None)
        if twin is not None and verdict.file not in kept:
            verdict = verdict.rejected(DUPLICATE._replace(detail=shown(twin)))
        elif others:
            verdict = verdict.warned(f"{shown(others[0])} has the same photo.id and other content")
        others.append(verdict.file)
        judged[verdict.file] = verdict
    return [judged[verdict.file] for verdict in verdicts]


def find_missing(verdicts: Sequence[Verdict], known: Iterable[str]) -> list[Verdict]:
    """Warn of connections to photos that are neither in the folder nor among the `known` ids of the resume file."""
    here = {verdict.photo_id for verdict in verdicts} | set(known)
    result = []
    for verdict in verdicts:
        missing = [i for i in verdict.photo.connections if i not in here] if verdict.photo else []
        text = "connected to a photo that isn't here ({}): still being copied, or overwritten by Sequence Maker?"
        result.append(verdict.warned(text.format(", ".join(map(shown, missing[:2])))) if missing else verdict)
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Planning
# ----------------------------------------------------------------------------------------------------------------------


def natural_order(file: str) -> tuple[list[Any], str]:
    """Sort key of a relative path: numbers by value, IMG_2 before IMG_10."""
    runs: list[Any] = re.split("([0-9]+)", file)  # text, number, text, …
    runs[1::2] = map(int, runs[1::2])
    return runs, file


def plan_sequences(photos: Iterable[Photo], settled: Iterable[str]) -> list[Part]:
    """Group photos, order them by time, cut them to Mapillary's limits. `settled`: the sequences published already.

    The photos come in natural order, and keep it where times are equal.
    """
    groups: dict[str, list[Photo]] = {}
    for photo in photos:
        groups.setdefault(photo.sequence_id, []).append(photo)
    taken = {*settled, *groups}
    parts: list[Part] = []
    for sequence_id, members in groups.items():
        members.sort(key=lambda photo: photo.taken_at)
        cuts = cut(list(zip(members, spread([photo.taken_at for photo in members]))))
        for uuid, piece in zip(part_names(sequence_id, len(cuts), taken, set(settled)), cuts):
            parts.append(Part(uuid, tuple(Planned(photo, uuid, captured_at) for photo, captured_at in piece)))
    return parts


def spread(times: Sequence[int]) -> list[int]:
    """Sorted times, made strictly increasing: equal ones evenly up to the next time or the end of their second."""
    result: list[int] = []
    groups = sorted(Counter(times).items())
    for (taken_at, equal), (later, _) in zip(groups, groups[1:] + [(sys.maxsize, 0)]):
        room = min(later, taken_at - taken_at % 1000 + 1000) - taken_at
        for index in range(equal):
            even = taken_at + room * index // equal
            result.append(max(even, result[-1] + 1) if result else even)
    return result


def cut(photos: list[tuple[Photo, int]]) -> list[list[tuple[Photo, int]]]:
    """Consecutive pieces of at most SEQUENCE_PHOTOS photos and SEQUENCE_PIXELS pixels."""
    pieces: list[list[tuple[Photo, int]]] = [[]]
    pixels = 0
    for photo, captured_at in photos:
        if len(pieces[-1]) == SEQUENCE_PHOTOS or pixels + photo.pixels > SEQUENCE_PIXELS:
            pieces.append([])
            pixels = 0
        pieces[-1].append((photo, captured_at))
        pixels += photo.pixels
    return pieces


def part_names(sequence_id: str, count: int, taken: set[str], settled: set[str]) -> list[str]:
    """MAPSequenceUUIDs: the id itself where one part is all there is and was, else `<id>_1`, … but the taken ones."""
    pattern = re.compile(re.escape(sequence_id) + r"(_\d+)?")
    begun = any(pattern.fullmatch(uuid) for uuid in settled)
    if count == 1 and not begun:
        return [sequence_id]
    first = 2 if sequence_id in settled else 1
    numbered = (f"{sequence_id}_{number}" for number in range(first, first + count + len(taken)))
    return [uuid for uuid in numbered if uuid not in taken][:count]


def find_hops(parts: Iterable[Part]) -> dict[str, str]:
    """file -> warning, for each photo that was reached faster than FASTEST_KMH from the one before, across cuts too."""
    hops = {}
    photos = [planned for part in parts for planned in part.photos]
    for one, other in zip(photos, photos[1:]):
        here, there = one.photo, other.photo
        if here.sequence_id != there.sequence_id:
            continue
        metres = distance(here.latitude, here.longitude, there.latitude, there.longitude)
        kmh = 3_600 * metres / (other.captured_at - one.captured_at)
        if kmh > FASTEST_KMH and metres > 50:  # below, it is the receiver's noise in a burst
            way = f"{metres:,.0f} m from {shown(here.file)} at {kmh:,.0f} km/h"
            hops[there.file] = f"{way}: is its position or time wrong?"
    return hops


def distance(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Metres between two positions in degrees, on a sphere of 6,371,008.8 m (the IUGG's mean radius)."""
    one, other = math.radians(latitude), math.radians(other_latitude)
    half_north, half_east = (other - one) / 2, math.radians(other_longitude - longitude) / 2
    chord = math.sin(half_north) ** 2 + math.cos(one) * math.cos(other) * math.sin(half_east) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(min(1, chord)))


# ----------------------------------------------------------------------------------------------------------------------
# Description
# ----------------------------------------------------------------------------------------------------------------------


def describe(planned: Planned) -> dict[str, Any]:
    """Mapillary's description of a photo: degrees, metres, UTC. The keys are those of the official client's schema."""
    photo = planned.photo
    description = {
        "MAPLatitude": photo.latitude,
        "MAPLongitude": photo.longitude,
        "MAPAltitude": photo.altitude,
        "MAPCaptureTime": as_datetime(planned.captured_at).strftime("%Y_%m_%d_%H_%M_%S_%f")[:-3],
        "MAPCompassHeading": {"TrueHeading": photo.heading, "MagneticHeading": photo.heading},
        "MAPDeviceMake": photo.make or None,
        "MAPDeviceModel": photo.model or None,
        "MAPOrientation": photo.orientation,
        "MAPSequenceUUID": planned.uuid,
        "MAPFilename": valid_text(photo.file.rpartition("/")[2]),
    }
    if photo.heading is None:
        del description["MAPCompassHeading"]
    return {key: value for key, value in description.items() if value is not None}


def description_bytes(description: Mapping[str, Any]) -> bytes:
    """Compact JSON with sorted keys, pure ASCII."""
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def as_datetime(ms: int) -> datetime:
    """Milliseconds since 1970 as a datetime in UTC, exactly."""
    return EPOCH + timedelta(milliseconds=ms)


def iso(ms: int) -> str:
    """ISO 8601 with milliseconds and Z."""
    return as_datetime(ms).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def from_iso(text: str) -> int:
    """Milliseconds of an ISO 8601 time with Z; raise ValueError for anything else."""
    if not text.endswith("Z"):
        raise ValueError(f"{text!r} is no time in UTC")
    return (datetime.fromisoformat(text[:-1] + "+00:00") - EPOCH) // timedelta(milliseconds=1)


# ----------------------------------------------------------------------------------------------------------------------
# Tagged bytes
# ----------------------------------------------------------------------------------------------------------------------


def fitting(planned: Planned) -> bytes | None:
    """The description as it fits the slot: whole, without file name, without make and model too; None: none does."""
    if planned.photo.slot.exif is not None:
        return None
    description = describe(planned)
    for spared in ((), ("MAPFilename",), ("MAPDeviceMake", "MAPDeviceModel")):
        for key in spared:
            description.pop(key, None)
        value = description_bytes(description)
        if len(value) < planned.photo.slot.size:  # a NUL ends it
            return value
    return None


def tagged(planned: Planned) -> tuple[Splice, ...]:
    """What to replace in the photo's bytes: the slot and its count; all EXIF only where the slot is too small."""
    slot, value = planned.photo.slot, fitting(planned)
    if value is None:
        return (rewritten(planned),)
    count = Splice(slot.count_at, slot.count_at + 4, struct.pack(slot.order + "I", len(value) + 1))
    return tuple(sorted((count, Splice(slot.at, slot.at + slot.size, value.ljust(slot.size, b"\0")))))


def rewritten(planned: Planned) -> Splice:
    """The whole EXIF segment by piexif, with the description; raise Rejection where that fails or harms another tag."""
    import piexif

    exif = planned.photo.slot.exif
    if exif is None:
        raise Rejection(NO_ROOM)
    before = other_values(exif.data)
    try:
        if before is None:  # piexif believes every count: a corrupt one once took 24 GB
            raise ValueError("a tag lies out of bounds")
        tags = piexif.load(EXIF_MARK + exif.data)
        tags["0th"][IMAGE_DESCRIPTION] = description_bytes(describe(planned))
        data = piexif.dump(tags)[len(EXIF_MARK) :]
        if other_values(data) != before or len(EXIF_MARK + data) > 65_533:
            raise ValueError("another tag would change")
    except Stopped:
        raise
    except Exception as error:  # piexif raises struct.error, TypeError, KeyError, MemoryError and more, undocumented
        raise Rejection(NO_ROOM._replace(detail=f"{error}"[:60])) from error
    start, end = exif.start - len(EXIF_MARK) - 2, exif.start + len(exif.data)
    return Splice(start, end, struct.pack(">H", len(EXIF_MARK + data) + 2) + EXIF_MARK + data)


def other_values(tiff: bytes) -> dict[tuple[str, int], tuple[object, ...]] | None:
    """What each tag but ImageDescription and pointers says, by (directory, tag); None where one lies out of bounds."""
    tags, order = read_tags(tiff), tiff_order(tiff)
    if any(tag.at + tag.size > len(tiff) or not tag.size for tag in tags):
        return None
    values: dict[tuple[str, int], tuple[object, ...]] = {}
    for tag in tags:
        unit = TYPE_UNITS.get(tag.kind, "B")
        numbers = struct.unpack_from(f"{order}{tag.size // struct.calcsize(unit)}{unit}", tiff, tag.at)
        values[tag.ifd, tag.number] = (tag.kind, *numbers)
        if tag.number == MAKER_NOTE:  # its own offsets count from the TIFF header: it may not move
            values[tag.ifd, tag.number] += (tag.at, order)
    start, size = (tag_number(tiff, tags, number) for number in (THUMBNAIL_AT, THUMBNAIL_SIZE))
    values["IFD1", THUMBNAIL_AT] = (tiff[start : start + size],)
    moving = {("IFD0", IMAGE_DESCRIPTION), *((ifd, number) for ifd in ("IFD0", "Exif") for number in DIRECTORIES)}
    return {key: value for key, value in values.items() if key not in moving}


def tagged_blocks(stream: BinaryIO, size: int, splices: Sequence[Splice], offset: int = 0) -> Iterator[bytes]:
    """The photo's bytes with the splices made, from `offset` on, cut at the splices and every BLOCK bytes."""
    at = 0
    for splice in (*splices, Splice(size, size, b"")):
        skipped = min(offset, splice.start - at)
        at = stream.seek(at + skipped)
        while at < splice.start:
            try:
                piece = stream.read(min(BLOCK, splice.start - at))
            except OSError as error:
                raise PhotoChanged(f"the photo can't be read any more: {error.strerror}", "See to the disk") from error
            if not piece:
                raise PhotoChanged("the photo became shorter while it was read", "Run again when it is at rest")
            at += len(piece)
            yield piece
        yield splice.data[offset - skipped :]
        offset = max(0, offset - skipped - len(splice.data))
        at = splice.end


# ----------------------------------------------------------------------------------------------------------------------
# Resume file and lock
# ----------------------------------------------------------------------------------------------------------------------

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, type(None)),
    "list[str]": (list,),
    "dict[str, Entry]": (dict,),
}
STATES = ("uploading", "publishing", "unconfirmed", "published")


class Resume:
    """The resume file of one folder, held in memory; the only thing here that remembers from run to run."""

    def __init__(self, folder: Path, service: str, account: Account | None = None) -> None:
        self.path = folder / RESUME_NAME
        self.service = service
        self.username = account.username if account else ""
        self.user_id = account.user_id if account else ""
        self.organization_id = account.organization_id if account else None
        self.closed = True
        self.sequences: dict[str, SequenceRecord] = {}
        self.changed = False  # since it was last saved
        self._written: dict[str, tuple[SequenceRecord, bytes]] = {}  # settled sequences, as they were last written

    def settled(self) -> dict[str, SequenceRecord]:
        """The sequences that are published, or perhaps are."""
        return {uuid: record for uuid, record in self.sequences.items() if record.settled}

    def put(self, uuid: str, **changes: Any) -> None:
        """Change fields of a sequence."""
        self.sequences[uuid] = replace(self.sequences[uuid], **changes)
        self.changed = True

    def note(self, uuid: str, file: str, entry: Entry) -> None:
        """Put a photo's entry into a sequence."""
        self.sequences[uuid].photos[file] = entry
        self._written.pop(uuid, None)
        self.changed = True

    def drop(self, uuid: str, file: str) -> None:
        """Take a photo out of a sequence."""
        self.sequences[uuid].photos.pop(file, None)
        self.changed = True

    def save(self) -> None:
        """Write atomically: temporary file, fsync, replace, fsync of the folder. Raise UploaderError where it fails."""
        temporary = self.path.with_name(TEMPORARY_NAME)
        try:
            with open(temporary, "wb") as stream:
                stream.writelines(self.pieces())
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.path)
            sync_folder(self.path.parent)
            self.changed = False
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            hint = "The old one is still there; make room and run again, what was uploaded is not sent anew"
            raise UploaderError(f"the resume file {shown(self.path)} can't be saved: {error.strerror}", hint) from error

    def pieces(self) -> Iterator[bytes]:
        """The file's text: JSON for people to read, a line a photo. A published sequence is put into text once."""
        head = {"format": 1, "service": self.service, "username": self.username, "user_id": self.user_id}
        head |= {"organization_id": self.organization_id, "closed": self.closed}
        yield in_utf8("{\n" + "".join(f'  "{key}": {to_json(value)},\n' for key, value in head.items()))
        between = b'  "sequences": {\n'
        for uuid, record in self.sequences.items():
            known = self._written.get(uuid)
            text = known[1] if known and known[0] is record else in_utf8(sequence_text(uuid, record))
            if record.state == "published":
                self._written[uuid] = record, text
            yield between + text
            between = b",\n"
        yield b"\n  }\n}\n" if self.sequences else between + b"  }\n}\n"


def sequence_text(uuid: str, record: SequenceRecord) -> str:
    """A sequence in the resume file."""
    facts = {item.name: getattr(record, item.name) for item in fields(record) if item.name != "photos"}
    photos = []
    for file, entry in record.photos.items():
        values = {name: getattr(entry, name) for name in Entry.__slots__ if name != "image_ids" or entry.image_ids}
        photos.append(f"        {to_json(file)}: {to_json(values)}")
    return f'    {to_json(uuid)}: {{{to_json(facts)[1:-1]},\n      "photos": {{\n' + ",\n".join(photos) + "\n      }}"


def in_utf8(text: str) -> bytes:
    """UTF-8; a name that isn't valid text keeps its \\udcXX, which is what JSON escapes it as."""
    return text.encode("utf-8", "backslashreplace")


def to_json(value: object) -> str:
    """Compact JSON in which letters stay letters."""
    return json.dumps(value, ensure_ascii=False)


def load_resume(folder: Path) -> Resume | None:
    """Read the folder's resume file; None where there is none. Raise UsageError rather than take a bad one as empty."""
    path = folder / RESUME_NAME
    try:
        data = json.loads(path.read_bytes(), object_hook=from_json)
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
        if data.get("format") != 1:
            raise ValueError(f"its format is {data.get('format')!r}")
        return resume_from(data, folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        hint = "Restore it from a backup. Only if nothing of this folder was ever published, move it away"
        newer = "it was written by a newer version" if "format is" in str(error) else "it is damaged"
        raise UsageError(f"the resume file {shown(path)} can't be used: {newer} ({shown(error)})", hint) from error


def resume_from(data: dict[str, Any], folder: Path) -> Resume:
    """The resume file's object; raise ValueError for wrong types. What died publishing, or anew, is unconfirmed."""
    resume = Resume(folder, "")
    kinds = {"service": str, "username": str, "user_id": str, "organization_id": (str, type(None)), "closed": bool}
    for name, kind in kinds.items():
        if name not in data or not isinstance(data[name], kind):  # type: ignore[arg-type]
            raise ValueError(f"{name} is {data.get(name)!r}")
        setattr(resume, name, data[name])
    if not isinstance(data.get("sequences"), dict):
        raise ValueError("sequences is no object")
    for uuid, record in data["sequences"].items():
        if not isinstance(record, SequenceRecord) or record.state not in STATES:
            raise ValueError(f"sequence {uuid} has no valid state")
        doubtful = record.state == "publishing" or (record.state == "uploading" and record.publish_tried_at)
        resume.sequences[uuid] = replace(record, state="unconfirmed") if doubtful else record
    return resume


def from_json(data: dict[str, Any]) -> Any:
    """json.loads' object_hook: records as soon as they are read, which keeps memory low."""
    if data.keys() >= {"session_key", "file_handle"}:
        entry = record_of(Entry, data)
        for moment in (entry.uploaded_at, entry.taken_at, entry.captured_at):
            from_iso(moment)
        return entry
    if data.keys() >= {"state", "photos"}:
        return record_of(SequenceRecord, data)
    return data


def record_of(kind: type[T], data: dict[str, Any]) -> T:
    """A dataclass from JSON; raise ValueError for a wrong type, TypeError for a missing field."""
    known = {item.name: str(item.type) for item in fields(kind)}  # type: ignore[arg-type]
    for name in known.keys() & data.keys():
        if not isinstance(data[name], JSON_TYPES[known[name]]) or isinstance(data[name], bool):
            raise ValueError(f"{name} is {data[name]!r}"[:60])
    if not all(isinstance(entry, Entry) for entry in data.get("photos", {}).values()):
        raise ValueError("photos holds something else than photos")
    if not all(isinstance(image_id, str) for image_id in data.get("image_ids", ())):
        raise ValueError("image_ids holds something else than ids")
    return kind(**{name: data[name] for name in known.keys() & data.keys()})


def check_owner(resume: Resume, account: Account, service: str) -> None:
    """Raise UsageError where the resume file is another account's, organization's or service's."""
    pairs = (
        ("account", f"{resume.username} ({resume.user_id})", account.user_id, resume.user_id),
        ("organization", resume.organization_id or "none", account.organization_id, resume.organization_id),
        ("service", resume.service, service, resume.service),
    )
    for what, text, now, then in pairs:
        if now != then:
            hint = f"Run with that {what}, or, to publish the folder a second time, move the file away"
            raise UsageError(f"{shown(resume.path)} belongs to another {what}: {text}", hint)


def sync_folder(folder: Path) -> None:
    """fsync a folder, where the system can: a renamed file is then found after a power cut."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems can't; the file is in place all the same
            os.fsync(handle)
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's kernel lock, which a killed run loses; raise BusyError at once where another run has it."""
    path = folder / LOCK_NAME
    try:
        stream = open(path, "a+b")  # noqa: SIM115 - the with below
    except OSError as error:
        hint = "The resume file must be kept in it"
        raise UsageError(f"the folder {shown(folder)} is not writable: {error.strerror}", hint) from error
    with stream:
        lock_file(stream, path)
        with contextlib.suppress(FileNotFoundError):
            (folder / TEMPORARY_NAME).unlink()  # of a run that was killed while it saved
        yield


def lock_file(stream: BinaryIO, path: Path) -> None:
    """Take the lock or raise BusyError; UsageError where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        hint = "Wait for it; from cron that is normal"
        raise BusyError(f"another run is at work on {shown(path.parent)}", hint) from error
    except OSError as error:
        raise UsageError(f"{shown(path)} can't be locked: {error.strerror}", "Use a file system with locks") from error


# ----------------------------------------------------------------------------------------------------------------------
# Mapillary client
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """Where Mapillary is: its Graph API and its upload service."""

    graph: str = GRAPH
    uploads: str = UPLOADS

    @property
    def name(self) -> str:
        """What the resume file calls it: a try against a stand-in is never taken for a publication."""
        return "mapillary" if (self.graph, self.uploads) == (GRAPH, UPLOADS) else "test"


def service_from(environment: Mapping[str, str]) -> Service:
    """The official client's variables; raise UsageError where the token would leave this machine in the clear."""
    from urllib.parse import urlsplit

    graph = environment.get("MAPILLARY_GRAPH_API_ENDPOINT") or GRAPH
    uploads = environment.get("MAPILLARY_UPLOAD_ENDPOINT") or UPLOADS
    for url in (graph, uploads):
        parts = urlsplit(url)
        here = parts.hostname in ("localhost", "::1") or (parts.hostname or "").startswith("127.")
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and here)):
            raise UsageError(f"the endpoint {shown(url)} is not https", "Plain http is for this machine only")
    return Service(graph.rstrip("/"), uploads.rstrip("/"))


class Line:
    """What all connections of a run share: the retries, the rate limit, the end of the run, the count of bytes sent."""

    def __init__(self, retries: int, clock: Clock, log: Callable[[str], None]) -> None:
        self.retries, self.clock, self.log = retries, clock, log
        self.stop = threading.Event()
        self.sent = 0
        self._lock = threading.Lock()
        self._opens_at = 0.0
        self._limited_since: float | None = None

    def persist(self, attempt: Callable[[], T]) -> T:
        """Attempt until it works. Safe to use only for what may be done twice.

        Passing errors are tried again `retries` times, after 1, 2, 4 … s or as the server says; one that made progress
        doesn't count. A rate limit makes all workers wait and doesn't count, for RATE_LIMIT_PATIENCE at most.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except Throttled as error:
                self._hold(error)
            except Passing as error:
                failures += not error.progressed
                if failures > self.retries:
                    raise
                usual = min(2 ** max(failures - 1, 0), LONGEST_RETRY_WAIT)
                delay = usual if error.delay is None else min(error.delay, RATE_LIMIT_PATIENCE)
                self.log(f"{error}; trying again in {delay:g} s")
                self.clock.wait(delay, self.stop)

    def enter(self) -> None:
        """Wait while the rate limit lasts."""
        while (pause := self._opens_at - self.clock.seconds()) > 0:
            self.clock.wait(pause, self.stop)

    def got_through(self) -> None:
        """A photo arrived: the rate limit's patience starts anew."""
        self._limited_since = None

    def count(self, size: int) -> None:
        """Bytes that were handed to the network."""
        with self._lock:
            self.sent += size

    def _hold(self, error: Throttled) -> None:
        with self._lock:
            now = self.clock.seconds()
            self._limited_since = now if self._limited_since is None else self._limited_since
            if now - self._limited_since > RATE_LIMIT_PATIENCE:
                raise NotActedOn(f"{error}; nothing got through for 15 minutes")
            self._opens_at = max(self._opens_at, now + min(error.seconds, RATE_LIMIT_PATIENCE))
        self.log(f"{error}; all wait {error.seconds:g} s as asked")


def without(secrets: Iterable[str], text: str) -> str:
    """Text in which no secret stands, neither as it is nor as an address would carry it."""
    from urllib.parse import quote

    for form in (form for secret in secrets if secret for form in (secret, quote(secret, safe=""))):
        text = text.replace(form, "[token]")
    return text


class Client:
    """One connection to Mapillary, kept open. Not to be shared between threads.

    The token goes to the two hosts of `service` only: redirects are not followed, and ~/.netrc can't replace it.
    """

    def __init__(self, service: Service, token: str, line: Line) -> None:
        self.service, self.token, self.line = service, token, line
        self.secrets = [token]  # what no message may show
        self._session: requests.Session | None = None

    def me(self) -> tuple[str, str]:
        """Id and username of the token's account. May be repeated."""
        data = self.get("/me", fields="id,username")
        if not as_id(data.get("id")):
            raise Passing("GET /me: an answer without id")
        return as_id(data.get("id")), as_text(data.get("username"))

    def organization(self, organization_id: str) -> str:
        """Name of an organization; raise UsageError where there is none of that id. May be repeated."""
        try:
            data = self.get(f"/{organization_id}", fields="slug,description,name")
        except Refused as error:
            hint = "Look up its id on mapillary.com"
            raise UsageError(f"no organization {organization_id}: {error}", hint) from error
        return as_text(data.get("name")) or as_text(data.get("slug")) or organization_id

    def offset(self, key: str) -> int:
        """How many bytes of an upload session have arrived. May be repeated."""
        offset = self._call("GET", f"{self.service.uploads}/{key}").get("offset")
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise Passing(f"GET {key}: an answer without offset")
        return offset

    def send(self, key: str, offset: int, body: Iterator[bytes], size: int) -> str:
        """Send an upload session's bytes from `offset` on; its file handle. After a failure, ask for the offset."""
        data = self._call(
            "POST",
            f"{self.service.uploads}/{key}",
            headers={"Offset": str(offset), "X-Entity-Name": key},
            data=self._counted(body),
            seconds=ANSWER_SECONDS + size / SLOWEST_BYTES_A_SECOND,
        )
        if not isinstance(data.get("h"), str) or not data["h"]:
            raise Passing(f"POST {key}: an answer without file handle")
        return str(data["h"])

    def finish(self, manifest_handle: str, organization_id: str | None) -> str:
        """Publish a manifest, over a fresh connection; its cluster id. **Must not be repeated** but after NotActedOn.

        Raise NotActedOn, Refused or SignInError where it was certainly not published, Unconfirmed where nobody knows.
        """
        content = {"file_handle": manifest_handle, "file_type": "mly_bundle_manifest"}
        if organization_id is not None:
            content["organization_id"] = organization_id
        self.close()
        try:
            data = self.post("/finish_upload", content)
        except NotActedOn:
            raise
        except Passing as error:
            if error.status == 503 and error.delay is not None:
                raise NotActedOn(str(error), error.delay) from error
            if 400 <= error.status < 500:
                raise Refused(str(error)) from error
            raise Unconfirmed(str(error)) from error
        if not as_id(data.get("cluster_id")):
            raise Unconfirmed("POST /finish_upload: an answer without cluster id")
        return as_id(data.get("cluster_id"))

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """GET of the Graph API; `path` may be a whole address of it (paging.next)."""
        return self._call("GET", path if path.startswith("http") else self.service.graph + path, params=parameters)

    def post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """POST of JSON to the Graph API."""
        return self._call("POST", self.service.graph + path, json=content)

    def close(self) -> None:
        """Give up the connection; the next call opens a new one."""
        if self._session:
            self._session.close()
        self._session = None

    def _call(self, method: str, url: str, seconds: float = 0, **content: Any) -> dict[str, Any]:
        import requests

        self.line.enter()
        self._session = self._session or new_session(self.token)
        name = f"{method} {url.partition('?')[0].removeprefix(self.service.graph).removeprefix(self.service.uploads)}"
        started = self.line.clock.seconds()
        try:
            answer = self._session.request(
                method, url, timeout=(CONNECT_SECONDS, seconds or ANSWER_SECONDS), allow_redirects=False, **content
            )
        except (requests.RequestException, OSError) as error:
            self.close()
            raise broken(name, error) from error
        took = 1000 * (self.line.clock.seconds() - started)
        message = server_message(answer, self.secrets)
        self.line.log(f"{name}: {answer.status_code} in {took:.0f} ms{message and ', ' + message}")
        return judge_answer(name, answer, message)

    def _counted(self, body: Iterator[bytes]) -> Iterator[bytes]:
        for block in body:
            # Small pieces: requests gives each CONNECT_SECONDS, so a server that reads 1 kB/s is not cut off
            for at in range(0, len(block), PIECE):
                if self.line.stop.is_set():
                    raise Stopped()
                yield block[at : at + PIECE]
                self.line.count(min(PIECE, len(block) - at))


def new_session(token: str) -> requests.Session:
    """A requests session that authorizes itself; proxies and REQUESTS_CA_BUNDLE as requests does."""
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"OAuth {token}"
        return request

    session = requests.Session()
    session.auth = authorize
    session.headers["User-Agent"] = f"mapillary-uploader/{__version__}"
    return session


def broken(name: str, error: Exception) -> Passing:
    """What a failed call means: NotActedOn where the connection didn't come about, else nobody knows."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    reason = getattr(reason, "original_error", reason)  # what a proxy error stands for: it may be an answer lost
    text, said = type(reason or error).__name__, str(error)
    never_left = any(words in said for words in ("CERTIFICATE_VERIFY_FAILED", "Tunnel connection failed"))
    if isinstance(reason, (NewConnectionError, ConnectTimeoutError)) or never_left:
        return NotActedOn(f"{name}: no connection ({text})")
    return Passing(f"{name}: the connection was lost ({text})")


def json_of(answer: requests.Response) -> dict[str, Any]:
    """The answer's JSON object, {} for anything else."""
    try:
        data = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def server_message(answer: requests.Response, secrets: Iterable[str]) -> str:
    """What the server says of a failure, without secrets: error.message, debug_info.message, or a text's start."""
    if answer.ok:
        return ""
    data = json_of(answer)
    for key in ("error", "debug_info"):
        if isinstance(data.get(key), dict) and (text := data[key].get("error_user_msg") or data[key].get("message")):
            return shown(without(secrets, str(text)))[:300]
    return shown(" ".join(re.sub("<[^>]*>", " ", without(secrets, answer.text)[:2000]).split()))[:100]


def judge_answer(name: str, answer: requests.Response, message: str) -> dict[str, Any]:
    """The data of a good answer; else raise what mapillary-api.md's table of errors says it means."""
    status, data = answer.status_code, json_of(answer)
    if 200 <= status < 300:
        return data
    info = data.get("debug_info") if isinstance(data.get("debug_info"), dict) else {}
    kind, retriable = (info or {}).get("type"), (info or {}).get("retriable") is True
    text = f"{name}: HTTP {status}{message and ', ' + message}"
    asked = retry_after(answer.headers.get("Retry-After", ""))
    if status in (401, 403) or (status == 400 and kind == "NotAuthorizedError"):
        hint = "Sign in again with --login, or set MAPILLARY_ACCESS_TOKEN"
        raise SignInError(f"Mapillary refuses the token ({text})", hint)
    if status == 429 or (400 <= status < 500 and kind == "RequestRateLimitedError"):
        backoff = finite(data.get("backoff"))
        seconds = asked if backoff is None else backoff / 1000
        raise Throttled(text, RATE_LIMIT_SECONDS if seconds is None else seconds)
    if 400 <= status < 500 and status != 412 and not retriable:
        raise Refused(text)
    error = Passing(text, 0 if status == 412 else asked)
    error.status = status
    raise error


def retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None where it says nothing."""
    from email.utils import parsedate_to_datetime

    seconds = finite(value)
    if seconds is None and value:
        with contextlib.suppress(ValueError, TypeError):
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    return None if seconds is None else max(0.0, seconds)


def as_id(value: object) -> str:
    """An id as text, "" where it is none."""
    return "" if isinstance(value, bool) or not isinstance(value, (str, int)) else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Upload and publish
# ----------------------------------------------------------------------------------------------------------------------


class Transfer:
    """One upload session: sends until the file handle is there; goes on from the server's offset after a failure.

    Safe to repeat: the session key is made from the bytes, so the same bytes always continue the same session.
    """

    def __init__(self, client: Client, key: str, size: int, body: Callable[[int], Iterator[bytes]]) -> None:
        self.client, self.key, self.size, self.body = client, key, size, body
        self.found = 0  # the offset that the first question found
        self.sent = False  # whether any byte had to be sent
        self._offset: int | None = 0
        self._reached = 0

    def run(self, ask: bool) -> str:
        """The file handle. `ask`: the server may hold a part already, so ask for the offset first."""
        self._offset = None if ask else 0
        return self.client.line.persist(self._attempt)

    def _attempt(self) -> str:
        progressed, asked = False, self._offset is None
        try:
            if self._offset is None:
                self._offset = self.client.offset(self.key)
                progressed = self._offset > self._reached
                self.found = self.found or self._offset
                self._reached = max(self._reached, self._offset)
            start, self._offset = self._offset, None  # whatever comes now, the next attempt asks
            if start > self.size:
                held = f"{start:,} bytes of it, more than the {self.size:,} there are"
                raise ServiceError(f"Mapillary says it holds {held}")
            self.sent = self.sent or start < self.size
            return self.client.send(self.key, start, self.body(start), self.size)
        except Passing as error:
            error.progressed = progressed or (error.status == 412 and not asked)  # no failure: it holds a part already
            raise


def session_of(blocks: Iterable[bytes], suffix: str = "jpg") -> tuple[str, int]:
    """Session key and size of these bytes: the same ones always continue the same session."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return f"mly_tools_{digest.hexdigest()}.{suffix}", size


@dataclass(frozen=True, slots=True)
class Sent:
    """A photo that arrived; `found`: how much of it the server held before."""

    entry: Entry
    found: int


@dataclass(frozen=True, slots=True)
class SendPhoto:
    """Hash a photo as it is to be sent, and send it. `known`: its entry of an earlier run."""

    folder: Path
    planned: Planned
    known: Entry | None
    ask: bool

    def __call__(self, connections: Connections) -> Sent:
        photo = self.planned.photo
        with open_photo(place(self.folder, photo.file)) as stream:
            key, size = session_of(self.blocks(stream))
            with connections.one() as client:
                transfer = Transfer(client, key, size, partial(self.blocks, stream))
                handle = transfer.run(self.ask or (self.known is not None and self.known.session_key == key))
                uploaded_at = iso(client.line.clock.now())
            check_unchanged(stream, photo)
        if self.known and self.known.session_key == key and not transfer.sent:
            uploaded_at = self.known.uploaded_at
        return Sent(entry_of(self.planned, key, handle, uploaded_at), transfer.found)

    def blocks(self, stream: BinaryIO, offset: int = 0) -> Iterator[bytes]:
        """The photo as it is sent, from `offset` on; raise PhotoChanged before a byte that isn't what was checked.

        Under its session key Mapillary would keep that byte for ever, and the photo could never be sent again.
        """
        check_unchanged(stream, self.planned.photo)
        for block in tagged_blocks(stream, self.planned.photo.size, tagged(self.planned), offset):
            check_unchanged(stream, self.planned.photo)
            yield block


@dataclass(frozen=True, slots=True)
class SendManifest:
    """Send the list of a sequence's file handles."""

    uuid: str
    handles: tuple[str, ...]

    def __call__(self, connections: Connections) -> str:
        content = {"version": "1", "upload_type": "images", "image_handles": self.handles}
        body = json.dumps(content).encode()
        key, size = session_of([body], "json")
        with connections.one() as client:
            return Transfer(client, key, size, lambda at: iter((body[at:],))).run(ask=False)


@dataclass(frozen=True, slots=True)
class Finish:
    """Publish a sequence, at once: it waits for no connection. The intent must be in the resume file before."""

    uuid: str
    manifest_handle: str
    organization_id: str | None

    def __call__(self, connections: Connections) -> str:
        with contextlib.closing(connections.new()) as client:
            return client.line.persist(partial(client.finish, self.manifest_handle, self.organization_id))


Job = SendPhoto | SendManifest | Finish


class Connections:
    """A run's connections: jobs take one only while they talk to Mapillary. Publishing has one of its own (`new`)."""

    def __init__(self, count: int, new: Callable[[], Client]) -> None:
        self.new = new
        self._idle: queue.SimpleQueue[Client] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(new())

    @contextlib.contextmanager
    def one(self) -> Iterator[Client]:
        """Wait for an idle connection, and keep it for the while of a `with`."""
        client = self._idle.get()
        try:
            yield client
        except Exception as error:
            if not isinstance(error, (SignInError, Stopped)):  # these end the run: nobody else may begin a call
                self._idle.put(client)
            raise
        self._idle.put(client)


class Crew:
    """Worker threads. Jobs go in, (job, result or exception) comes out.

    There is one worker more than connections: it hashes the next photo while all of them are busy. A publish has a
    worker of its own, so that no photo waits for it, nor it for a photo.
    """

    def __init__(self, count: int, new_client: Callable[[], Client]) -> None:
        self.busy, self._publishing, self._uploaders = 0, 0, count + 1
        self._connections = Connections(count, new_client)
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Job, Any]] = queue.SimpleQueue()
        self._threads = 0

    @property
    def has_room(self) -> bool:
        """Whether an upload may start."""
        return self.busy - self._publishing < self._uploaders

    def start(self, job: Job) -> None:
        """Give a job to a worker, at once."""
        self.busy += 1
        self._publishing += isinstance(job, Finish)
        if self._threads < self.busy:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()  # daemon: a hung server can't keep the process
        self._jobs.put(job)

    def next(self, seconds: float) -> tuple[Job, Any] | None:
        """The next finished job, None where none is within so many seconds."""
        try:
            item = self._done.get(timeout=seconds) if seconds > 0 else self._done.get_nowait()
        except queue.Empty:
            return None
        self.busy -= 1
        self._publishing -= isinstance(item[0], Finish)
        return item

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                result: Any = job(self._connections)
            except BaseException as error:  # every error of a worker reaches the main thread
                result = error
            self._done.put((job, result))


class Uploading:
    """Steps 3 and 4. Decides everything and keeps the books in one thread; the crew does the waiting."""

    def __init__(self, shell: Shell, resume: Resume, report: Report, parts: Sequence[Part]) -> None:
        self.shell, self.resume, self.report = shell, resume, report
        self.parts = {part.uuid: part for part in parts}
        self.todo: deque[Job] = deque()
        self.missing: dict[str, set[str]] = {}  # per sequence, the photos that haven't arrived
        self.stalled: list[Job] = []  # what failed since something last got through
        self.waited = 0.0
        self.probes = 0 if resume.closed else 2 * shell.options.workers  # photos to ask for first, still
        self.crew = Crew(shell.options.workers, partial(Client, shell.service, shell.account().token, shell.line))
        self.saved_at, self.save_cost = shell.clock.seconds(), 0.0

    def work(self) -> None:
        """Upload and publish all parts; raise SignInError, Stopped or a failure to save. The resume file is saved."""
        known = open_sequences(self.resume, self.parts.values())
        for part in self.parts.values():
            self.enlist(part, known)
        if not self.todo and not self.report.again:
            if self.resume.changed:
                self.save()
            return
        self.resume.closed = False
        self.save()
        try:
            for uuid in self.report.again:
                self.publish(uuid, str(self.resume.sequences[uuid].manifest_handle))
            self.loop()
        except BaseException:
            self.wind_up()
            raise
        self.resume.closed = True
        self.save()

    def enlist(self, part: Part, known: Mapping[str, Entry]) -> None:
        """Queue what is left to do of a part."""
        entries = self.resume.sequences[part.uuid].photos
        self.missing[part.uuid] = set()
        for planned in part.photos:
            file = planned.photo.file
            entry = entries.get(file)
            if entry and entry.usable(self.shell.clock.now()):
                self.report.photo_state(file, "uploaded")
                continue
            self.missing[part.uuid].add(file)
            self.todo.append(SendPhoto(self.report.folder, planned, known.get(file), False))
        self.shell.console.expect(part, self.missing[part.uuid])
        self.publish_if_complete(part.uuid)

    def loop(self) -> None:
        """Keep the crew at work until nothing is left, or the outage outlasts the patience."""
        while self.todo or self.crew.busy or self.outage:
            while self.todo and self.crew.has_room and not self.outage:
                job = self.todo.popleft()
                if isinstance(job, SendPhoto) and self.probes > 0:  # the server may hold parts: ask until it has none
                    job = replace(job, ask=True)
                self.crew.start(job)
            if not self.crew.busy:
                self.sit_out()
            elif item := self.crew.next(self.shell.console.tick):
                self.settle(*item)
            self.shell.console.progress(self.shell.line.sent)
            if self.shell.clock.seconds() - self.saved_at > max(3, 40 * self.save_cost):
                self.save()

    def settle(self, job: Job, result: Any) -> None:
        """Take a job's result into the books."""
        if isinstance(job, Finish):
            self.finished(job, result)
        elif isinstance(result, (SignInError, Stopped)) or not isinstance(result, (Sent, str, UploaderError)):
            raise result
        elif isinstance(result, UploaderError):
            self.failed(job, result)
        else:
            if self.outage:  # of which others have seen the end only
                self.put_back()
            self.stalled, self.waited = [], 0.0
            self.shell.line.got_through()
            self.arrived(job, result)

    def arrived(self, job: Job, result: Sent | str) -> None:
        """A photo or a manifest is there."""
        if isinstance(job, SendManifest):
            self.publish(job.uuid, str(result))
        elif isinstance(job, SendPhoto) and isinstance(result, Sent):
            uuid, file = job.planned.uuid, job.planned.photo.file
            self.probes = 2 * self.shell.options.workers if result.found and self.probes else max(0, self.probes - 1)
            self.resume.note(uuid, file, result.entry)
            self.report.photo_state(file, "uploaded")
            self.shell.console.arrived(job.planned)
            self.missing[uuid].discard(file)
            self.publish_if_complete(uuid)

    def failed(self, job: Job, error: UploaderError) -> None:
        """A photo or a manifest didn't get there; where every worker fails in turn, the line is down."""
        if isinstance(job, SendPhoto) and isinstance(error, Refused) and self.shell.options.skip_invalid:
            problem = Problem("Mapillary refuses it", "look at the photo, and remove it if it is no use", str(error))
            uuid, file = job.planned.uuid, job.planned.photo.file
            self.report.verdicts[file] = self.report.verdicts[file].rejected(problem)
            self.shell.console.error(f"{shown(file)}: {problem}")
            self.resume.drop(uuid, file)  # an older handle must not be published
            self.missing[uuid].discard(file)
            self.publish_if_complete(uuid)
            return
        if isinstance(job, SendPhoto):
            self.report.failures[job.planned.photo.file] = str(error)
        what = shown(job.planned.photo.file) if isinstance(job, SendPhoto) else f"the manifest of sequence {job.uuid}"
        self.shell.console.error(f"{what}: {error}")
        if isinstance(error, Passing):
            self.stalled.append(job)

    @property
    def outage(self) -> bool:
        """Whether nothing gets through: every worker failed in turn, or all that is left. One may be a bad photo."""
        last = not (self.todo or self.crew.busy)
        sure = self.waited or (last and any(isinstance(job, SendManifest) for job in self.stalled))
        return len(self.stalled) >= (1 if sure else 2 if last else max(2, self.shell.options.workers))

    def sit_out(self) -> None:
        """Wait for the line to come back, then start again with what is left; give up when the patience is used up."""
        patience = 60 * self.shell.options.patience
        if self.waited >= patience:
            text = f"nothing gets through to Mapillary; given up after {self.waited / 60:.0f} min"
            self.report.error(UploaderError(text, "Run again to go on"))
            self.todo.clear()
            self.stalled = []
            return
        pause = min(patience - self.waited, max(FIRST_OUTAGE_WAIT, min(self.waited, LONGEST_OUTAGE_WAIT)))
        self.shell.console.warn(f"nothing gets through to Mapillary; trying again in {pause:.0f} s")
        self.put_back()
        self.save()
        self.shell.clock.wait(pause, self.shell.line.stop)
        self.waited += pause

    def put_back(self) -> None:
        """Try again, after all others, what failed because of an outage."""
        for job in self.stalled:
            if isinstance(job, SendPhoto):
                self.report.photo_state(job.planned.photo.file, "ready")
        self.todo.extend(self.stalled)
        self.stalled = []

    def publish_if_complete(self, uuid: str) -> None:
        """Send the manifest once every photo of the part has arrived."""
        if self.missing[uuid]:
            return
        entries = self.resume.sequences[uuid].photos
        files = [planned.photo.file for planned in self.parts[uuid].photos if planned.photo.file in entries]
        if files:
            self.todo.appendleft(SendManifest(uuid, tuple(str(entries[file].file_handle) for file in files)))

    def publish(self, uuid: str, manifest_handle: str) -> None:
        """Save the intent, then have the call made at once."""
        tried_at = iso(self.shell.clock.now())
        self.resume.put(uuid, state="publishing", manifest_handle=manifest_handle, publish_tried_at=tried_at)
        try:
            self.save()
        except UploaderError:
            self.not_published(uuid)  # the call is not made
            raise
        self.crew.start(Finish(uuid, manifest_handle, self.shell.account().organization_id))

    def not_published(self, uuid: str) -> None:
        """This run's call certainly had no effect; a call of an earlier run may still have had one."""
        if uuid in self.report.doubtful:
            self.resume.put(uuid, state="unconfirmed")
        else:
            self.resume.put(uuid, state="uploading", publish_tried_at=None)

    def finished(self, job: Finish, result: Any) -> None:
        """What became of a publish: done, certainly not done, or nobody knows. Saved before anything else happens."""
        photos = self.resume.sequences[job.uuid].photos
        if isinstance(result, str):
            published_at = iso(self.shell.clock.now())
            self.resume.put(job.uuid, state="published", cluster_id=result, published_at=published_at)
            self.shell.console.info(f"published sequence {job.uuid}: {len(photos)} photos (cluster {result})")
        elif isinstance(result, (NotActedOn, SignInError, Stopped, Refused)):
            self.not_published(job.uuid)
            if isinstance(result, Refused):  # its handles may be what is wrong
                photos = {file: replace(entry, file_handle=None) for file, entry in photos.items()}
                self.resume.put(job.uuid, manifest_handle=None, photos=photos)
            self.report.error(UploaderError(f"sequence {job.uuid} was not published: {result}", "Run again to go on"))
        else:
            self.resume.put(job.uuid, state="unconfirmed")
            text = f"it is not known whether sequence {job.uuid} was published: {result}"
            self.report.error(UploaderError(text, UNCONFIRMED))
        self.save()
        if isinstance(result, BaseException) and not isinstance(result, ServiceError):
            raise result

    def wind_up(self) -> None:
        """After an error that ends the run: let a publish that is under way answer, and save what is known."""
        self.shell.line.stop.set()
        try:
            self.take_last_results()
            self.put_back()  # an outage's photos haven't failed for good
        finally:
            with contextlib.suppress(UploaderError):  # the error that ended the run matters more
                self.resume.save()

    def take_last_results(self) -> None:
        """Settle what is done already, and wait two seconds for publishes. No new one begins."""
        end = self.shell.clock.seconds() + 2
        while self.crew.busy:
            publishing = any(record.state == "publishing" for record in self.resume.sequences.values())
            item = self.crew.next(end - self.shell.clock.seconds() if publishing else 0)
            if item is None:
                return
            try:
                if not isinstance(item[0], SendManifest):
                    self.settle(*item)
            except UploaderError as error:
                if isinstance(error, Stopped) and error is not item[1]:  # a signal, just now
                    raise

    def save(self) -> None:
        """Save the resume file, and note what that cost."""
        started = self.shell.clock.seconds()
        self.resume.save()
        self.saved_at = self.shell.clock.seconds()
        self.save_cost = self.saved_at - started


UNCONFIRMED = (
    "Each run looks whether its photos have appeared on Mapillary, and never publishes it again by itself. "
    "If they aren't there after some days, --republish finishes it"
)


def open_sequences(resume: Resume, parts: Iterable[Part]) -> dict[str, Entry]:
    """Bring the resume file's unpublished sequences in line with the plan; file -> entry of an earlier run."""
    open_records = [record for record in resume.sequences.values() if not record.settled]
    known = {file: entry for record in open_records for file, entry in record.photos.items()}
    # One that --republish uploads anew keeps its mark, and stays unconfirmed for later runs until it is published
    sequences = {uuid: record for uuid, record in resume.sequences.items() if record.settled or record.publish_tried_at}
    for part in parts:
        kept = {planned.photo.file: known[planned.photo.file] for planned in part.photos if is_current(planned, known)}
        old = sequences.get(part.uuid, SequenceRecord())
        sequences[part.uuid] = SequenceRecord(publish_tried_at=old.publish_tried_at, photos=kept)
    resume.sequences = sequences
    return known


def is_current(planned: Planned, known: Mapping[str, Entry]) -> bool:
    """Whether the entry still tells what would be sent: same size, mtime and description."""
    entry, photo = known.get(planned.photo.file), planned.photo
    if entry is None or (entry.size, entry.mtime_ns) != (photo.size, photo.mtime_ns):
        return False
    return entry.description_md5 == description_md5(planned)


def description_md5(planned: Planned) -> str:
    """What the resume file notes of a description."""
    return hashlib.md5(description_bytes(describe(planned)), usedforsecurity=False).hexdigest()


def entry_of(planned: Planned, key: str, handle: str, uploaded_at: str) -> Entry:
    """The resume file's entry of an uploaded photo."""
    photo = planned.photo
    return Entry(
        *(photo.photo_id, photo.size, photo.mtime_ns, description_md5(planned), key, handle, uploaded_at),
        *(iso(photo.taken_at), iso(planned.captured_at), photo.latitude, photo.longitude, photo.make, photo.model),
    )


def place(folder: Path, file: str) -> Path:
    """The path of a file of a folder. Names are UTF-8 whatever the locale: the same in cron's C."""
    return folder / os.fsdecode(file.encode("utf-8", "surrogateescape"))


def open_photo(path: Path) -> BinaryIO:
    """Open a file for reading; raise Rejection where that fails. Never waits, whatever has become of the file."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.fdopen(os.open(path, flags), "rb", 128 * 1024)
    except OSError as error:
        raise Rejection(NO_FILE._replace(detail=error.strerror or "")) from error


def check_unchanged(stream: BinaryIO, photo: Photo) -> None:
    """Raise PhotoChanged where the open file isn't the one that was checked."""
    status = os.fstat(stream.fileno())
    if (status.st_size, status.st_mtime_ns) != (photo.size, photo.mtime_ns):
        raise PhotoChanged("the photo was changed after it was checked", "Run again when it is at rest")


# ----------------------------------------------------------------------------------------------------------------------
# Check: is it live yet?
# ----------------------------------------------------------------------------------------------------------------------

NEAR_MS, NEAR_METRES = 1_000, 2.0


class Image(NamedTuple):
    """A photo that Mapillary shows: milliseconds UTC, degrees. Texts are "" where Mapillary leaves them out."""

    id: str
    captured_at: int
    latitude: float
    longitude: float
    sequence: str
    make: str
    model: str


def find_images(client: Client, username: str, entries: Iterable[Entry]) -> list[Image]:
    """What Mapillary shows of an account within the entries' capture window, ± 2 s; all pages. May be repeated."""
    times = [from_iso(entry.captured_at) for entry in entries]
    query = {"start_captured_at": iso(min(times) - 2_000), "end_captured_at": iso(max(times) + 2_000), "limit": "2000"}
    query |= {"creator_username": username, "fields": "id,captured_at,geometry,sequence,make,model"}
    images: dict[str, Image] = {}
    seen: set[str] = set()
    page: Any = f"{client.service.graph}/images"
    while isinstance(page, str) and page not in seen:
        if not page.startswith(client.service.graph + "/"):
            raise ServiceError("GET /images: its next page is on another host", "It is not followed: report this")
        data = client.line.persist(partial(client.get, page, **query))
        query = {}  # the next page's address carries it
        seen.add(page)
        images |= {image.id: image for image in map(image_of, data.get("data") or ()) if image}
        paging = data.get("paging")
        page = paging.get("next") if isinstance(paging, dict) else None
    return list(images.values())


def image_of(data: Any) -> Image | None:
    """An image from JSON; None where it lacks what it takes to recognise it."""
    geometry = data.get("geometry") if isinstance(data, dict) else None
    position = geometry.get("coordinates") if isinstance(geometry, dict) else None
    if not isinstance(position, list) or len(position) < 2:
        return None
    numbers = [finite(data.get("captured_at")), finite(position[1]), finite(position[0])]
    if not as_id(data.get("id")) or None in numbers:
        return None
    captured_at, latitude, longitude = (number or 0.0 for number in numbers)
    texts = (as_text(data.get(key)) for key in ("sequence", "make", "model"))
    return Image(as_id(data["id"]), int(captured_at), latitude, longitude, *texts)


class Near(NamedTuple):
    """How far an image is from a photo; `off` is the whole difference where `ms` allows for times cut to seconds."""

    ms: int
    metres: float
    off: int
    file: str


def nearness(file: str, entry: Entry, image: Image, whole: bool) -> Near | None:
    """None where the image can't be the photo. `whole`: Mapillary's times are cut to seconds, so each is all of its."""
    captured_at = from_iso(entry.captured_at)
    off = abs(captured_at - image.captured_at)
    ms = 0 if whole and captured_at // 1000 * 1000 == image.captured_at else off
    cameras = ((entry.make, image.make), (entry.model, image.model))
    other = any(a and b and a.casefold().split() != b.casefold().split() for a, b in cameras)
    metres = distance(entry.latitude, entry.longitude, image.latitude, image.longitude)
    return None if other or ms > NEAR_MS or metres > NEAR_METRES else Near(ms, round(metres, 1), off, file)


def candidates(entries: Mapping[str, Entry], images: Sequence[Image]) -> dict[str, list[Near]]:
    """image id -> the photos that it may be, nearest first."""
    times = [image.captured_at for image in images] or [0]
    low, high = iso(min(times) - 2 * NEAR_MS), iso(max(times) + 3 * NEAR_MS)
    window = {file: entry for file, entry in entries.items() if low <= entry.captured_at <= high}
    ordered = sorted((from_iso(entry.captured_at), file) for file, entry in window.items())
    whole = all(time % 1000 == 0 for time in times)
    found: dict[str, list[Near]] = {}
    for image in images:
        near = []
        for captured_at, file in ordered[bisect_left(ordered, (image.captured_at - NEAR_MS, "")) :]:
            if captured_at > image.captured_at + NEAR_MS:
                break
            near.append(nearness(file, window[file], image, whole))
        found[image.id] = sorted(one for one in near if one)
    return found


def match_images(entries: Mapping[str, Entry], images: Sequence[Image]) -> dict[str, list[str]]:
    """file -> its ids, those noted before included.

    An image of a photo's very time is that photo, or one of those that are just as near; any other goes to a photo
    that has none yet. So a second copy of a photo makes a second id of it and never takes its neighbour's place.
    """
    found = {file: list(entry.ids) for file, entry in entries.items() if entry.ids}
    noted = {image_id for ids in found.values() for image_id in ids}
    options = {image: near for image, near in candidates(entries, images).items() if near and image not in noted}
    for image in sorted(options, key=lambda image: (options[image], image)):
        near = options[image]
        alike = [one for one in near if one[:2] == near[0][:2]] if near[0].ms == 0 else near
        best = min(alike, key=lambda one: (len(found.get(one.file, ())), one))
        found.setdefault(best.file, []).append(image)
    return {file: sorted(ids) for file, ids in found.items()}


def published_entries(resume: Resume) -> dict[str, Entry]:
    """uuid/file -> entry, of all that is published or perhaps is: a sequence's images are told from its neighbours'."""
    return {f"{uuid}/{file}": entry for uuid, r in resume.settled().items() for file, entry in r.photos.items()}


def note_live(resume: Resume, uuid: str, images: Sequence[Image], now: int) -> list[str]:
    """Put what was found of a sequence into the resume file; warnings about photos that were found twice."""
    record = resume.sequences[uuid]
    found = match_images(published_entries(resume), images)
    fresh = {file: found.get(f"{uuid}/{file}", []) for file, entry in record.photos.items() if not entry.ids}
    warnings = []
    for file, ids in fresh.items():
        image_id = ids[0] if len(ids) == 1 else None
        if ids:
            resume.note(uuid, file, replace(record.photos[file], image_id=image_id, image_ids=ids[1:] and ids))
        if len(ids) > 1:
            warnings.append(f"{shown(file)} is on Mapillary more than once: {', '.join(ids)}; was it uploaded before?")
    ids_found = {image_id for ids in fresh.values() for image_id in ids}
    sequences = Counter(image.sequence for image in images if image.id in ids_found and image.sequence)
    if sequences and not record.mapillary_sequence:
        resume.put(uuid, mapillary_sequence=sequences.most_common(1)[0][0])
    if ids_found and not record.live_at:
        resume.put(uuid, live_at=iso(now))
    return warnings


def settle_unconfirmed(client: Client, resume: Resume) -> list[str]:
    """Look up each unconfirmed sequence, and mark it published where at least one of its photos is on Mapillary.

    Only an image that is nearer to its photos than to any other of the file counts: a neighbour's proves nothing.
    """
    settled = []
    for uuid, record in resume.settled().items():
        if record.state == "unconfirmed" and record.photos:
            images = find_images(client, resume.username, record.photos.values())
            options = candidates(published_entries(resume), images)
            best = [{one.file.partition("/")[0] for one in near if one[:2] == near[0][:2]} for near in options.values()]
            if {uuid} in best:
                resume.put(uuid, state="published", published_at=record.publish_tried_at)
                settled.append(uuid)
    return settled


def is_overdue(record: SequenceRecord, now: int) -> bool:
    """Published seven days ago, and not all live."""
    if record.state != "published" or not record.published_at or record.live == len(record.photos):
        return False
    return now - from_iso(record.published_at) > OVERDUE_DAYS * DAY


def liveness(record: SequenceRecord, now: int) -> str:
    """What is known of a sequence on Mapillary, in words. Never "failed": the API can't tell."""
    count, live = len(record.photos), record.live
    if record.state == "uploading":
        return "not published yet"
    if record.state != "published":
        return "unconfirmed: none of its photos is on Mapillary yet"
    if live == count:
        return "live"
    text = f"partly live ({live} of {count})" if live else "sent (none live yet; hours to days are usual)"
    return f"overdue: {text}, {OVERDUE_DAYS} days after publishing" if is_overdue(record, now) else text


# ----------------------------------------------------------------------------------------------------------------------
# Sign-in
# ----------------------------------------------------------------------------------------------------------------------

TOKEN_HELP = "Set MAPILLARY_ACCESS_TOKEN, or sign in once: python mapillary_uploader.py --login -u {}"
RENEW_DAYS = 7


@dataclass(frozen=True, slots=True)
class Profile:
    """A sign-in as the official client keeps it; `expires` ("" = unknown) is ours and says when OAuth's token ends."""

    name: str
    token: str
    username: str = ""
    user_id: str = ""
    expires: str = ""
    path: Path | None = field(default=None, kw_only=True)  # the file that it was found in


def config_path(environment: Mapping[str, str]) -> Path:
    """The official client's profile file that sign-ins are saved to."""
    client_token = environment.get("MAPILLARY_CLIENT_TOKEN") or PUBLIC_CLIENT_TOKEN
    own = environment.get("MAPILLARY_CONFIG_PATH")
    return Path(own) if own else config_folder(environment) / client_token.replace("|", "_")


def config_folder(environment: Mapping[str, str]) -> Path:
    """Where the official client keeps profile files, on every system."""
    home = environment.get("HOME") or os.path.expanduser("~")
    return Path(home) / ".config" / "mapillary" / "configs"


def read_config(path: Path) -> configparser.ConfigParser:
    """A profile file; empty where there is none. Raise SignInError where it isn't INI."""
    config = configparser.ConfigParser(interpolation=None)
    config.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        config.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        hint = "Mend it or move it away"
        raise SignInError(f"the profile file {shown(path)} can't be read: {shown(error)}", hint) from error
    return config


def find_profile(name: str, environment: Mapping[str, str], warn: Callable[[str], None]) -> Profile | None:
    """The profile called `name`, else the one whose MAPSettingsUsername it is."""
    own = environment.get("MAPILLARY_CONFIG_PATH")
    paths = [Path(own)] if own else sorted(config_folder(environment).glob("MLY_*"))
    profiles = []
    for path in paths:
        try:
            config = read_config(path)
        except SignInError as error:
            if own:
                raise
            warn(str(error))  # another file may hold the profile
            continue
        for section in config.sections():
            values = dict(config.items(section))
            keys = ("user_upload_token", "MAPSettingsUsername", "MAPSettingsUserKey", "MAPTokenExpires")
            profile = Profile(section, *(values.get(key, "").strip() for key in keys), path=path)
            if profile.token and name in (section, profile.username):
                profiles.append(profile)
                if os.name == "posix" and path.stat().st_mode & 0o077:
                    warn(f"others can read the tokens in {shown(path)}: chmod 600 it")
    return min(profiles, key=lambda profile: profile.name != name, default=None)


def save_profile(profile: Profile, path: Path) -> None:
    """Save atomically with mode 0600, leaving other sections as they are; raise SignInError where that fails."""
    config = read_config(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if not profile.name.isprintable():
            raise ValueError("no profile can have that name")
        if not config.has_section(profile.name):
            config.add_section(profile.name)
        values = {"MAPSettingsUserKey": profile.user_id, "MAPSettingsUsername": profile.username}
        values |= {"user_upload_token": profile.token, "MAPTokenExpires": profile.expires}
        for key, value in values.items():
            config.remove_option(profile.name, key)
            if value:
                config.set(profile.name, key, value)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            config.write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # it may hold the token
        hint = "Set MAPILLARY_ACCESS_TOKEN instead"
        raise SignInError(f"the profile can't be saved to {shown(path)}: {shown(error)}", hint) from error


def valid_token(token: str) -> str:
    """The token without surrounding space; raise SignInError where a header can't carry it."""
    token = token.strip()
    if not re.fullmatch(r"[\x21\x23-\x26\x28-\x7e]+", token):
        hint = "Copy it anew, without quotes around it"
        raise SignInError("the token holds quotes, spaces or characters that no token has", hint)
    return token


def sign_in(shell: Shell) -> Account:
    """The account to publish as, by the token that section 12 of the contract finds; raise SignInError, Passing."""
    name, environment = shell.options.username, shell.environment
    token, profile = environment.get("MAPILLARY_ACCESS_TOKEN", "").strip(), None
    if not token:
        profile = find_profile(name, environment, shell.console.warn)
        if profile is None and shell.console.can_ask:
            profile = log_in(shell)
        if profile is None:
            raise SignInError(f"no token for {shown(name)}", TOKEN_HELP.format(shown(name)))
        token = renewed(profile, shell).token
    return known_account(valid_token(token), profile.name if profile else "", shell)


def known_account(token: str, profile_name: str, shell: Shell) -> Account:
    """Ask /me whose token it is; it must come from the profile `options.username`, or be of that account."""
    name = shell.options.username
    client = Client(shell.service, token, shell.line)
    user_id, username = shell.line.persist(client.me)
    if name not in (profile_name, username):
        hint = TOKEN_HELP.format(shown(name))
        raise SignInError(f"the token belongs to {shown(username)}, not to {shown(name)}", hint)
    organization = shell.options.organization
    for_whom = ""
    if organization is not None:
        its_name = shell.line.persist(partial(client.organization, organization))
        for_whom = f" for the organization {shown(its_name)} ({organization})"
    client.close()
    shell.console.info(f"account {shown(username)} ({user_id}){for_whom}")
    return Account(token, user_id, username, organization)


def log_in(shell: Shell) -> Profile:
    """Sign in as --login does: a token as it is, OAuth with one's own application, or e-mail and password; save it."""
    environment = shell.environment
    if environment.get("MAPILLARY_ACCESS_TOKEN", "").strip():
        profile = Profile(shell.options.username, valid_token(environment["MAPILLARY_ACCESS_TOKEN"]))
    elif not shell.console.can_ask:
        raise SignInError("signing in needs a terminal", "Set MAPILLARY_ACCESS_TOKEN")
    elif environment.get("MAPILLARY_CLIENT_ID") and environment.get("MAPILLARY_CLIENT_SECRET"):
        profile = by_oauth(shell)
    else:
        profile = by_password(shell)
    client = Client(shell.service, profile.token, shell.line)
    user_id, username = shell.line.persist(client.me)
    profile = replace(profile, user_id=user_id, username=username)
    path = config_path(environment)
    save_profile(profile, path)
    shell.console.info(f"signed in as {shown(username)}; saved as profile {shown(profile.name)} in {shown(path)}")
    return profile


def by_password(shell: Shell) -> Profile:
    """E-mail and password, as the official client does; asks up to three times, with the server's words in between."""
    shell.console.say(
        "Sign in with your Mapillary e-mail and password. An account that signs in through Google or Facebook"
        " has none:\nfor it set MAPILLARY_ACCESS_TOKEN, or MAPILLARY_CLIENT_ID and MAPILLARY_CLIENT_SECRET of your own"
        " application."
    )
    client = Client(shell.service, shell.environment.get("MAPILLARY_CLIENT_TOKEN") or PUBLIC_CLIENT_TOKEN, shell.line)
    for _ in range(3):
        email = shell.console.ask("E-mail").strip()
        password = shell.console.ask("Password (not shown)", hidden=True)
        client.secrets.append(password)
        try:
            data = client.post("/login", {"email": email, "password": password, "locale": "en_US"})
            return Profile(shell.options.username, valid_token(as_text(data.get("access_token"))))
        except (Refused, SignInError) as error:
            shell.console.error(f"Mapillary says: {error.args[0]}")
    hint = "See https://www.mapillary.com to reset a password, or set MAPILLARY_ACCESS_TOKEN"
    raise SignInError("not signed in", hint)


def by_oauth(shell: Shell) -> Profile:
    """OAuth with the user's own application: they open an address, and paste the one that the browser ends at."""
    from urllib.parse import parse_qs, urlencode, urlsplit

    environment = shell.environment
    redirect = environment.get("MAPILLARY_REDIRECT_URI", "")
    if not redirect:
        hint = "Set it to the callback address that your application has registered"
        raise UsageError("MAPILLARY_REDIRECT_URI is not set", hint)
    state = base64.urlsafe_b64encode(os.urandom(24)).decode()
    query = {"client_id": environment["MAPILLARY_CLIENT_ID"], "redirect_uri": redirect, "response_type": "code"}
    query |= {"scope": "read write upload", "state": state}
    connect = "https://www.mapillary.com" if shell.service.name == "mapillary" else shell.service.graph
    shell.console.say("Open this address, allow the access, and paste the address that the browser ends at:")
    shell.console.say(f"{connect}/connect?{urlencode(query)}")
    answer = parse_qs(urlsplit(shell.console.ask("Address").strip()).query)
    if "error" in answer:
        hint = "Run --login again and allow the access"
        raise SignInError(f"Mapillary did not allow it: {shown(answer['error'][0])}", hint)
    if answer.get("state") != [state] or not answer.get("code"):
        hint = "Run --login again and paste the whole address"
        raise SignInError("that address is not the answer to this sign-in", hint)
    return token_by(shell, {"grant_type": "authorization_code", "code": answer["code"][0], "redirect_uri": redirect})


def token_by(shell: Shell, grant: Mapping[str, str]) -> Profile:
    """Exchange a code or an old token for a token; raise SignInError where Mapillary won't."""
    environment = shell.environment
    client = Client(shell.service, valid_token(environment["MAPILLARY_CLIENT_SECRET"]), shell.line)
    client.secrets += [grant.get("refresh_token", ""), grant.get("code", "")]
    try:
        data = client.post("/token", {"client_id": environment["MAPILLARY_CLIENT_ID"], **grant})
    except (Refused, SignInError) as error:
        hint = "Run --login again; a code works once, and soon ends"
        raise SignInError(f"Mapillary gives no token: {error.args[0]}", hint) from error
    lifetime = finite(data.get("expires_in"))
    expires = iso(shell.clock.now() + int(1000 * lifetime)) if lifetime else ""
    return Profile(shell.options.username, valid_token(as_text(data.get("access_token"))), expires=expires)


def renewed(profile: Profile, shell: Shell) -> Profile:
    """The profile, with a new token where OAuth's is about to run out and the application's secret is there."""
    left = math.inf
    with contextlib.suppress(ValueError):  # none that we wrote
        left = from_iso(profile.expires) - shell.clock.now()
    if left > RENEW_DAYS * DAY:
        return profile
    if shell.environment.get("MAPILLARY_CLIENT_ID") and shell.environment.get("MAPILLARY_CLIENT_SECRET"):
        try:
            new = token_by(shell, {"grant_type": "refresh_token", "refresh_token": profile.token})
        except UploaderError as error:
            shell.console.warn(f"the token could not be renewed: {error}")
        else:
            profile = replace(profile, token=new.token, expires=new.expires)
            try:
                save_profile(profile, profile.path or config_path(shell.environment))
            except SignInError as error:  # it serves this run all the same
                shell.console.warn(str(error))
            return profile
    whose = f"the token of profile {shown(profile.name)}"
    if left <= 0:
        raise SignInError(f"{whose} has run out", TOKEN_HELP.format(shown(profile.name)))
    shell.console.warn(f"{whose} runs out on {profile.expires[:10]}: sign in again before")
    return profile


# ----------------------------------------------------------------------------------------------------------------------
# Console
# ----------------------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """Text as it may be shown: control characters and what isn't valid text are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def in_words(size: float) -> str:
    """Bytes as kB, MB or GB."""
    unit = next((unit for unit in ((1e9, "GB"), (1e6, "MB")) if size >= unit[0]), (1e3, "kB"))
    return f"{size / unit[0]:,.1f} {unit[1]}"


class Console:
    """The terminal or log: results go to stdout, all else to stderr. Never fails, whatever became of the streams."""

    def __init__(self, options: Options, clock: Clock) -> None:
        self.options, self.clock = options, clock
        self.terminal = bool(sys.stderr and sys.stderr.isatty()) and not options.quiet
        self.can_ask = bool(sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty())
        self.colour = self.terminal and not os.environ.get("NO_COLOR")
        self.tick = 0.1 if self.terminal else 1.0
        self._lock = threading.Lock()
        self._drawn_at, self._bar = clock.seconds(), ""
        self.begin()

    def begin(self) -> None:
        """A new folder: the counts start anew."""
        self._total = self._photos = self._arrived = self._arrived_bytes = 0
        self._sequence, self._started = "", self.clock.seconds()

    def info(self, text: str) -> None:
        """What goes on."""
        if not self.options.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        """What a person should know."""
        if not self.options.quiet:
            self._line("warning: " + text, "yellow")

    def error(self, text: str) -> None:
        """What failed."""
        self._line("error: " + text, "red")

    def detail(self, text: str) -> None:
        """What only --verbose shows."""
        if self.options.verbose and not self.options.quiet:
            self._line(text)

    def say(self, text: str) -> None:
        """Text of a dialogue."""
        self._write(sys.stderr, text + "\n")

    def ask(self, question: str, hidden: bool = False) -> str:
        """Ask on the terminal; raise SignInError where the person gives up."""
        try:
            return str(click.prompt(question, hide_input=hidden, err=True, default="", show_default=False))
        except click.Abort as error:
            raise SignInError("not signed in", "Run --login again") from error

    def result(self, pieces: Iterable[str]) -> None:
        """What a program reads: to stdout, as a line."""
        self._wipe()
        for piece in chain(pieces, ["\n"]):
            self._write(sys.stdout, piece)

    def checking(self, done: int, total: int) -> None:
        """Progress of step 1."""
        self._show(f"checking photos: {done:,} of {total:,}")

    def expect(self, part: Part, files: set[str]) -> None:
        """Photos that are to be sent."""
        self._photos += len(files)
        self._total += sum(planned.photo.size for planned in part.photos if planned.photo.file in files)

    def arrived(self, planned: Planned) -> None:
        """A photo is there."""
        self._arrived += 1
        self._arrived_bytes += planned.photo.size
        self._sequence = planned.uuid

    def progress(self, sent: int) -> None:
        """Progress of step 3; `sent`: bytes handed to the network for this folder."""
        done = min(self._total, max(self._arrived_bytes, sent))
        rate = done / max(0.1, self.clock.seconds() - self._started)
        left = timedelta(seconds=int((self._total - done) / rate)) if rate else "?"
        text = f"{self._arrived:,}/{self._photos:,} photos, {in_words(done)}/{in_words(self._total)}"
        sequence = f", sequence {self._sequence[:8]}…" if self._sequence else ""  # 80 columns hold no more
        self._show(f"{text}, {in_words(rate)}/s, {left} left{sequence}")

    def _show(self, text: str) -> None:
        now = self.clock.seconds()
        if self.options.quiet or now - self._drawn_at < (0.1 if self.terminal else 30):
            return
        self._drawn_at = now
        if not self.terminal:
            self._line(text)
            return
        width = 79
        with contextlib.suppress(OSError, ValueError):  # stderr's: stdout may be a file
            width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        share = self._arrived_bytes / self._total if self._total else 0.0
        bar = f"[{'#' * int(10 * share):<10}] " if self._total else ""
        with self._lock:
            self._bar = (bar + text)[:width]
            self._write(sys.stderr, "\r" + self._bar + "\x1b[K")

    def _wipe(self) -> None:
        if self._bar:
            self._write(sys.stderr, "\r\x1b[K")
            self._bar = ""

    def _line(self, text: str, colour: str = "") -> None:
        with self._lock:
            self._wipe()
            if not self.terminal:
                text = f"{iso(self.clock.now())[:19]}Z {text}"
            elif self.colour and colour:
                text = click.style(text, fg=colour)
            self._write(sys.stderr, text + "\n")

    def _write(self, stream: IO[str] | None, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe (| head) changes nothing of the work
            if stream:
                stream.write(text)
                stream.flush()


class Report:
    """What a run did to one folder: counts, states and the exit code."""

    def __init__(self, folder: Path, options: Options, console: Console) -> None:
        self.folder, self.options, self.console = folder, options, console
        self.verdicts: dict[str, Verdict] = {}
        self.planned: dict[str, Planned] = {}
        self.states: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.skipped: list[str] = []
        self.again: list[str] = []  # unconfirmed sequences to finish with the same manifest
        self.doubtful: set[str] = set()  # sequences that were unconfirmed when the run began
        self.errors: list[UploaderError] = []
        self.resume: Resume | None = None
        self.checked_at: int | None = None

    def photo_state(self, file: str, state: str) -> None:
        """A photo came further."""
        self.states[file] = state
        self.failures.pop(file, None)

    def error(self, error: UploaderError) -> None:
        """Something that decides the exit code."""
        self.errors.append(error)
        self.console.error(str(error))

    def blocked(self) -> bool:
        """Whether rejected photos keep all from being sent."""
        return not self.options.skip_invalid and any(verdict.problems for verdict in self.verdicts.values())

    def state(self, file: str) -> str:
        """ready, rejected, uploaded, published or failed."""
        verdict = self.verdicts[file]
        uuid = verdict.published or (self.planned[file].uuid if file in self.planned else None)
        record = self.resume.sequences.get(uuid) if self.resume and uuid else None
        if verdict.problems:
            return "rejected"
        if record and record.settled and file not in self.failures and (verdict.published or file in record.photos):
            return "published" if record.state == "published" else "uploaded"
        return "failed" if file in self.failures else self.states.get(file, "ready")

    def code(self) -> Exit:
        """The exit code, from what became of the photos and from the errors."""
        states = {self.state(file) for file in self.verdicts}
        codes = [error.code for error in self.errors]
        if "rejected" in states:
            codes.append(Exit.REJECTED)
        if states - {"rejected", "published"} and not self.options.dry_run and not self.blocked():
            codes.append(Exit.UNFINISHED)
        records = self.resume.sequences.values() if self.resume else ()
        if not self.options.dry_run and any(r.publish_tried_at and r.state != "published" for r in records):
            codes.append(Exit.UNFINISHED)
        if self.checked_at is not None:
            codes += [Exit.OVERDUE for record in records if is_overdue(record, self.checked_at)]
            codes += [Exit.UNFINISHED for record in records if record.live < len(record.photos)]
        return worst(codes)

    def document(self) -> dict[str, Any]:
        """The --json document of the folder, all but its photos."""
        return {
            "directory": str(self.folder),
            "username": self.options.username or None,
            "dry_run": self.options.dry_run,
            "exit_code": int(self.code()),
            "sequences": [self.sequence_json(uuid, record) for uuid, record in self.sequences().items()],
            "skipped": self.skipped,
            "error": str(self.errors[0]) if self.errors else None,
        }

    def photos(self) -> Iterator[dict[str, Any]]:
        """The photos of the document."""
        return map(self.photo_json, self.verdicts) if self.verdicts else self.checked_photos()

    def photo_json(self, file: str) -> dict[str, Any]:
        """One photo of the document."""
        verdict, planned = self.verdicts[file], self.planned.get(file)
        uuid = verdict.published or (planned.uuid if planned else None)
        record = self.resume.sequences.get(uuid) if self.resume and uuid else None
        entry = record.photos.get(file) if record else None
        problems = [str(problem) for problem in verdict.problems]
        return {
            "file": file,
            "state": self.state(file),
            "problems": problems + ([self.failures[file]] if file in self.failures else []),
            "warnings": list(verdict.warnings),
            "sequence": uuid,
            "description": json.loads(fitting(planned) or description_bytes(describe(planned))) if planned else None,
            "image_id": entry.image_id if entry else None,
        }

    def sequence_json(self, uuid: str, record: SequenceRecord) -> dict[str, Any]:
        """One sequence of the document."""
        planned = sum(1 for planned in self.planned.values() if planned.uuid == uuid)
        return {
            "sequence": uuid,
            "state": "unconfirmed" if record.state == "publishing" else record.state,
            "photos": len(record.photos) if record.settled else planned,
            "live": record.live,
            "overdue": self.checked_at is not None and is_overdue(record, self.checked_at),
            "cluster_id": record.cluster_id,
            "published_at": record.published_at,
        }

    def checked_photos(self) -> Iterator[dict[str, Any]]:
        """The photos of the resume file, where --check read nothing else."""
        for uuid, record in self.sequences().items() if self.checked_at is not None else ():
            state = "published" if record.state == "published" else "uploaded"
            for file, entry in record.photos.items():
                warnings = [f"on Mapillary more than once: {', '.join(entry.image_ids)}"] if entry.image_ids else []
                photo = {"file": file, "state": state, "problems": [], "warnings": warnings, "sequence": uuid}
                yield photo | {"description": None, "image_id": entry.image_id}

    def sequences(self) -> dict[str, SequenceRecord]:
        """The sequences of the resume file and, where they aren't in it yet, of the plan."""
        records = dict(self.resume.sequences) if self.resume else {}
        for planned in self.planned.values():
            if planned.uuid not in records:
                records[planned.uuid] = SequenceRecord(state="ready")
        return records

    def summary(self) -> str:
        """What a person likes to read at the end."""
        lines = [f"{shown(self.folder)}: {self.counts()}"]
        lines += [f"  {self.sequence_line(uuid, record)}" for uuid, record in self.sequences().items()]
        for problem, files in self.reasons().items():
            lines.append(f"  rejected, {problem.what}: {problem.fix}")
            lines += [f"    {shown(file)}{detail and f' ({detail})'}" for file, detail in files]
        if self.skipped and not self.options.dry_run:
            names = [shown(name) for name in self.skipped[:5]] + ["…"] * (len(self.skipped) > 5)
            lines.append(f"  skipped, no photos: {', '.join(names)}")
        return "\n".join([*lines, f"  {self.next_step()}"])

    def counts(self) -> str:
        """Photos by state."""
        if self.checked_at is not None:
            records = self.sequences().values()
            return f"{sum(r.live for r in records):,} of {sum(len(r.photos) for r in records):,} photos are live"
        states = Counter(self.state(file) for file in self.verdicts)
        order = ("published", "uploaded", "ready", "failed", "rejected")
        texts = [f"{states[state]:,} {state}" for state in order if states[state]]
        return f"{len(self.verdicts):,} photos: {', '.join(texts)}" if self.verdicts else "nothing was read"

    def sequence_line(self, uuid: str, record: SequenceRecord) -> str:
        """A sequence: photos, distance, first and last time, state."""
        planned = sorted((p for p in self.planned.values() if p.uuid == uuid), key=lambda p: p.captured_at)
        track = [(p.captured_at, p.photo.latitude, p.photo.longitude) for p in planned]
        if record.settled or not track:
            entries = record.photos.values()
            track = sorted((from_iso(e.captured_at), e.latitude, e.longitude) for e in entries)
        metres = sum(distance(*one[1:], *other[1:]) for one, other in zip(track, track[1:]))
        span = f", {iso(track[0][0])[:19]}Z to {iso(track[-1][0])[11:19]}Z" if track else ""
        state = {"unconfirmed": "publish unconfirmed", "uploading": "not published yet"}.get(record.state, record.state)
        if self.checked_at is not None:
            state = liveness(record, self.checked_at)
            live = sorted((e.captured_at, e.image_id) for e in record.photos.values() if e.image_id)
            state += f", https://www.mapillary.com/app/?pKey={live[0][1]}" if live else ""
        return f"sequence {uuid}: {len(track):,} photos, {metres / 1000:,.2f} km{span}: {state}"

    def reasons(self) -> dict[Problem, list[tuple[str, str]]]:
        """Rejected photos by reason."""
        found: dict[Problem, list[tuple[str, str]]] = {}
        for verdict in self.verdicts.values():
            for problem in verdict.problems:
                found.setdefault(problem._replace(detail=""), []).append((verdict.file, problem.detail))
        return found

    def next_step(self) -> str:
        """What to do now."""
        directory = f'-d "{shown(self.folder)}" -u {shown(self.options.username or "NAME")}'
        command = f"python mapillary_uploader.py {directory}"
        steps = {
            Exit.DONE: f"Done. In some hours to days, see whether it is live: {command} --check",
            Exit.UNFINISHED: f"Not finished. To go on: {command}",
            Exit.REJECTED: f"Rejected photos need a look. To upload the others: {command} --skip-invalid",
            Exit.OVERDUE: "Overdue: ask Mapillary's support, with the cluster id from the resume file",
        }
        if self.checked_at is not None:
            steps |= {Exit.DONE: "All live.", Exit.UNFINISHED: f"Not all live yet. To look again: {command} --check"}
        if self.options.dry_run:
            steps[Exit.DONE] = f"Every photo passes; nothing was sent. To upload: {command}"
        elif self.options.skip_invalid:
            steps[Exit.REJECTED] = "The rest is done; the rejected photos need a look."
        code = self.code()
        return steps.get(code, f"Stopped. {self.errors[0].hint if self.errors else ''}".strip())


# ----------------------------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Shell:
    """What surrounds the work: options, environment, terminal, clock, and the account once it is known."""

    options: Options
    environment: Mapping[str, str]
    console: Console
    clock: Clock
    service: Service
    line: Line
    signed_in: Account | None = None

    def account(self) -> Account:
        """Sign in, once for all folders."""
        self.signed_in = self.signed_in or sign_in(self)
        return self.signed_in


def main(folder: Path, shell: Shell, report: Report) -> None:
    """The four steps on one folder. Raise UploaderError; what is known till then is in `report`."""
    options = shell.options
    files, report.skipped = list_photos(folder)
    if not files:
        hint = "Photos are files named .jpg or .jpeg; -r looks into the folders below"
        raise UsageError(f"no photo in {shown(folder)}", hint)
    with contextlib.nullcontext() if options.dry_run else locked(folder):
        resume = report.resume = open_resume(folder, shell)
        if not options.dry_run:
            look_up_unconfirmed(shell, resume, report)

        # 1. Read and check every photo; nothing is sent before all are judged.
        verdicts = read_and_check(folder, files, resume, shell)
        report.verdicts = {verdict.file: verdict for verdict in verdicts}

        # 2. Plan: sequences, their order and limits, descriptions.
        parts = plan(verdicts, resume, report)
        if options.output:
            write_output(folder, options.output / os.path.relpath(folder, options.directory), parts)
        if options.dry_run or report.blocked():
            return

        # 3. Upload every photo, and 4. publish each sequence as soon as all of its photos are there.
        Uploading(shell, resume, report, parts).work()


def open_resume(folder: Path, shell: Shell) -> Resume:
    """The folder's resume file, or a new one; where anything is to be sent it must be the account's."""
    resume, service = load_resume(folder), shell.service.name
    if shell.options.dry_run:
        return resume or Resume(folder, service)
    account = shell.account()
    if resume:
        check_owner(resume, account, service)
    return resume or Resume(folder, service, account)


def look_up_unconfirmed(shell: Shell, resume: Resume, report: Report) -> None:
    """Settle publishes of earlier runs whose outcome is not known, and ready them for --republish."""
    if not any(record.state == "unconfirmed" for record in resume.sequences.values()):
        return
    try:
        client = Client(shell.service, shell.account().token, shell.line)
        for uuid in settle_unconfirmed(client, resume):
            shell.console.info(f"sequence {uuid} was published: its photos are on Mapillary")
        looked_up = True
    except ServiceError as error:
        shell.console.warn(f"unconfirmed sequences can't be looked up now: {error}")
        looked_up = False
    now = shell.clock.now()
    for uuid, record in list(resume.sequences.items()):
        if record.state != "unconfirmed":
            continue
        missing = [file for file in record.photos if not place(report.folder, file).exists()]
        report.doubtful.add(uuid)
        if not (shell.options.republish and looked_up):
            report.error(UploaderError(f"it is not known whether sequence {uuid} was published", UNCONFIRMED))
        elif record.manifest_handle and all(entry.usable(now) for entry in record.photos.values()):
            report.again.append(uuid)
        elif missing:
            hint = f"Put {shown(missing[0])} back, and run again"
            report.error(UploaderError(f"{len(missing)} photos of sequence {uuid} are no longer in the folder", hint))
        else:
            shell.console.warn(
                f"sequence {uuid} is uploaded anew: its handles have expired, a second copy on Mapillary is possible"
            )
            resume.put(uuid, state="uploading", manifest_handle=None)
    resume.save()


def list_photos(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folder's photos in natural order, and of what is skipped; names with a leading dot are ignored."""
    try:
        everything = os.listdir(folder)
    except OSError as error:
        hint = "See to its permissions"
        raise UsageError(f"the folder {shown(folder)} can't be read: {error.strerror}", hint) from error
    everything = [os.fsencode(name).decode("utf-8", "surrogateescape") for name in everything]
    names = [name for name in everything if not name.startswith(".") and name not in (RESUME_NAME, LOCK_NAME)]
    photos = [name for name in names if name.lower().endswith((".jpg", ".jpeg"))]
    rest = [name for name in set(names) - set(photos) if not place(folder, name).is_dir()]
    return sorted(photos, key=natural_order), sorted(rest, key=natural_order)


def read_and_check(folder: Path, files: Sequence[str], resume: Resume, shell: Shell) -> list[Verdict]:
    """Step 1: a verdict on each photo, in order. Published ones aren't opened while size and mtime are as noted."""
    options, console = shell.options, shell.console
    console.info(f"checking {len(files):,} photos in {shown(folder)}")
    rules = Rules(shell.clock.now(), options.utc_offset)
    check_age(folder, files, options.min_age, rules.now)
    index = PublishedIndex(resume, files)
    verdicts = []
    for done, file in enumerate(files):
        verdicts.append(judge_file(folder, file, rules, index))
        console.checking(done, len(files))
    kept = {file for record in resume.sequences.values() for file in record.photos}
    verdicts = find_copies(verdicts, kept, lambda one, other: same_content(place(folder, one), place(folder, other)))
    known = (entry.photo_id for record in resume.sequences.values() for entry in record.photos.values())
    return find_missing(verdicts, known)


def check_age(folder: Path, files: Iterable[str], min_age: float, now: int) -> None:
    """Raise UploaderError while a photo is younger than `min_age` seconds: the folder is still being copied."""
    for file in files if min_age > 0 else ():
        with contextlib.suppress(OSError):
            age = now / 1000 - place(folder, file).stat().st_mtime
            if age < min_age:
                what = f"{shown(file)} is {max(age, 0):.0f} s old and may still be being copied"
                raise UploaderError(what, f"Run again when it is {min_age:g} s old")


class PublishedIndex:
    """Which photos count as published, by the resume file: by path, by photo.id, by time, position and camera."""

    def __init__(self, resume: Resume, files: Iterable[str]) -> None:
        self.resume, self.files = resume, set(files)
        self.by_file: dict[str, tuple[str, str, Entry]] = {}
        self.by_id: dict[str, tuple[str, str, Entry]] = {}
        self.by_shot: dict[tuple[object, ...], tuple[str, str, Entry]] = {}
        for uuid, record in resume.settled().items():
            for file, entry in record.photos.items():
                shot = (from_iso(entry.taken_at), entry.latitude, entry.longitude, entry.make, entry.model)
                photo_id = entry.photo_id or f"\0{file}"
                self.by_file[file] = self.by_id[photo_id] = self.by_shot[shot] = uuid, file, entry

    def find(self, photo: Photo) -> tuple[str, str, Entry] | None:
        """(sequence, file, entry) that the photo counts as; None where it is new."""
        if found := self.by_id.get(photo.photo_id):
            return found
        found = self.by_shot.get((photo.taken_at, photo.latitude, photo.longitude, photo.make, photo.model))
        # Two shots of one burst are alike: where Sequence Maker gave the other another id in the same sequence, and it
        # is still here, this one is a photo of its own
        if found and re.fullmatch(re.escape(photo.sequence_id) + r"(_\d+)?", found[0]) and found[1] in self.files:
            return None
        return found


def judge_file(folder: Path, file: str, rules: Rules, index: PublishedIndex) -> Verdict:
    """A photo's verdict, with what the resume file knows of it."""
    path = place(folder, file)
    noted = index.by_file.get(file)
    try:
        status = path.stat()
        if noted and (status.st_size, status.st_mtime_ns) == (noted[2].size, noted[2].mtime_ns):
            return Verdict(file, photo_id=noted[2].photo_id, published=noted[0])
        if not stat.S_ISREG(status.st_mode):
            raise Rejection(NO_FILE._replace(detail="not a regular file"))
        with open_photo(path) as stream:
            verdict = judge(stream, file, status, rules)
    except OSError as error:
        verdict = Verdict(file, problems=(NO_FILE._replace(detail=error.strerror or ""),))
    except Rejection as error:
        verdict = Verdict(file, problems=(error.problem,))
    found = noted or (index.find(verdict.photo) if verdict.photo else None)
    return as_published(folder, verdict, found, index.resume) if found else verdict


def as_published(folder: Path, verdict: Verdict, found: tuple[str, str, Entry], resume: Resume) -> Verdict:
    """The verdict on a photo that counts as published; its size and mtime are noted anew where only they changed."""
    uuid, file, entry = found
    before = Verdict(verdict.file, photo_id=verdict.photo_id or entry.photo_id, published=uuid)
    if verdict.photo and is_same_photo(folder, verdict.photo, uuid, file, entry):
        if file == verdict.file:
            size, mtime_ns = verdict.photo.size, verdict.photo.mtime_ns
            resume.note(uuid, file, replace(entry, size=size, mtime_ns=mtime_ns))
            return before
        return before.warned(f"it was published as {shown(file)}, and is not sent again")
    text = "its content changed since it was published as {}; it is not sent again (moving {} away publishes anew)"
    return before.warned(text.format(shown(file), RESUME_NAME))


def is_same_photo(folder: Path, photo: Photo, uuid: str, file: str, entry: Entry) -> bool:
    """Whether a photo, described as it was then, still has the bytes that were sent."""
    if (photo.size, photo.mtime_ns) == (entry.size, entry.mtime_ns):
        return True
    planned = Planned(replace(photo, file=file), uuid, from_iso(entry.captured_at))
    with contextlib.suppress(PhotoChanged, Rejection), open_photo(place(folder, photo.file)) as stream:
        return entry.session_key == session_of(tagged_blocks(stream, photo.size, tagged(planned)))[0]
    return False


def same_content(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    import filecmp

    with contextlib.suppress(OSError):
        return stat.S_ISREG(one.stat().st_mode) and filecmp.cmp(one, other, shallow=False)
    return False


def plan(verdicts: Iterable[Verdict], resume: Resume, report: Report) -> list[Part]:
    """Step 2: the sequences to publish; warnings of fast hops go to the report."""
    fresh = [verdict.photo for verdict in verdicts if verdict.photo and not verdict.published]
    parts = plan_sequences(fresh, resume.settled())
    for part in parts:
        report.planned |= {planned.photo.file: planned for planned in part.photos}
    for file, text in find_hops(parts).items():
        report.verdicts[file] = report.verdicts[file].warned(text)
    for verdict in report.verdicts.values():
        for problem in verdict.problems:
            report.console.error(f"{shown(verdict.file)}: {problem}")
        for text in verdict.warnings:
            report.console.warn(f"{shown(verdict.file)}: {text}")
    return parts


def write_output(folder: Path, output: Path, parts: Iterable[Part]) -> None:
    """Write the photos as they are sent. A file of other content that is already there is never overwritten."""
    for planned in (planned for part in parts for planned in part.photos):
        target = place(output, planned.photo.file)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_photo(place(folder, planned.photo.file)) as stream:
                check_unchanged(stream, planned.photo)
                write_new(target, tagged_blocks(stream, planned.photo.size, tagged(planned)))
        except OSError as error:
            hint = "Choose another --output"
            raise UsageError(f"{shown(target)} can't be written: {error.strerror}", hint) from error


def write_new(target: Path, blocks: Iterator[bytes]) -> None:
    """Write a file whole or not at all; raise UsageError where another one stands there."""
    temporary = target.with_name(f".{target.name[:200]}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.writelines(blocks)
        if os.path.lexists(target) and not same_content(temporary, target):
            raise UsageError(f"{shown(target)} exists with other content", "Choose an empty --output folder")
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def check_live(folder: Path, shell: Shell, report: Report) -> None:
    """--check: ask Mapillary which published photos are live, and note their ids."""
    with locked(folder):
        resume = load_resume(folder)
        if resume is None:
            hint = "Upload it first"
            raise UsageError(f"nothing was published from {shown(folder)}: it holds no {RESUME_NAME}", hint)
        report.resume, account = resume, shell.account()
        organization_id = account.organization_id or resume.organization_id  # the file knows it
        check_owner(resume, replace(account, organization_id=organization_id), shell.service.name)
        client = Client(shell.service, account.token, shell.line)
        try:
            settle_unconfirmed(client, resume)
            for uuid, record in list(resume.settled().items()):
                missing = [entry for entry in record.photos.values() if not entry.ids]
                if missing and record.state == "published":
                    images = find_images(client, resume.username, missing)
                    for text in note_live(resume, uuid, images, shell.clock.now()):
                        shell.console.warn(text)
            report.checked_at = shell.clock.now()
        finally:
            resume.save()  # what was found before a call failed stays found


def find_folders(options: Options) -> list[Path]:
    """The folders to work on: the one given or, with --recursive, each below it that holds photos or a resume file."""
    if not options.directory.is_dir():
        raise UsageError(f"no such folder: {shown(options.directory)}", "Give the folder of photos with -d")
    if not options.recursive:
        return [options.directory]
    folders = []
    for path, names, files in os.walk(options.directory):
        names[:] = sorted((n for n in names if n[0] not in ".@"), key=natural_order)  # @eaDir: NAS thumbnails
        photos = any(n.lower().endswith((".jpg", ".jpeg")) and not n.startswith(".") for n in files)
        if RESUME_NAME in files if options.check else photos:
            folders.append(Path(path))
    if not folders:
        hint = "Give the folder above them with -d"
        raise UsageError(f"no folder below {shown(options.directory)} holds photos", hint)
    return folders


def check_options(options: Options) -> None:
    """Raise UsageError where options are missing or don't go together."""
    if not options.username and not options.dry_run:
        raise UsageError("the account is missing", "Give it with -u NAME")
    if options.login:
        return
    if options.organization is not None and not re.fullmatch(r"[0-9]+", options.organization, re.ASCII):
        raise UsageError(f"the organization {shown(options.organization)} is no number", "Give its id, not its name")
    if options.output:
        here, there = options.directory.resolve(), options.output.resolve()
        if here == there or here in there.parents:
            raise UsageError("--output lies in the folder of photos", "Choose a folder elsewhere")


def program(options: Options, environment: Mapping[str, str], clock: Clock) -> Exit:
    """From the parsed command line to the exit code: the folders one after the other, and what is printed."""
    console = Console(options, clock)
    reports: list[Report] = []
    failure = Report(options.directory, options, console)  # of the whole run
    try:
        check_options(options)
        line = Line(options.retries, clock, console.detail)
        shell = Shell(options, environment, console, clock, service_from(environment), line)
        if options.login:
            log_in(shell)
        for folder in [] if options.login else find_folders(options):
            report = Report(folder, options, console)
            reports.append(report)
            if not work_on(folder, shell, report):
                break
    except Exception as error:  # the last resort: no traceback reaches a user
        failure.error(expected(error))
    code = worst([report.code() for report in [*reports, failure]])
    signal_again()
    if options.json:
        console.result(result_json(options, reports, failure, code))
    elif not options.quiet:
        for report in reports:
            console.result([report.summary()])
        if len(reports) > 1:
            needy = [report for report in reports if report.code()]
            console.result([f"{len(reports)} folders, {len(needy)} to look at or to go on with:"])
            for report in needy:
                console.result([f"  exit {int(report.code())}: {shown(report.folder)}"])
    return code


def work_on(folder: Path, shell: Shell, report: Report) -> bool:
    """One folder, as if given alone; whether the next one may follow."""
    options = shell.options
    shell.console.begin()
    shell.line = Line(options.retries, shell.clock, shell.console.detail)  # what ended a folder doesn't end the next
    try:
        (check_live if options.check else main)(folder, shell, report)
    except Exception as error:
        report.error(expected(error))
        return not isinstance(error, (Stopped, SignInError))
    return True


def expected(error: Exception) -> UploaderError:
    """The error as a user should see it."""
    if isinstance(error, UploaderError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return UsageError(f"the package {error.name} is not installed", "pip install -r requirements.txt")
    trace = traceback.extract_tb(error.__traceback__)
    place = f" at line {trace[-1].lineno}" if trace else ""
    what = f"unexpected {type(error).__name__}{place}: {shown(error)[:200]}"
    return UploaderError(what, "That is a bug: please report it")


def result_json(options: Options, reports: Sequence[Report], failure: Report, code: Exit) -> Iterator[str]:
    """The --json document of the run, in pieces: 20,000 photos as one text would need more memory than all else."""
    reports = reports or [failure]
    if not options.recursive:
        document = reports[0].document()
        document |= {"exit_code": int(code), "error": document["error"] or failure.document()["error"]}
        yield from document_json(document, reports[0].photos())
        return
    yield f'{{"exit_code": {int(code)}, "folders": ['
    for number, report in enumerate(reports):
        yield ", " if number else ""
        yield from document_json(report.document(), report.photos())
    yield "]}"


def document_json(document: Mapping[str, Any], photos: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A folder's document with its photos, in pieces."""
    yield json.dumps(document)[:-1] + ', "photos": ['
    for number, photo in enumerate(photos):
        yield (", " if number else "") + json.dumps(photo)
    yield "]}"


def catch_signals() -> None:
    """Make Ctrl-C and SIGTERM end the run in order; a second one ends it at once."""

    def stop(number: int, _: object) -> None:
        signal_again()
        raise Stopped(Exit.TERMINATED if number == signal.SIGTERM else Exit.INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def signal_again() -> None:
    """From now on signals end the process as usual."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: a web app has signals of its own
            signal.signal(number, signal.SIG_DFL)


def parse_offset(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """--utc-offset in minutes."""
    minutes = parse_zone(value) if value else None
    if value and minutes is None:
        raise click.BadParameter(f"{value!r} is no offset such as +02:00")
    return minutes


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("-d", "--directory", metavar="DIR", help="The folder of photos. Required, except with --login.")
@click.option(
    "-u", "--username", metavar="NAME", help="The Mapillary account to publish as. Required, except with --dry-run."
)
@click.option("-o", "--organization", metavar="ID", help="Publish for this organization (numeric id).")
@click.option("-r", "--recursive", is_flag=True, help="Every folder below that holds photos, one after the other.")
@click.option(
    "--dry-run", is_flag=True, help="Read, check, plan and describe; send nothing, need no account or network."
)
@click.option("--skip-invalid", is_flag=True, help="Upload the photos that pass although others fail.")
@click.option("--output", metavar="DIR", help="Also write the photos there exactly as they are (or would be) sent.")
@click.option("--check", is_flag=True, help="Ask Mapillary which published photos are live, and note their ids.")
@click.option("--republish", is_flag=True, help="Finish a publish whose outcome is not known.")
@click.option("--login", is_flag=True, help="Sign in, save the token as profile NAME, exit.")
@click.option(
    "--utc-offset",
    metavar="±HH:MM",
    callback=parse_offset,
    help="Zone of capture times that carry none (timecapture only).",
)
@click.option(
    "--min-age",
    metavar="SECONDS",
    type=click.FloatRange(0),
    help="Stop while a photo of the folder is younger: it is still being copied. [default: 0]",
)
@click.option(
    "--patience", metavar="MINUTES", type=click.FloatRange(0), help="How long to wait out an outage. [default: 10]"
)
@click.option(
    "--workers", metavar="N", type=click.IntRange(1, 32), help="Photos uploaded at once, 1 to 32. [default: 4]"
)
@click.option(
    "--retries",
    metavar="N",
    type=click.IntRange(0, 20),
    help="Retries of one photo or call after a failure, 0 to 20. [default: 3]",
)
@click.option("--json", "json", is_flag=True, help="One JSON document with the result on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Each request with status, time and the server's message.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def command(**given: Any) -> Exit:
    """Check, describe, upload and publish a folder of 360° photos tagged by Sequence Maker.

    Exit codes: 0 done, 1 not finished (run again), 2 usage, 3 photos rejected, 4 sign-in, 5 another run is at work,
    6 overdue (--check), 130 and 143 stopped.
    """
    given |= {name: Path(given[name]) if given[name] else None for name in ("directory", "output")}
    if not given["directory"] and not given["login"]:
        raise click.UsageError("the folder of photos is missing: give it with -d DIR")
    return program(Options(**{name: value for name, value in given.items() if value is not None}), os.environ, Clock())


def cli(arguments: Sequence[str] | None = None) -> int:
    """The command line as a process sees it: the exit code; usage errors too end in one JSON document with --json."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if stream and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        catch_signals()
        return int(command.main(arguments, prog_name="mapillary_uploader.py", standalone_mode=False) or 0)
    except click.ClickException as error:
        failure: UploaderError = UsageError(error.format_message().rstrip("."), "See --help")
    except Stopped as error:
        failure = error
    options = Options(json="--json" in arguments, recursive=not {"-r", "--recursive"}.isdisjoint(arguments))
    report = Report(Path(), options, Console(options, Clock()))
    report.error(failure)
    if options.json:
        report.console.result(result_json(options, [], report, failure.code))
    return int(failure.code)


if __name__ == "__main__":
    sys.exit(cli())
