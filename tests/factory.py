"""The photo factory: every photo that the tests use is made here, byte by byte.

EXIF, XMP and JPEG segments are built and read back by this file's own code, so that every oddity can be made and so that
nothing here shares a mistake with the module under test. Pillow only draws and encodes the pixels, once for each size.
Everything is deterministic: the same call gives the same bytes (with the same Pillow). A word that isn't known raises.

A good photo is `photo_bytes()`, a folder of them `write_tour(folder, tour(12))`. Each layer can be had by itself:

    sequence_maker_json()  what Sequence Maker writes      json_bytes()  the same as text, as it stands in ImageDescription
    tiff()                 the TIFF block of EXIF          xmp()         the XMP packet
    jpeg()                 the file around them            segment()     one raw segment, for `jpeg(layout=…)`

and read back with `segments`, `description_of`, `slot_of` and `entries_of`. Rarer oddities are made of these by hand:
`xmp=factory.xmp().replace(b"GPano", b"pano")`, `extra=[("0th", 0x010E, 7, 4, b"text")]`, `photo_bytes()[:-2]`.

**Pictures.** Each photo has some bytes of its own in its scan, made from `picture`, a word that names what was seen. In a
tour it is made from start, place and number in the tour, whatever the photos are called and how they are tagged:

    tour(8, names="X{}.jpg")                the same photos under other names
    tour(8, sequence_id="anew")             the same photos tagged anew: same pictures, other ids
    tour(8, picture="again")                the same photos stitched anew: same JSON, other pictures
    tour(2, step_s=0, spacing=0)            a burst: same time and place, other pictures and ids
    photo_bytes(record, picture="twin")     the same for one photo; without `picture` it follows from time and place
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import math
import random
import re
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from PIL import Image, ImageDraw

Json = dict[str, Any]
Changes = Mapping[str, object]
Order = Literal["<", ">"]
Size = tuple[int, int]
Position = tuple[float, float]  # latitude, longitude
Row = tuple[int, int, int, bytes]  # of an IFD: tag, type, count, value (up to 4 bytes stand in the row itself)


REMOVED: Final = object()
"""As a value in `changes`: delete that key. As a photo's JSON: no ImageDescription at all."""

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
TYPE_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
IMAGE_DESCRIPTION, EXIF_IFD, GPS_IFD = 0x010E, 0x8769, 0x8825
XMP_HEADER: Final = b"http://ns.adobe.com/xap/1.0/\0"
EXIF_HEADER: Final = b"Exif\0\0"
NAMESPACE: Final = uuid.UUID("5d5b2b0c-2b8e-5c0e-9d0e-3f6c6d2f7a11")
DEGREE_M: Final = 111_195.08  # metres of a degree of latitude


def known(word: str, words: Mapping[str, Any]) -> Any:
    """What the word stands for. Raises ValueError if it isn't one of the words."""
    if word not in words:
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return words[word]


# ---- Sequence Maker's JSON ----

_UPLOADER_PHOTO_KEYS = ("photo_from_video", "nadir_added", "blur_added", "gps_track_added", "gps_modified", "tags")
_UPLOADER_SEQUENCE_KEYS = ("sequence_name", "sequence_description", "transport_type")


def identifier(*parts: object) -> str:
    """A UUID made from the parts: the same parts give the same one."""
    return str(uuid.uuid5(NAMESPACE, "/".join(map(str, parts))))


