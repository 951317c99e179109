"""The photo factory: every photo that the tests use is made here, byte by byte.

EXIF, XMP and JPEG segments are built and read back by this file's own code, so that every oddity can be made and so that
nothing here shares a mistake with the module under test. Pillow only draws and encodes the pixels, once for each size.

Everything is deterministic: the same call gives the same bytes (with the same Pillow).

A good photo is `photo_bytes()`, a folder of them `write_tour(folder, tour(12))`. Each layer can be had by itself:

    sequence_maker_json()  what Sequence Maker writes      json_bytes()  the same as text, as it stands in ImageDescription
    tiff()                 the TIFF block of EXIF          xmp()         the XMP packet
    jpeg()                 the file around them            segment()     one raw segment, for `jpeg(layout=…)`

and read back with `segments`, `description_of`, `slot_of` and `entries_of`.
"""

from __future__ import annotations

import inspect
import io
import json
import math
import random
import re
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from PIL import Image, ImageDraw

Json = dict[str, Any]
Changes = Mapping[str, object]
Order = Literal["<", ">"]
Size = tuple[int, int]
Extra = tuple[str, int, int, int, bytes]


class Removed:
    """The type of REMOVED."""


REMOVED: Final = Removed()
"""As a value in `changes`: delete that key. As a photo's JSON: no ImageDescription at all."""

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
TYPE_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
IMAGE_DESCRIPTION: Final = 0x010E
GPANO: Final = "http://ns.google.com/photos/1.0/panorama/"
XMP_HEADER: Final = b"http://ns.adobe.com/xap/1.0/\0"
EXIF_HEADER: Final = b"Exif\0\0"
NAMESPACE: Final = uuid.UUID("5d5b2b0c-2b8e-5c0e-9d0e-3f6c6d2f7a11")
EARTH_RADIUS_M: Final = 6_371_008.8


# ---------------------------------------------------------------------------------------------------------------------
# Positions on the globe
# ---------------------------------------------------------------------------------------------------------------------