def sequence_maker_json(changes: Changes | None = None) -> Json:
    """One photo's object as Sequence Maker writes it: all its keys, the misspelt ones too, in its order.

    `changes` sets values by dotted keys, {"photo.original_latitude": 51.5, "sequence.id": REMOVED}. The photo stands by
    itself: it has no connections.
    """
    photo: Json = {
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
    sequence = {
        "id": identifier("sequence"),
        "distance_km": 0.0,
        "earliest_time": "2021:07:29 09:16:54Z",
        "latest_time": "2021:07:29 09:16:54Z",
        "duration_sec": 0.0,
        "average_speed_kmh": 0.0,
        **{f"uploader_{key}": None for key in _UPLOADER_SEQUENCE_KEYS},
    }
    return changed({"photo": photo, "sequence": sequence}, changes or {})


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
        if value is REMOVED:
            place.pop(last, None)
        else:
            place[last] = value
    return result


def json_bytes(record: object) -> bytes:
    """The text of a JSON value as Sequence Maker writes it: ASCII, default separators, bare NaN and Infinity."""
    return json.dumps(record).encode("ascii")


# ---- EXIF: the TIFF block ----


def tiff(
    description: bytes | None = None,
    *,
    order: Order = ">",
    orientation: int | None = 1,
    offset_time_original: str | None = None,
    sub_sec_time_original: str | None = None,
    make: str | None = "Sample",
    model: str | None = "Panorama 1",
    position: Position = (51.5294417, -0.1538283),
    taken: str | None = "2021:07:29 11:16:54",
    gps_time: str | None = "2021:07:29 09:16:54Z",
    size: Size = (64, 32),
    thumbnail: bytes | None = None,
    maker_note: bytes | None = None,
    extra: Sequence[tuple[str, int, int, int, bytes]] = (),
    description_at: Literal["first", "last"] = "first",
) -> bytes:
    """The TIFF block of an EXIF segment, without `Exif\\0\\0`. What is None is left out.

    description is the value of ImageDescription, without its NUL. description_at "first" puts it first of all values, as
    ExifTool does, "last" at the very end of the block. extra is (ifd, tag, type, count, value): ifd "0th", "exif", "gps" or
    "1st", value as raw bytes in the block's order; it replaces the factory's own entry of that tag.
    """
    mark: bytes = known(order, {"<": b"II", ">": b"MM"})
    texts = {0x010F: make, 0x0110: model, 0x0131: "factory 1.0", 0x0132: taken}
    main = [(0x011A, 72), (0x011B, 72)]
    ifds = {
        "0th": [*_texts(texts), *(_fraction(order, *row) for row in main), _number(order, 0x0128, 2)],
        "exif": _exif_rows(order, taken, offset_time_original, sub_sec_time_original, maker_note, size),
        "gps": _gps_rows(order, position, gps_time),
    }
    ifds["0th"] += [] if orientation is None else [_number(order, 0x0112, orientation)]
    ifds["0th"] += [_number(order, EXIF_IFD, 0, LONG), _number(order, GPS_IFD, 0, LONG)]
    if thumbnail is not None:
        ifds["1st"] = [_number(order, tag, value, LONG) for tag, value in ((0x0201, 0), (0x0202, len(thumbnail)))]
        ifds["1st"].insert(0, _number(order, 0x0103, 6))
    value = b"" if description is None else description + b"\0"
    if value:
        ifds["0th"].insert(0, (IMAGE_DESCRIPTION, ASCII, len(value), value))
    for name, *row in extra:
        _put(ifds.setdefault(name, []), tuple(row))  # type: ignore[arg-type]
    last = known(description_at, {"first": False, "last": len(value) > 4})
    return mark + struct.pack(order + "HI", 42, 8) + _assembled(ifds, order, thumbnail or b"", value if last else b"")


def _texts(values: Mapping[int, str | None]) -> list[Row]:
    raw = {tag: value.encode() + b"\0" for tag, value in values.items() if value is not None}
    return [(tag, ASCII, len(value), value) for tag, value in raw.items()]


def _number(order: Order, tag: int, value: int, kind: int = SHORT) -> Row:
    return tag, kind, 1, struct.pack(order + ("H" if kind == SHORT else "I"), value)


def _fraction(order: Order, tag: int, *values: float, scale: int = 1) -> Row:
    """Fractions, each value as round(value × scale) / scale."""
    numbers = [number for value in values for number in (round(value * scale), scale)]
    return tag, RATIONAL, len(values), struct.pack(f"{order}{len(numbers)}I", *numbers)


def _exif_rows(
    order: Order, taken: str | None, offset: str | None, sub_sec: str | None, maker_note: bytes | None, size: Size
) -> list[Row]:
    rows: list[Row] = [(0x9000, UNDEFINED, 4, b"0231"), (0x9101, UNDEFINED, 4, b"\1\2\3\0")]
    rows += [_number(order, 0xA001, 1), _number(order, 0xA002, size[0], LONG), _number(order, 0xA003, size[1], LONG)]
    rows += [_fraction(order, 0x829D, 2.8, scale=10)]
    rows += _texts({0x9003: taken, 0x9004: taken, 0x9011: offset, 0x9291: sub_sec})
    return rows + ([] if maker_note is None else [(0x927C, UNDEFINED, len(maker_note), maker_note)])


def _gps_rows(order: Order, position: Position, gps_time: str | None) -> list[Row]:
    south, west = "NS"[position[0] < 0], "EW"[position[1] < 0]
    rows: list[Row] = [(0, BYTE, 4, b"\2\3\0\0"), *_texts({1: south, 3: west})]
    rows += [_fraction(order, tag, abs(value), 0, 0, scale=10**7) for tag, value in zip((2, 4), position)]
    if gps_time is not None:
        numbers = [float(number) for number in re.split("[: ]", gps_time.rstrip("Z"))[3:]]
        rows += [_fraction(order, 7, *numbers, scale=1000), *_texts({0x1D: gps_time[:10]})]
    return rows


def _put(rows: list[Row], row: Row) -> None:
    """Put a row in place of the one of the same tag, or at the end."""
    places = [place for place, other in enumerate(rows) if other[0] == row[0]] or [len(rows)]
    rows[places[0] : places[0] + 1] = [row]


def _stored(value: bytes) -> bytes:
    """What follows the IFD of a value, of even length."""
    return value + b"\0" * (len(value) % 2) if len(value) > 4 else b""


def _assembled(ifds: dict[str, list[Row]], order: Order, thumbnail: bytes, tail: bytes) -> bytes:
    """The IFDs one after the other from offset 8, each followed by its values; then the thumbnail; then the tail.

    The tail is ImageDescription's value, if it is to stand there.
    """
    if tail:
        _put(ifds["0th"], (IMAGE_DESCRIPTION, ASCII, len(tail), b"goes"))
    places, end = {}, 8
    for name, rows in ifds.items():
        places[name] = end
        end += 2 + 12 * len(rows) + 4 + sum(len(_stored(row[3])) for row in rows)
    _put(ifds["0th"], _number(order, EXIF_IFD, places["exif"], LONG))
    _put(ifds["0th"], _number(order, GPS_IFD, places["gps"], LONG))
    if thumbnail:
        _put(ifds["1st"], _number(order, 0x0201, end, LONG))
    if tail:
        place = struct.pack(order + "I", end + len(thumbnail))
        _put(ifds["0th"], (IMAGE_DESCRIPTION, ASCII, len(tail), place))
    following = {"0th": places.get("1st", 0)}
    blocks = [_ifd(rows, places[name], order, following.get(name, 0)) for name, rows in ifds.items()]
    return b"".join(blocks) + thumbnail + tail


def _ifd(rows: list[Row], start: int, order: Order, following: int) -> bytes:
    """One IFD as it stands at offset `start`: the table sorted by tag, the values in the order given."""
    table, values = [], b""
    place = start + 2 + 12 * len(rows) + 4
    for tag, kind, count, value in rows:
        field = struct.pack(order + "I", place + len(values)) if len(value) > 4 else value.ljust(4, b"\0")
        table.append((tag, struct.pack(order + "HHI", tag, kind, count) + field))
        values += _stored(value)
    fields = b"".join(field for _, field in sorted(table))
    return struct.pack(order + "H", len(rows)) + fields + struct.pack(order + "I", following) + values


# ---- XMP ----


@lru_cache(maxsize=256)
def xmp(
    projection: str | None = "equirectangular",
    form: Literal["attribute", "element"] = "element",
    cropped: tuple[int, int, int, int] | None = None,
    *,
    size: Size = (64, 32),
) -> bytes:
    """An XMP packet with Google's panorama properties, without the segment's header.

    projection None leaves the property out; cropped is (left, top, width, height) of the part that `size` shows of a sphere
    twice as wide and high.
    """
    left, top, width, height = cropped or (0, 0, *size)
    full = (size[0] * 2, size[1] * 2) if cropped else size
    numbers = {"CroppedAreaLeftPixels": left, "CroppedAreaTopPixels": top, "FullPanoWidthPixels": full[0]}
    numbers |= {"CroppedAreaImageWidthPixels": width, "CroppedAreaImageHeightPixels": height}
    properties = {} if projection is None else {"ProjectionType": projection, "UsePanoramaViewer": "True"}
    properties |= {name: str(number) for name, number in (numbers | {"FullPanoHeightPixels": full[1]}).items()}
    attribute, element = "\n GPano:{0}='{1}'", " <GPano:{0}>{1}</GPano:{0}>\n"
    start, pattern, end = known(
        form, {"attribute": ("", attribute, "/>"), "element": (">\n", element, "</rdf:Description>")}
    )
    body = start + "".join(pattern.format(*item) for item in properties.items()) + end
    return (
        "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\n<x:xmpmeta xmlns:x='adobe:ns:meta/'>\n"
        "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\n<rdf:Description rdf:about='' "
        f"xmlns:GPano='http://ns.google.com/photos/1.0/panorama/'{body}\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end='w'?>"
    ).encode()


# ---- JPEG ----

JFIF: Final = b"JFIF\0\1\1\0\0\1\0\1\0\0"
KINDS: Final = {"baseline": "RGB", "progressive": "RGB", "cmyk": "CMYK", "grayscale": "L"}
_MPF_SIZE: Final = 90
_MPF_BLANK: Final = b"\xff\xe2" + struct.pack(">H", _MPF_SIZE - 2) + b"MPF\0" + b"?" * (_MPF_SIZE - 8)


def segment(marker: int, payload: bytes, length: int | None = None) -> bytes:
    """One marker segment, `segment(0xE1, b"…")`; length writes a length that isn't the true one."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2 if length is None else length) + payload


def exif_segments(block: bytes | None) -> bytes:
    """A TIFF block as EXIF segments: one, or, where it is longer than one can be, several that continue each other."""
    if block is None:
        return b""
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
    kind: str = "baseline",
    image: bytes | None = None,
    fill: int = 3,
    picture: str = "",
    filler: int = 16,
    second_image: bytes | None = None,
    trailer: bytes = b"",
    pad_to: int = 0,
) -> bytes:
    """A JPEG file.

    layout is the order of the head's segments: "jfif", "exif", "xmp", "exif2" (a second EXIF segment), "fill" (FF fill bytes
    before the next marker), "mpf" (an index of two images; second_image then follows the first, as in a GoPro MAX photo),
    "frame" (tables and frame header, at the end unless named), or raw bytes such as `segment(…)`. What is None is left out.
    size is drawn, sof_size only claimed, kind one of KINDS; image is a JPEG whose frame and scans are taken instead.
    filler is how many random bytes (never FF, from `picture`) stand between the last pixel and the end-of-image marker: they
    tell pictures apart, make a file as big as wanted, can't be compressed, and readers skip them. Then come the trailer and
    zeros up to pad_to bytes.
    """
    frame, scans = _frame_and_scans(image or encoded(size, kind))
    parts = {
        "jfif": segment(0xE0, JFIF),
        "exif": exif_segments(exif),
        "exif2": exif_segments(exif2),
        "xmp": b"" if xmp is None else segment(0xE1, XMP_HEADER + xmp),
        "fill": b"\xff" * fill,
        "mpf": _MPF_BLANK,
        "frame": frame if sof_size is None else _claiming(frame, sof_size),
    }
    order = layout if second_image is None or "mpf" in layout else (*layout, "mpf")
    order = order if "frame" in order else (*order, "frame")
    head = b"".join(item if isinstance(item, bytes) else known(item, parts) for item in order)
    data = b"".join((b"\xff\xd8", head, scans, noise(filler, picture), b"\xff\xd9"))
    if "mpf" in order:
        data = _with_second_image(data, second_image or encoded((32, 16)))
    return (data + trailer).ljust(pad_to, b"\0")


def noise(size: int, seed: str = "") -> bytes:
    """So many random bytes, none of them FF, the same for the same seed."""
    source, block = random.Random(seed), 1 << 20
    blocks = (source.randbytes(min(block, size - start)) for start in range(0, size, block))
    return b"".join(blocks).replace(b"\xff", b"\x5a")


@lru_cache(maxsize=64)
def encoded(size: Size = (64, 32), kind: str = "baseline") -> bytes:
    """A drawn picture of that size as Pillow writes it (good as a thumbnail, too)."""
    picture = Image.new("RGB", size, (120, 170, 220))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, size[1] // 2, size[0], size[1]), fill=(90, 130, 70))
    draw.ellipse((size[0] // 8, size[1] // 8, size[0] // 4, size[1] * 3 // 8), fill=(250, 230, 120))
    file = io.BytesIO()
    picture.convert(known(kind, KINDS)).save(file, "JPEG", quality=60, optimize=True, progressive=kind == "progressive")
    return file.getvalue()


@lru_cache(maxsize=64)
def _frame_and_scans(image: bytes) -> tuple[bytes, bytes]:
    """A JPEG's tables and frame header (JFIF, EXIF, XMP and comments dropped); and its scans, without the end marker."""
    found = segments(image)
    first_scan = next(part for part in found if part.marker == 0xDA)
    end = next(part.offset for part in found if part.marker == 0xD9)
    kept = [part for part in found if part.offset < first_scan.offset and part.marker not in (0xD8, 0xE0, 0xE1, 0xFE)]
    return b"".join(segment(part.marker, part.payload) for part in kept), image[first_scan.offset : end]


def _claiming(frame: bytes, size: Size) -> bytes:
    """The same tables with other dimensions in the frame header."""
    found = segments(b"\xff\xd8" + frame)
    offset = next(part.offset for part in found if part.marker in (0xC0, 0xC1, 0xC2)) - 2
    return frame[: offset + 5] + struct.pack(">HH", size[1], size[0]) + frame[offset + 9 :]


def _with_second_image(data: bytes, second: bytes) -> bytes:
    """Write the MPF index over its blank and append the second image. Offsets count from the index' byte order mark."""
    place = data.index(_MPF_BLANK)
    pictures = struct.pack(">IIIHH", 0x20030000, len(data), 0, 0, 0)
    pictures += struct.pack(">IIIHH", 0x00010001, len(second), len(data) - (place + 8), 0, 0)
    table = struct.pack(">HHI4s", 0xB000, UNDEFINED, 4, b"0100") + struct.pack(">HHII", 0xB001, LONG, 1, 2)
    table += struct.pack(">HHII", 0xB002, UNDEFINED, len(pictures), 50)
    index = b"MM" + struct.pack(">HIH", 42, 8, 3) + table + struct.pack(">I", 0) + pictures
    return data[:place] + segment(0xE2, b"MPF\0" + index) + data[place + _MPF_SIZE :] + second