def distance(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Great-circle distance in metres between two (latitude, longitude) in degrees."""
    lat1, lon1, lat2, lon2 = map(math.radians, (*start, *end))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(half))


def bearing(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Initial great-circle bearing in degrees, [0, 360), from one (latitude, longitude) to another."""
    lat1, lon1, lat2, lon2 = map(math.radians, (*start, *end))
    east = math.sin(lon2 - lon1) * math.cos(lat2)
    north = math.cos(lat1) * math.sin(lat2) - math.sin(lat1) * math.cos(lat2) * math.cos(lon2 - lon1)
    return math.degrees(math.atan2(east, north)) % 360


def destination(start: tuple[float, float], heading: float, metres: float) -> tuple[float, float]:
    """The (latitude, longitude) that lies so many metres from `start` in direction `heading` (degrees)."""
    lat, lon, course, angle = *map(math.radians, start), math.radians(heading), metres / EARTH_RADIUS_M
    lat2 = math.asin(math.sin(lat) * math.cos(angle) + math.cos(lat) * math.sin(angle) * math.cos(course))
    east = math.sin(course) * math.sin(angle) * math.cos(lat)
    lon2 = lon + math.atan2(east, math.cos(angle) - math.sin(lat) * math.sin(lat2))
    return math.degrees(lat2), (math.degrees(lon2) + 540) % 360 - 180


# ---------------------------------------------------------------------------------------------------------------------
# Sequence Maker's JSON
# ---------------------------------------------------------------------------------------------------------------------

_UPLOADER_PHOTO_KEYS = ("photo_from_video", "nadir_added", "blur_added", "gps_track_added", "gps_modified", "tags")
_UPLOADER_SEQUENCE_KEYS = ("sequence_name", "sequence_description", "transport_type")
_ZERO_CONNECTION = {"distance_mtrs": 0.0, "elevation_mtrs": 0.0, "heading_deg": 0.0, "adj_heading_deg": 0.0}
_ZERO_CONNECTION |= {"pitch_deg": 0.0, "time_sec": 0.0, "speed_kmh": 0}


def identifier(*parts: object) -> str:
    """A UUID made from the parts: the same parts give the same one."""
    return str(uuid.uuid5(NAMESPACE, "/".join(map(str, parts))))


def sequence_maker_json(changes: Changes | None = None) -> Json:
    """One photo's object as Sequence Maker writes it: all its keys, the misspelt ones too, in its order.

    `changes` sets values by dotted keys, {"photo.original_latitude": 51.5, "sequence.id": REMOVED}. The photo stands by
    itself (no connections); `connection` makes one.
    """
    record = {"photo": _photo_object(), "sequence": _sequence_object()}
    return changed(record, changes or {})


def _photo_object() -> Json:
    return {
        "id": identifier("photo"),
        "original_GPSDateTime": "2021:07:29 09:16:54Z",
        "original_originalDateTime": "2021:07:29 11:16:54",
        "cli_connection_method": "timegps",
        "cli_frame_rate_set": 1000000.0,
        "cli_altitude_min_set": 0.0,
        "cli_distance_min_set": 0.0,
        "original_filename": "/srv/pano/walk/GS0001.jpg",
        "original_altitude": 92.86,
        "original_latitude": 51.5294417,
        "original_longitude": -0.1538283,
        "orignal_gps_direction_ref": "T",
        "orignal_gps_speed": 5,
        "original_heading": 350,
        "original_pitch": "",
        "original_roll": "",
        "original_camera_make": "Sample",
        "original_camera_model": "Panorama 1",
        "original_projection": "equirectangular",
        "software_version": 1.0,
        **{f"uploader_{key}": None for key in _UPLOADER_PHOTO_KEYS},
        "connections": {},
    }


def _sequence_object() -> Json:
    return {
        "id": identifier("sequence"),
        "distance_km": 0.0,
        "earliest_time": "2021:07:29 09:16:54Z",
        "latest_time": "2021:07:29 09:16:54Z",
        "duration_sec": 0.0,
        "average_speed_kmh": 0.0,
        **{f"uploader_{key}": None for key in _UPLOADER_SEQUENCE_KEYS},
    }


def changed(record: Json, changes: Changes) -> Json:
    """A copy of a JSON object with values set (or, with REMOVED, deleted) by dotted keys; objects on the way are made."""
    if not changes:
        return record
    result: Json = json.loads(json.dumps(record))
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        place = result
        for key in path:
            place = place.setdefault(key, {})
        if isinstance(value, Removed):
            place.pop(last, None)
        else:
            place[last] = value
    return result


def connection(metres: float, heading: float, seconds: float = 2, elevation: float = 0.0) -> Json:
    """A connection to a neighbour, as Sequence Maker writes it; negative metres and seconds for the one before.

    Its arithmetic is kept: "pitch" is elevation over distance, so 0 metres give NaN or an infinity; 0 seconds, speed 0.
    """
    entry: Json = {"distance_mtrs": metres, "elevation_mtrs": elevation, "heading_deg": heading}
    entry["pitch_deg"] = _ratio(elevation, abs(metres))
    entry["time_sec"] = seconds
    entry["speed_kmh"] = metres / seconds * 3.6 if seconds else 0
    return entry


def _ratio(above: float, below: float) -> float:
    """above / below as numpy has it."""
    if below:
        return above / below
    return math.copysign(math.inf, above) if above else math.nan


def json_bytes(record: object) -> bytes:
    """The text of a JSON value as Sequence Maker writes it: ASCII, default separators, bare NaN and Infinity."""
    return json.dumps(record).encode("ascii")


# ---------------------------------------------------------------------------------------------------------------------
# EXIF: the TIFF block
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One IFD entry. `at` is for a value that doesn't follow its IFD: an offset, or the name of a place in the block."""

    tag: int
    kind: int
    count: int
    value: bytes
    at: int | str | None = None

    @property
    def stored(self) -> bytes:
        """What follows the IFD: the value, unless it fits the entry itself or stands elsewhere; of even length."""
        return b"" if self.at is not None or len(self.value) <= 4 else self.value + b"\0" * (len(self.value) % 2)


@dataclass(frozen=True)
class Facts:
    """What a photo's EXIF says; fields as the arguments of `tiff`."""

    latitude: float = 51.5294417
    longitude: float = -0.1538283
    altitude: float = 92.86
    heading: float | None = 350.0
    taken: str | None = "2021:07:29 11:16:54"
    gps_time: str | None = "2021:07:29 09:16:54Z"


@dataclass(frozen=True)
class Entries:
    """Makes IFD entries in one byte order."""

    order: Order

    def text(self, tag: int, value: str | bytes) -> Entry:
        """An ASCII entry with its NUL."""
        raw = (value.encode() if isinstance(value, str) else value) + b"\0"
        return Entry(tag, ASCII, len(raw), raw)

    def raw(self, tag: int, value: bytes, kind: int = UNDEFINED) -> Entry:
        """Bytes as they are."""
        return Entry(tag, kind, len(value), value)

    def short(self, tag: int, value: int) -> Entry:
        """One unsigned 16-bit number."""
        return Entry(tag, SHORT, 1, struct.pack(self.order + "H", value))

    def long(self, tag: int, value: int) -> Entry:
        """One unsigned 32-bit number."""
        return Entry(tag, LONG, 1, struct.pack(self.order + "I", value))

    def rational(self, tag: int, *values: float, scale: int = 1) -> Entry:
        """Fractions, each value as round(value × scale) / scale."""
        numbers = [number for value in values for number in (round(value * scale), scale)]
        return Entry(tag, RATIONAL, len(values), struct.pack(f"{self.order}{len(numbers)}I", *numbers))

    def degrees(self, tag: int, value: float) -> Entry:
        """Degrees, minutes and seconds to a 10,000th of a second."""
        ticks = round(abs(value) * 36_000_000)
        numbers = (ticks // 36_000_000, 1, ticks // 600_000 % 60, 1, ticks % 600_000, 10_000)
        return Entry(tag, RATIONAL, 3, struct.pack(self.order + "6I", *numbers))


def tiff(
    description: bytes | None = None,
    *,
    order: Order = ">",
    orientation: int | None = 1,
    offset_time_original: str | bytes | None = None,
    sub_sec_time_original: str | bytes | None = None,
    make: str | bytes | None = "Sample",
    model: str | bytes | None = "Panorama 1",
    facts: Facts = Facts(),
    gps: bool = True,
    exif_ifd: bool = True,
    size: Size = (64, 32),
    thumbnail: bytes | None = None,
    maker_note: bytes | None = None,
    xp_title: bytes | None = None,
    extra: Sequence[Extra] = (),
    description_at: Literal["first", "last"] = "first",
    description_type: int = ASCII,
    description_count: int | None = None,
    description_offset: int | None = None,
    no_terminator: bool = False,
    byte_order_mark: bytes | None = None,
    magic: int = 42,
) -> bytes:
    """The TIFF block of an EXIF segment, without `Exif\\0\\0`.

    description is the value of ImageDescription (a NUL is added unless no_terminator); None leaves the tag out.
    description_at "first" puts it first of all values, as ExifTool does, "last" at the very end of the block.
    description_type, _count and _offset write an entry that says something else than is there.
    extra is (ifd, tag, type, count, value): ifd "0th", "exif", "gps" or "1st", value as raw bytes in the block's order; it
    replaces the factory's own entry of that tag. byte_order_mark and magic spoil the header.
    """
    make_entries = Entries(order)
    ifds = {"0th": _main_entries(make_entries, make, model, orientation, facts, xp_title)}
    if exif_ifd:
        ifds["exif"] = _exif_entries(make_entries, facts, size, offset_time_original, sub_sec_time_original, maker_note)
        ifds["0th"].append(Entry(0x8769, LONG, 1, b"", at="exif"))
    if gps:
        ifds["gps"] = _gps_entries(make_entries, facts)
        ifds["0th"].append(Entry(0x8825, LONG, 1, b"", at="gps"))
    if thumbnail is not None:
        ifds["1st"] = _thumbnail_entries(make_entries, thumbnail)
    value = b"" if description is None else description + (b"" if no_terminator else b"\0")
    if description is not None:
        count = len(value) // TYPE_SIZES.get(description_type, 1) if description_count is None else description_count
        last = "tail" if description_at == "last" and len(value) > 4 else None
        place = last if description_offset is None else description_offset
        ifds["0th"].insert(0, Entry(IMAGE_DESCRIPTION, description_type, count, value, place))
    for name, tag, kind, count, raw in extra:
        _put(ifds.setdefault(name, []), Entry(tag, kind, count, raw))
    header = (byte_order_mark or {"<": b"II", ">": b"MM"}[order]) + struct.pack(order + "HI", magic, 8)
    tail = value if description_at == "last" and len(value) > 4 else b""
    return header + _assembled(ifds, order, thumbnail or b"", tail)


def _put(entries: list[Entry], entry: Entry) -> None:
    """Add an entry in place of any of the same tag."""
    entries[:] = [other for other in entries if other.tag != entry.tag] + [entry]


def _main_entries(
    make_entries: Entries,
    make: str | bytes | None,
    model: str | bytes | None,
    orientation: int | None,
    facts: Facts,
    xp_title: bytes | None,
) -> list[Entry]:
    e = make_entries
    entries = [e.rational(0x011A, 72), e.rational(0x011B, 72), e.short(0x0128, 2), e.text(0x0131, "factory 1.0")]
    entries += [e.text(tag, text) for tag, text in ((0x010F, make), (0x0110, model)) if text is not None]
    entries += [] if orientation is None else [e.short(0x0112, orientation)]
    entries += [] if facts.taken is None else [e.text(0x0132, facts.taken)]
    entries += [] if xp_title is None else [e.raw(0x9C9B, xp_title, BYTE)]
    return [*entries, e.short(0x0213, 1)]


def _exif_entries(
    make_entries: Entries,
    facts: Facts,
    size: Size,
    offset_time: str | bytes | None,
    sub_sec: str | bytes | None,
    maker_note: bytes | None,
) -> list[Entry]:
    e = make_entries
    entries = [e.raw(0x9000, b"0231"), e.raw(0x9101, b"\1\2\3\0"), e.raw(0xA000, b"0100"), e.short(0xA001, 1)]
    entries += [e.long(0xA002, size[0]), e.long(0xA003, size[1]), e.rational(0x829D, 2.8, scale=10)]
    texts = ((0x9003, facts.taken), (0x9004, facts.taken), (0x9011, offset_time), (0x9291, sub_sec))
    entries += [e.text(tag, text) for tag, text in texts if text is not None]
    return entries + ([] if maker_note is None else [e.raw(0x927C, maker_note)])


def _gps_entries(make_entries: Entries, facts: Facts) -> list[Entry]:
    e = make_entries
    entries = [e.raw(0, b"\2\3\0\0", BYTE), e.raw(5, bytes([facts.altitude < 0]), BYTE)]
    entries += [e.text(1, "S" if facts.latitude < 0 else "N"), e.degrees(2, facts.latitude)]
    entries += [e.text(3, "W" if facts.longitude < 0 else "E"), e.degrees(4, facts.longitude)]
    entries += [e.rational(6, abs(facts.altitude), scale=1000)]
    if facts.gps_time is not None:
        numbers = [float(number) for number in re.split("[: ]", facts.gps_time.rstrip("Z"))[3:]]
        entries += [e.rational(7, *numbers, scale=1000), e.text(0x1D, facts.gps_time[:10])]
    if facts.heading is not None:
        entries += [e.text(0x10, "T"), e.rational(0x11, facts.heading % 360, scale=1000)]
    return entries


def _thumbnail_entries(make_entries: Entries, thumbnail: bytes) -> list[Entry]:
    e = make_entries
    entries = [e.short(0x0103, 6), e.rational(0x011A, 72), e.rational(0x011B, 72), e.short(0x0128, 2)]
    return [*entries, Entry(0x0201, LONG, 1, b"", at="thumbnail"), e.long(0x0202, len(thumbnail))]


def _assembled(ifds: Mapping[str, list[Entry]], order: Order, thumbnail: bytes, tail: bytes) -> bytes:
    """The IFDs one after the other from offset 8, each followed by its values; then the thumbnail; then the tail."""
    places, end = {}, 8
    for name, entries in ifds.items():
        places[name] = end
        end += 2 + 12 * len(entries) + 4 + sum(len(entry.stored) for entry in entries)
    places |= {"thumbnail": end, "tail": end + len(thumbnail)}
    following = {"0th": places.get("1st", 0)}
    blocks = [_ifd(ifds[name], places[name], order, places, following.get(name, 0)) for name in ifds]
    return b"".join(blocks) + thumbnail + tail


def _ifd(entries: list[Entry], start: int, order: Order, places: Mapping[str, int], following: int) -> bytes:
    """One IFD as it stands at offset `start`: the table sorted by tag, the values in the order given."""
    rows: list[tuple[int, bytes]] = []
    place = start + 2 + 12 * len(entries) + 4
    for entry in entries:
        if entry.at is not None:
            field = struct.pack(order + "I", places[entry.at] if isinstance(entry.at, str) else entry.at)
        elif entry.stored:
            field = struct.pack(order + "I", place)
        else:
            field = entry.value.ljust(4, b"\0")
        place += len(entry.stored)
        rows.append((entry.tag, struct.pack(order + "HHI", entry.tag, entry.kind, entry.count) + field))
    table = b"".join(row for _, row in sorted(rows))
    values = b"".join(entry.stored for entry in entries)
    return struct.pack(order + "H", len(entries)) + table + struct.pack(order + "I", following) + values


# ---------------------------------------------------------------------------------------------------------------------
# XMP
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def xmp(
    projection: str | None = "equirectangular",
    form: Literal["attribute", "element"] = "element",
    cropped: tuple[int, int, int, int] | None = None,
    *,
    size: Size = (64, 32),
    heading: float | None = None,
    prefix: str = "GPano",
    namespace: str = GPANO,
    doctype: str = "",
    extra: str = "",
    padding: int = 0,
    encoding: str = "utf-8",
) -> bytes:
    """An XMP packet with Google's panorama properties, without the segment's header.

    projection None leaves the property out (so does None for anything that is left out here); cropped is (left, top,
    width, height) of the part that `size` shows of a sphere twice as wide and high; extra is XML put beside the panorama's
    description, doctype goes before the root, padding is how many spaces end the packet.
    """
    properties = _gpano_properties(projection, cropped, size, heading)
    description = _xmp_description(properties, form, prefix, namespace)
    text = (
        f"<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\n{doctype}<x:xmpmeta xmlns:x='adobe:ns:meta/'>\n"
        f"<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\n{description}{extra}</rdf:RDF>\n"
        f"</x:xmpmeta>\n{' ' * padding}<?xpacket end='w'?>"
    )
    return text.encode(encoding)


def _gpano_properties(
    projection: str | None, cropped: tuple[int, int, int, int] | None, size: Size, heading: float | None
) -> dict[str, str]:
    left, top, width, height = cropped or (0, 0, *size)
    full = (size[0] * 2, size[1] * 2) if cropped else size
    numbers = {"CroppedAreaLeftPixels": left, "CroppedAreaTopPixels": top, "FullPanoWidthPixels": full[0]}
    numbers |= {"CroppedAreaImageWidthPixels": width, "CroppedAreaImageHeightPixels": height}
    numbers |= {"FullPanoHeightPixels": full[1]}
    properties = {} if projection is None else {"ProjectionType": projection, "UsePanoramaViewer": "True"}
    properties |= {} if heading is None else {"PoseHeadingDegrees": f"{heading:.3f}"}
    return properties | {name: str(number) for name, number in numbers.items()}


def _xmp_description(properties: Mapping[str, str], form: str, prefix: str, namespace: str) -> str:
    start = f"<rdf:Description rdf:about='' xmlns:{prefix}='{namespace}'"
    if form == "attribute":
        return start + "".join(f"\n {prefix}:{name}='{value}'" for name, value in properties.items()) + "/>\n"
    inner = "".join(f" <{prefix}:{name}>{value}</{prefix}:{name}>\n" for name, value in properties.items())
    return f"{start}>\n{inner}</rdf:Description>\n"


# ---------------------------------------------------------------------------------------------------------------------
# JPEG
# ---------------------------------------------------------------------------------------------------------------------

COMMENT: Final = b"a comment with \xff\xe1\x00\x10Exif\0\0, \xff\xda and \xff\xd9 in it"
JFIF: Final = b"JFIF\0\1\1\0\0\1\0\1\0\0"
Kind = Literal["baseline", "progressive", "cmyk", "gray"]
_MODES: Final = {"cmyk": "CMYK", "gray": "L"}
_MPF_SIZE: Final = 90
_MPF_BLANK: Final = b"\xff\xe2" + struct.pack(">H", _MPF_SIZE - 2) + b"MPF\0" + b"?" * (_MPF_SIZE - 8)


def segment(marker: int, payload: bytes, length: int | None = None) -> bytes:
    """One marker segment, `segment(0xE1, b"…")`; length writes a length that isn't the true one."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2 if length is None else length) + payload


def exif_segments(block: bytes) -> bytes:
    """A TIFF block as EXIF segments: one, or, where it is longer than one can be, several that continue each other."""
    step = 0xFFFF - 2 - len(EXIF_HEADER)
    pieces = [block[start : start + step] for start in range(0, len(block), step)] or [b""]
    return b"".join(segment(0xE1, EXIF_HEADER + piece) for piece in pieces)


def jpeg(
    *,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    exif2: bytes | None = None,
    layout: Sequence[str | bytes] = ("exif", "xmp"),
    size: Size = (64, 32),
    sof_size: Size | None = None,
    kind: Kind = "baseline",
    image: bytes | None = None,
    comment: bytes = COMMENT,
    fill: int = 3,
    filler: int = 0,
    seed: str = "",
    eoi: bool = True,
    second_image: bytes | None = None,
    trailer: bytes = b"",
    pad_to: int | None = None,
) -> bytes:
    """A JPEG file.

    layout is the order of the head's segments: "jfif", "exif", "xmp", "exif2" (a second EXIF segment), "comment", "fill"
    (FF fill bytes before the next marker), "mpf" (an index of two images; second_image then follows the first, as in a
    GoPro MAX photo), "frame" (tables and frame header, at the end unless named), or raw bytes such as `segment(…)`. What is
    None is left out. size is drawn, sof_size only claimed; image is a JPEG whose frame and scans are taken instead.
    filler adds so many random bytes (never FF, from `seed`) between the last pixel and the end-of-image marker: a file as
    big as wanted, that can't be compressed and still decodes (readers skip stray bytes there). eoi False leaves the marker
    out. Then come the trailer and zeros up to pad_to bytes.
    """
    frame, scans = _frame_and_scans(image or encoded(size, kind))
    parts = {
        "jfif": segment(0xE0, JFIF),
        "exif": b"" if exif is None else exif_segments(exif),
        "exif2": b"" if exif2 is None else exif_segments(exif2),
        "xmp": b"" if xmp is None else segment(0xE1, XMP_HEADER + xmp),
        "comment": segment(0xFE, comment),
        "fill": b"\xff" * fill,
        "mpf": _MPF_BLANK,
        "frame": frame if sof_size is None else _claiming(frame, sof_size),
    }
    order = layout if "frame" in layout else (*layout, "frame")
    head = b"".join(item if isinstance(item, bytes) else parts[item] for item in order)
    data = b"".join((b"\xff\xd8", head, scans, noise(filler, seed), b"\xff\xd9" if eoi else b""))
    if "mpf" in layout:
        data = _with_second_image(data, second_image or encoded((32, 16)))
    return (data + trailer).ljust(pad_to or 0, b"\0")


def noise(size: int, seed: str = "") -> bytes:
    """So many random bytes, none of them FF, the same for the same seed."""
    source, block = random.Random(seed), 1 << 20
    blocks = (source.randbytes(min(block, size - start)) for start in range(0, size, block))
    return b"".join(blocks).replace(b"\xff", b"\x5a")


@lru_cache(maxsize=64)
def encoded(size: Size = (64, 32), kind: Kind = "baseline") -> bytes:
    """A drawn picture of that size as Pillow writes it (good as a thumbnail, too)."""
    picture = Image.new("RGB", size, (120, 170, 220))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, size[1] // 2, size[0], size[1]), fill=(90, 130, 70))
    draw.ellipse((size[0] // 8, size[1] // 8, size[0] // 4, size[1] * 3 // 8), fill=(250, 230, 120))
    file = io.BytesIO()
    mode = _MODES.get(kind, "RGB")
    picture.convert(mode).save(file, "JPEG", quality=60, optimize=True, progressive=kind == "progressive")
    return file.getvalue()


@lru_cache(maxsize=64)
def _frame_and_scans(image: bytes) -> tuple[bytes, bytes]:
    """A JPEG's tables and frame header (JFIF, EXIF, XMP and comments dropped); and its scans, without the end marker."""
    found = segments(image)
    first_scan = next(part for part in found if part.marker == 0xDA)
    end = next(part.offset for part in found if part.marker == 0xD9)
    kept = [part for part in found if part.offset < first_scan.offset and part.marker not in (0xD8, 0xE0, 0xE1, 0xFE)]
    return b"".join(segment(part.marker, part.payload) for part in kept), image[first_scan.offset : end]


def _is_frame_header(marker: int) -> bool:
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def _claiming(frame: bytes, size: Size) -> bytes:
    """The same tables with other dimensions in the frame header."""
    found = segments(b"\xff\xd8" + frame)
    offset = next(part.offset for part in found if _is_frame_header(part.marker)) - 2
    return frame[: offset + 5] + struct.pack(">HH", size[1], size[0]) + frame[offset + 9 :]


def _with_second_image(data: bytes, second: bytes) -> bytes:
    """Write the MPF index over its blank and append the second image. Offsets count from the index' byte order mark."""
    place = data.index(_MPF_BLANK)
    pictures = struct.pack(">IIIHH", 0x20030000, len(data), 0, 0, 0)
    pictures += struct.pack(">IIIHH", 0x00010001, len(second), len(data) - (place + 8), 0, 0)
    table = struct.pack(">HHI4s", 0xB000, UNDEFINED, 4, b"0100") + struct.pack(">HHII", 0xB001, LONG, 1, 2)
    table += struct.pack(">HHII", 0xB002, UNDEFINED, len(pictures), 50)
    index = b"MM" + struct.pack(">HIH", 42, 8, 3) + table + struct.pack(">I", 0) + pictures
    filled = segment(0xE2, b"MPF\0" + index)
    assert len(filled) == _MPF_SIZE
    return data[:place] + filled + data[place + _MPF_SIZE :] + second


# ---------------------------------------------------------------------------------------------------------------------
# Photos and tours
# ---------------------------------------------------------------------------------------------------------------------


def photo_bytes(record: object = None, **options: Any) -> bytes:
    """A photo in one call: a good one unless the options say otherwise.

    record is Sequence Maker's object (`sequence_maker_json()` if None), or text or bytes that stand in its place, or REMOVED
    for no ImageDescription. EXIF's position, times, make and model follow the object. options are those of `tiff`, `xmp` (as
    projection, form, cropped, prefix, namespace, doctype, padding, xmp_extra) and `jpeg`; exif=None or xmp=None leaves
    the whole segment out, exif=b"…" or xmp=b"…" puts other bytes there.
    """
    if record is None:
        record = sequence_maker_json()
    settings: dict[str, Any] = {"size": (64, 32), **_from_record(record), **options}
    settings.setdefault("description", _description_text(record))
    exif = settings.pop("exif") if "exif" in settings else tiff(**_chosen(settings, _TIFF_OPTIONS))
    if "xmp" not in settings:
        wanted = _chosen(settings, _XMP_OPTIONS)
        settings["xmp"] = xmp(**wanted, extra=settings.get("xmp_extra", ""))
    unknown = settings.keys() - _TIFF_OPTIONS - _XMP_OPTIONS - _JPEG_OPTIONS - {"xmp_extra"}
    if unknown:
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    return jpeg(exif=exif, **_chosen(settings, _JPEG_OPTIONS))


def _option_names(function: Callable[..., object], *but: str) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters) - frozenset(but)


_TIFF_OPTIONS: Final = _option_names(tiff)
_XMP_OPTIONS: Final = _option_names(xmp, "extra", "heading")
_JPEG_OPTIONS: Final = _option_names(jpeg, "exif")


def _chosen(settings: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in names}


def _description_text(record: object) -> bytes | None:
    if isinstance(record, Removed):
        return None
    if isinstance(record, bytes):
        return record
    return record.encode("utf-8", "surrogatepass") if isinstance(record, str) else json_bytes(record)


def _from_record(record: object) -> dict[str, Any]:
    """The options for EXIF that follow from a photo's JSON, as far as it makes sense."""
    photo = record.get("photo") if isinstance(record, dict) else None
    if not isinstance(photo, dict):
        return {}
    options: dict[str, Any] = {"facts": _facts(photo), "seed": str(photo.get("id"))}
    make, model = photo.get("original_camera_make"), photo.get("original_camera_model")
    options |= {"make": make} if isinstance(make, str) and make.isprintable() else {}
    return options | ({"model": model} if isinstance(model, str) and model.isprintable() else {})


def _facts(photo: Json) -> Facts:
    facts = Facts()
    latitude = _number(photo.get("original_latitude"), -90, 90, facts.latitude)
    longitude = _number(photo.get("original_longitude"), -180, 180, facts.longitude)
    altitude = _number(photo.get("original_altitude"), -12_000, 100_000, facts.altitude)
    heading = _number(photo.get("original_heading"), -1000, 1000, math.nan)
    taken, gps_time = photo.get("original_originalDateTime"), photo.get("original_GPSDateTime")
    return Facts(
        latitude=latitude,
        longitude=longitude,
        altitude=altitude,
        heading=None if math.isnan(heading) else heading,
        taken=taken[:19] if isinstance(taken, str) and _TIME.match(taken) else None,
        gps_time=gps_time if isinstance(gps_time, str) and _TIME.fullmatch(gps_time) else None,
    )


_TIME: Final = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d(\.\d+)?Z?")


def _number(value: object, low: float, high: float, otherwise: float) -> float:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    return float(value) if usable and isinstance(value, (int, float)) else otherwise


@dataclass(frozen=True)
class Stop:
    """Where and when one photo of a tour was taken; heading None as by a camera without compass."""

    latitude: float
    longitude: float
    altitude: float
    time: datetime
    heading: float | None

    @property
    def position(self) -> tuple[float, float]:
        """(latitude, longitude)"""
        return self.latitude, self.longitude


Method = Literal["timegps", "timecapture", "filename"]


def tour(
    count: int,
    *,
    sequence_id: str | None = None,
    start: str = "2021:07:29 09:16:54Z",
    step_s: float = 2,
    method: Method = "timegps",
    latitude: float = 51.5294417,
    longitude: float = -0.1538283,
    altitude: float = 40.0,
    climb: float = 0.5,
    course: float = 75.0,
    turn: float = 3.0,
    spacing: float = 5.0,
    headings: bool = True,
    names: str | Sequence[str] = "GS{:04d}_calculated.jpg",
    first: int = 1,
    quirks: bool = False,
    every: Changes | None = None,
    changes: Mapping[int, Changes] | None = None,
    **options: Any,
) -> dict[str, bytes]:
    """The photos of a tour as Sequence Maker leaves them, by name.

    The walk begins at latitude, longitude in direction `course` and turns by `turn` degrees a photo; `spacing` metres,
    `step_s` seconds and `climb` metres from photo to photo. start is by the clock that the method uses. names is a format of
    the number (from `first`) or a list. headings False: a camera without compass. quirks adds the bogus "null" connections
    that some pandas versions cause. `every` changes each photo's JSON, `changes` those of one index, both as in
    `sequence_maker_json`. options go to `photo_bytes`: size, filler, order, thumbnail and so on.
    A longer tour from the same arguments has the same photo ids in the same sequence, then more.
    """
    stops = _walk(count, start, step_s, (latitude, longitude), altitude, climb, course, turn, spacing, headings)
    filenames = [names.format(first + n) for n in range(count)] if isinstance(names, str) else list(names[:count])
    key = sequence_id or identifier("tour", start, method, latitude, longitude, names)
    records = tour_json(stops, filenames, sequence_id=key, method=method, quirks=quirks)
    photos = {}
    for index, (name, record) in enumerate(zip(filenames, records, strict=True)):
        edits = {**(every or {}), **(changes or {}).get(index, {})}
        photos[name] = photo_bytes(changed(record, edits), **options)
    return photos


def _walk(
    count: int,
    start: str,
    step_s: float,
    position: tuple[float, float],
    altitude: float,
    climb: float,
    course: float,
    turn: float,
    spacing: float,
    headings: bool,
) -> list[Stop]:
    time = parse_time(start)
    stops: list[Stop] = []
    for index in range(count):
        course_here = (course + turn * index) % 360
        moment = time + timedelta(seconds=step_s * index)
        heading = round(course_here, 2) if headings else None
        stops.append(Stop(*position, round(altitude + climb * index, 3), moment, heading))
        if spacing:
            latitude, longitude = destination(position, course_here, spacing)
            position = round(latitude, 10), round(longitude, 10)
    return stops


def tour_json(
    stops: Sequence[Stop],
    filenames: Sequence[str],
    *,
    sequence_id: str,
    method: Method = "timegps",
    quirks: bool = False,
    folder: str = "/srv/pano/walk",
    camera_clock_h: int = 2,
) -> list[Json]:
    """What Sequence Maker writes into the photos of a tour, in order; camera_clock_h is the camera's zone (timegps)."""
    ids = [identifier(sequence_id, index) for index in range(len(stops))]
    legs = [_leg(here, there) for here, there in pairwise(stops)]
    sequence = {**_sequence_object(), "id": sequence_id, **_sequence_figures(stops, legs)}
    records = []
    for index, stop in enumerate(stops):
        photo = {**_photo_object(), "id": ids[index], **_photo_figures(stop, method, camera_clock_h)}
        photo["original_filename"] = f"{folder}/{filenames[index].replace('_calculated', '')}"
        photo["connections"] = _connections(index, ids, legs, quirks)
        records.append({"photo": photo, "sequence": sequence})
    return records


def _leg(here: Stop, there: Stop) -> Json:
    metres = distance(here.position, there.position)
    heading = bearing(here.position, there.position) if metres else 0.0
    seconds = (there.time - here.time).total_seconds()
    whole = int(seconds) if seconds.is_integer() else seconds
    return connection(metres, heading, whole, there.altitude - here.altitude)


def _connections(index: int, ids: Sequence[str], legs: Sequence[Json], quirks: bool) -> Json:
    """The next photo's connection first, then the one before's, without a word of which is which; and the bogus ones."""
    found: Json = {}
    onward = legs[index] if index < len(legs) else None
    if onward is not None:
        found[ids[index + 1]] = onward
    elif quirks and legs:
        found["null"] = {**legs[-1], "pitch_deg": math.nan}
    if index > 0:
        found[ids[index - 1]] = _backward(legs[index - 1], onward or legs[-1])
    elif quirks:
        found["null"] = {**_ZERO_CONNECTION, "adj_heading_deg": onward["heading_deg"] if onward else 0.0}
    return found


def _backward(leg: Json, onward: Json) -> Json:
    """The connection to the photo before, seen from the next one."""
    heading = (leg["heading_deg"] + 180) % 360
    return {
        "distance_mtrs": -leg["distance_mtrs"],
        "elevation_mtrs": -leg["elevation_mtrs"],
        "heading_deg": heading,
        "adj_heading_deg": abs(onward["heading_deg"] - heading),
        "pitch_deg": -leg["pitch_deg"],
        "time_sec": -float(leg["time_sec"]),
        "speed_kmh": leg["speed_kmh"],
    }


def _photo_figures(stop: Stop, method: Method, camera_clock_h: int) -> Json:
    """The two clocks (the one that the method doesn't use is some hours off), position and heading of a stop."""
    captured = stop.time + timedelta(hours=camera_clock_h) if method != "timecapture" else stop.time
    gps = stop.time - timedelta(hours=1, seconds=28) if method == "timecapture" else stop.time
    no_compass = stop.heading is None
    return {
        "original_GPSDateTime": format_time(gps) + "Z",
        "original_originalDateTime": format_time(captured),
        "cli_connection_method": method,
        "original_altitude": stop.altitude,
        "original_latitude": stop.latitude,
        "original_longitude": stop.longitude,
        "orignal_gps_direction_ref": "" if no_compass else "T",
        "orignal_gps_speed": "" if no_compass else 5,
        "original_heading": stop.heading or "",  # a true 0 becomes "", as by Sequence Maker
    }


def _sequence_figures(stops: Sequence[Stop], legs: Sequence[Json]) -> Json:
    seconds = (stops[-1].time - stops[0].time).total_seconds() if stops else 0.0
    metres = sum(leg["distance_mtrs"] for leg in legs)
    return {
        "distance_km": metres / 1000,
        "earliest_time": format_time(stops[0].time) + "Z" if stops else "",
        "latest_time": format_time(stops[-1].time) + "Z" if stops else "",
        "duration_sec": seconds,
        "average_speed_kmh": metres / seconds * 3.6 if seconds else 0,
    }


def parse_time(text: str) -> datetime:
    """A time as Sequence Maker writes it, `2021:07:29 09:16:54Z` (Z or none, fraction or none), as a naive datetime."""
    plain = text.rstrip("Z")
    return datetime.strptime(plain, "%Y:%m:%d %H:%M:%S.%f" if "." in plain else "%Y:%m:%d %H:%M:%S")


def format_time(time: datetime) -> str:
    """The time as Sequence Maker writes it, without zone; milliseconds only where there are any."""
    text = f"{time.year:04d}:{time.month:02d}:{time.day:02d} {time.hour:02d}:{time.minute:02d}:{time.second:02d}"
    return text + (f".{time.microsecond // 1000:03d}" if time.microsecond else "")


def write_tour(folder: Path, photos: Mapping[str, bytes]) -> Path:
    """Write the photos into the folder, which is made; names may hold subfolders. Gives the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in photos.items():
        path = folder / name
        if "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Reading back
# ---------------------------------------------------------------------------------------------------------------------

_AFTER_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


class Segment(NamedTuple):
    """One segment: offset is its FF's place in the file (of several, the last), payload what follows its length."""

    marker: int
    offset: int
    payload: bytes


class Slot(NamedTuple):
    """Where a tag's 12-byte entry and its value stand in the file; value_size in bytes."""

    entry_offset: int
    value_offset: int
    value_size: int


@dataclass(frozen=True)
class Tag:
    """One tag as it is in the file."""

    kind: int
    count: int
    value: bytes


def segments(data: bytes) -> list[Segment]:
    """The segments of the first image, SOI to EOI (or as far as there is something); the scans' data are left out."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    found, place = [Segment(0xD8, 0, b"")], 2
    while place < len(data):
        marker, place = _marker_at(data, place)
        if marker == 0xD9:
            return [*found, Segment(marker, place, b"")]
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if length < 2 or place + 2 + length > len(data):
            raise ValueError(f"segment {marker:02X} at {place} is {length} long")
        found.append(Segment(marker, place, data[place + 4 : place + 2 + length]))
        place += 2 + length
        if marker == 0xDA:
            after = _AFTER_SCAN.search(data, place)
            place = after.start() if after else len(data)
    return found


def _marker_at(data: bytes, place: int) -> tuple[int, int]:
    """The marker there and the place of its FF, fill bytes passed over."""
    if data[place] != 0xFF:
        raise ValueError(f"no marker at {place}")
    while data[place + 1] == 0xFF:
        place += 1
    return data[place + 1], place


def _exif_block(data: bytes) -> tuple[bytes, int]:
    """The first EXIF segment's TIFF block and its place in the file."""
    for part in segments(data):
        if part.marker == 0xE1 and part.payload.startswith(EXIF_HEADER):
            return part.payload[len(EXIF_HEADER) :], part.offset + 4 + len(EXIF_HEADER)
    raise ValueError("no EXIF")


def _order_of(block: bytes) -> str:
    return {b"II": "<", b"MM": ">"}[block[:2]]


def _table(block: bytes, start: int) -> tuple[dict[int, Slot], int]:
    """An IFD's slots by tag (offsets in the block), and the offset of the next IFD."""
    order = _order_of(block)
    (count,) = struct.unpack_from(order + "H", block, start)
    slots = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, offset = struct.unpack_from(order + "HHII", block, entry)
        size = TYPE_SIZES.get(kind, 1) * number
        slots[tag] = Slot(entry, offset if size > 4 else entry + 8, size)
    return slots, struct.unpack_from(order + "I", block, start + 2 + 12 * count)[0]


def slot_of(data: bytes, tag: int = IMAGE_DESCRIPTION) -> Slot:
    """Where a tag of IFD0 (ImageDescription) stands in the file. KeyError if there is none."""
    block, base = _exif_block(data)
    slots, _ = _table(block, struct.unpack_from(_order_of(block) + "I", block, 4)[0])
    slot = slots[tag]
    return Slot(slot.entry_offset + base, slot.value_offset + base, slot.value_size)


def description_text(data: bytes) -> bytes:
    """ImageDescription's value, all of it, NULs too."""
    slot = slot_of(data)
    return data[slot.value_offset : slot.value_offset + slot.value_size]


def description_of(data: bytes) -> Json:
    """The JSON object in ImageDescription."""
    record: Json = json.loads(description_text(data).rstrip(b"\0 ").decode("utf-8-sig"))
    return record


def entries_of(data: bytes) -> dict[tuple[str, int], Tag]:
    """Every tag of EXIF by (ifd, number), ifd "0th", "exif", "gps", "interop", "1st"; and the thumbnail's bytes.

    To see that a change touched one tag only. The thumbnail stands as ("thumbnail", 0).
    """
    block, _ = _exif_block(data)
    start = struct.unpack_from(_order_of(block) + "I", block, 4)[0]
    tags = _tags(block, "0th", start, {0x8769: "exif", 0x8825: "gps"})
    _, following = _table(block, start)
    tags |= _tags(block, "1st", following, {}) if following else {}
    place, size = tags.get(("1st", 0x0201)), tags.get(("1st", 0x0202))
    if place and size:
        offset, length = (int.from_bytes(tag.value, _ENDIAN[_order_of(block)]) for tag in (place, size))
        tags["thumbnail", 0] = Tag(UNDEFINED, length, block[offset : offset + length])
    return tags


_ENDIAN: Final[dict[str, Literal["little", "big"]]] = {"<": "little", ">": "big"}


def _tags(block: bytes, name: str, start: int, below: Mapping[int, str]) -> dict[tuple[str, int], Tag]:
    order = _order_of(block)
    tags: dict[tuple[str, int], Tag] = {}
    for number, slot in _table(block, start)[0].items():
        kind, count = struct.unpack_from(order + "HI", block, slot.entry_offset + 2)
        value = block[slot.value_offset : slot.value_offset + slot.value_size]
        tags[name, number] = Tag(kind, count, value)
        if number in below:
            inner = {0xA005: "interop"} if below[number] == "exif" else {}
            tags |= _tags(block, below[number], int.from_bytes(value, _ENDIAN[order]), inner)
    return tags