# ---- photos and tours ----

START: Final = "2021:07:29 09:16:54Z"
Method = Literal["timegps", "timecapture", "filename"]
_TIME: Final = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d(\.\d+)?Z?")


def photo_bytes(record: object = None, **options: Any) -> bytes:
    """A photo in one call: a good one unless the options say otherwise.

    record is Sequence Maker's object (`sequence_maker_json()` if None), or text or bytes that stand in its place, or REMOVED
    for no ImageDescription. EXIF's position, times, make and model follow the object, and so does the picture: from its times
    and place. options are those of `tiff`, `xmp` and `jpeg`; exif=None or xmp=None leaves the whole segment out, exif=b"…" or
    xmp=b"…" puts other bytes there.
    """
    record = sequence_maker_json() if record is None else record
    settings: dict[str, Any] = {"description": _description_text(record), **_from_record(record), **options}
    if unknown := settings.keys() - set().union(*map(_options_of, (tiff, xmp, jpeg))):
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    made = {"exif": tiff(**_chosen(settings, tiff)), "xmp": xmp(**_chosen(settings, xmp))}
    return jpeg(**{**made, **_chosen(settings, jpeg)})


@lru_cache
def _options_of(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _chosen(settings: Json, function: Callable[..., object]) -> Json:
    return {name: settings[name] for name in settings.keys() & _options_of(function)}


def _description_text(record: object) -> bytes | None:
    if record is REMOVED:
        return None
    if isinstance(record, bytes):
        return record
    return record.encode("utf-8", "surrogatepass") if isinstance(record, str) else json_bytes(record)


def _from_record(record: object) -> dict[str, Any]:
    """The options that follow from a photo's JSON, as far as it makes sense."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(record) if isinstance(record, (str, bytes)) else record
    photo = record.get("photo") if isinstance(record, dict) else None
    if not isinstance(photo, dict):
        return {"picture": repr(record)}
    taken, gps_time = photo.get("original_originalDateTime"), photo.get("original_GPSDateTime")
    latitude, longitude = photo.get("original_latitude"), photo.get("original_longitude")
    options: dict[str, Any] = {"picture": f"{gps_time} {taken} {latitude} {longitude}"}
    options["taken"] = taken[:19] if isinstance(taken, str) and _TIME.match(taken) else None
    options["gps_time"] = gps_time if isinstance(gps_time, str) and _TIME.fullmatch(gps_time) else None
    if isinstance(latitude, float) and isinstance(longitude, float) and abs(latitude) <= 90 and abs(longitude) <= 180:
        options["position"] = (latitude, longitude)
    camera = {name: photo.get(f"original_camera_{name}") for name in ("make", "model")}
    return options | {name: text for name, text in camera.items() if isinstance(text, str) and text.isprintable()}


class Stop(NamedTuple):
    """Where and when one photo of a tour was taken; the time by the clock that the tour's method uses."""

    position: Position
    altitude: float
    heading: float
    time: datetime


def tour(
    count: int,
    *,
    names: str | Sequence[str] = "GS{:04d}_calculated.jpg",
    first: int = 1,
    picture: str | None = None,
    every: Changes | None = None,
    changes: Mapping[int, Changes] | None = None,
    **options: Any,
) -> dict[str, bytes]:
    """The photos of a tour as Sequence Maker leaves them, by name.

    names is a format of the number (from `first`) or a list. picture names what was seen (see above). `every` changes each
    photo's JSON, `changes` those of one index, both as in `sequence_maker_json`. options go to `tour_json` and `photo_bytes`.
    A longer tour from the same arguments has the same photos in the same sequence, then more.
    """
    filenames = [names.format(first + n) for n in range(count)] if isinstance(names, str) else list(names[:count])
    own: Json = {"start": START, "latitude": 51.5294417, "longitude": -0.1538283} | _chosen(options, tour_json)
    rest = {name: value for name, value in options.items() if name not in own}
    seen = picture or f"{own['start']} {own['latitude']} {own['longitude']}"
    photos = {}
    for index, record in enumerate(tour_json(filenames, **own)):
        edited = changed(record, {**(every or {}), **(changes or {}).get(index, {})})
        photos[filenames[index]] = photo_bytes(edited, **{"picture": f"{seen} {index}", **rest})
    return photos


def tour_json(
    filenames: Sequence[str],
    *,
    start: str,
    latitude: float,
    longitude: float,
    sequence_id: str | None = None,
    step_s: float = 2,
    method: Method = "timegps",
    zone_h: float = 2,
    altitude: float = 40.0,
    course: float = 75.0,
    turn: float = 3.0,
    spacing: float = 5.0,
) -> list[Json]:
    """What Sequence Maker writes into the photos of a tour, in order.

    The walk begins at latitude, longitude in direction `course` and turns by `turn` degrees a photo; `spacing` metres,
    `step_s` seconds and half a metre up from photo to photo. start is by the clock that the method uses; the camera's is
    zone_h hours ahead of the GPS's. Photo ids follow from the sequence's, which follows from start and place if not given.
    """
    key = sequence_id or identifier("tour", start, latitude, longitude)
    stops: list[Stop] = []
    position, moment = (latitude, longitude), parse_time(start)
    for index in range(len(filenames)):
        heading, time = (course + turn * index) % 360, moment + timedelta(seconds=step_s * index)
        stops.append(Stop(position, round(altitude + 0.5 * index, 3), round(heading, 2), time))
        position = moved(position, heading, spacing)
    legs = [_leg(here, there) for here, there in zip(stops, stops[1:])]
    records = []
    for index, (stop, filename) in enumerate(zip(stops, filenames)):
        record = sequence_maker_json({"sequence.id": key, "photo.id": identifier(key, index)})
        record["photo"] |= _photo_figures(stop, method, zone_h)
        record["photo"]["original_filename"] = f"/srv/pano/walk/{filename.replace('_calculated', '')}"
        record["photo"]["connections"] = _connections(index, key, legs)
        records.append(record)
    return records


def moved(start: Position, heading: float, metres: float) -> Position:
    """The position so many metres away in direction `heading` (degrees); good for some kilometres."""
    angle, here = math.radians(heading), math.radians(start[0])
    north, east = metres * math.cos(angle) / DEGREE_M, metres * math.sin(angle) / DEGREE_M / math.cos(here)
    return round(start[0] + north, 10), round((start[1] + east + 540) % 360 - 180, 10)


def _leg(here: Stop, there: Stop) -> Json:
    """The connection to the next photo. Sequence Maker's arithmetic is kept: 0 metres give NaN, 0 seconds a speed of 0."""
    north = there.position[0] - here.position[0]
    east = ((there.position[1] - here.position[1] + 540) % 360 - 180) * math.cos(math.radians(here.position[0]))
    metres, seconds = math.hypot(north, east) * DEGREE_M, (there.time - here.time).total_seconds()
    up = there.altitude - here.altitude
    leg: Json = {"distance_mtrs": metres, "elevation_mtrs": up}
    leg["heading_deg"] = math.degrees(math.atan2(east, north)) % 360 if metres else 0.0
    leg["pitch_deg"] = up / metres if metres else math.nan
    return leg | {"time_sec": seconds, "speed_kmh": metres / seconds * 3.6 if seconds else 0}


def _connections(index: int, key: str, legs: Sequence[Json]) -> Json:
    """The next photo's connection first, then the one before's, without a word of which is which."""
    found: Json = {}
    if index < len(legs):
        found[identifier(key, index + 1)] = legs[index]
    if index > 0:
        leg, onward = legs[index - 1], legs[min(index, len(legs) - 1)]
        back = {name: -leg[name] for name in ("distance_mtrs", "elevation_mtrs", "pitch_deg", "time_sec")}
        back["heading_deg"] = (leg["heading_deg"] + 180) % 360
        back["adj_heading_deg"] = abs(onward["heading_deg"] - back["heading_deg"])
        found[identifier(key, index - 1)] = back | {"speed_kmh": leg["speed_kmh"]}
    return found


def _photo_figures(stop: Stop, method: Method, zone_h: float) -> Json:
    """The two clocks, position and heading of a stop."""
    ahead = timedelta(hours=known(method, {"timegps": zone_h, "filename": zone_h, "timecapture": 0}))
    captured = stop.time + ahead
    return {
        "original_GPSDateTime": format_time(captured - timedelta(hours=zone_h)) + "Z",
        "original_originalDateTime": format_time(captured),
        "cli_connection_method": method,
        "original_altitude": stop.altitude,
        "original_latitude": stop.position[0],
        "original_longitude": stop.position[1],
        "original_heading": stop.heading or "",  # a true 0 becomes "", as by Sequence Maker
    }


def parse_time(text: str) -> datetime:
    """A time as Sequence Maker writes it, `2021:07:29 09:16:54Z` (Z or none, fraction or none), as a naive datetime."""
    plain = text.rstrip("Z")
    return datetime.strptime(plain, "%Y:%m:%d %H:%M:%S.%f" if "." in plain else "%Y:%m:%d %H:%M:%S")


def format_time(time: datetime) -> str:
    """The time as Sequence Maker writes it, without zone; milliseconds only where there are any."""
    text = f"{time:%Y:%m:%d %H:%M:%S}"
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


# ---- reading back ----

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


def segments(data: bytes) -> list[Segment]:
    """The segments of the first image, SOI to EOI (or as far as there is something); the scans' data are left out."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    found, place = [Segment(0xD8, 0, b"")], 2
    while place < len(data):
        if data[place] != 0xFF:
            raise ValueError(f"no marker at {place}")
        while (marker := data[place + 1]) == 0xFF:
            place += 1
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


def _exif_block(data: bytes) -> tuple[bytes, str, int]:
    """The first EXIF segment's TIFF block, its byte order, and its place in the file."""
    for part in segments(data):
        if part.marker == 0xE1 and part.payload.startswith(EXIF_HEADER):
            block = part.payload[len(EXIF_HEADER) :]
            return block, {b"II": "<", b"MM": ">"}[block[:2]], part.offset + 4 + len(EXIF_HEADER)
    raise ValueError("no EXIF")


def _slots(block: bytes, order: str, start: int) -> Iterator[tuple[int, Slot]]:
    """An IFD's tags and their slots (offsets in the block)."""
    (count,) = struct.unpack_from(order + "H", block, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, offset = struct.unpack_from(order + "HHII", block, entry)
        size = TYPE_SIZES.get(kind, 1) * number
        yield tag, Slot(entry, offset if size > 4 else entry + 8, size)


def slot_of(data: bytes, tag: int = IMAGE_DESCRIPTION) -> Slot:
    """Where a tag of IFD0 (ImageDescription) stands in the file. KeyError if there is none."""
    block, order, base = _exif_block(data)
    (start,) = struct.unpack_from(order + "I", block, 4)
    entry, value, size = dict(_slots(block, order, start))[tag]
    return Slot(entry + base, value + base, size)


def description_text(data: bytes) -> bytes:
    """ImageDescription's value, all of it, NULs too."""
    slot = slot_of(data)
    return data[slot.value_offset : slot.value_offset + slot.value_size]


def description_of(data: bytes) -> Json:
    """The JSON object in ImageDescription."""
    record: Json = json.loads(description_text(data).rstrip(b"\0 ").decode("utf-8-sig"))
    return record


def entries_of(data: bytes) -> dict[tuple[str, int], tuple[int, int, bytes]]:
    """Every tag of EXIF by (ifd, number): its type, count and value; the thumbnail's bytes as ("thumbnail", 0).

    The ifd is "0th", "exif", "gps", "interop" or "1st". To see that a change touched one tag only.
    """
    block, order, _ = _exif_block(data)
    tags: dict[tuple[str, int], tuple[int, int, bytes]] = {}
    below = {EXIF_IFD: "exif", GPS_IFD: "gps", 0xA005: "interop"}
    (start,) = struct.unpack_from(order + "I", block, 4)
    waiting = [("0th", start)]
    while waiting:
        name, start = waiting.pop()
        for number, slot in _slots(block, order, start):
            value = block[slot.value_offset : slot.value_offset + slot.value_size]
            tags[name, number] = (*struct.unpack_from(order + "HI", block, slot.entry_offset + 2), value)
            waiting += [(below[number], struct.unpack(order + "I", value)[0])] if number in below else []
        (count,) = struct.unpack_from(order + "H", block, start)
        (following,) = struct.unpack_from(order + "I", block, start + 2 + 12 * count)
        waiting += [("1st", following)] if name == "0th" and following else []
    if ("1st", 0x0201) in tags:
        offset, length = (struct.unpack(order + "I", tags["1st", tag][2])[0] for tag in (0x0201, 0x0202))
        tags["thumbnail", 0] = (UNDEFINED, length, block[offset : offset + length])
    return tags
