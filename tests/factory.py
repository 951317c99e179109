"""The photo factory: every photo that the tests use is made here, byte by byte.

EXIF, XMP and JPEG segments are built and read back by this file's own code, so that every oddity can be made and so that
nothing here shares a mistake with the module under test. Pillow only draws and encodes the pixels, once for each size.
The same call gives the same bytes (with the same Pillow). A word that isn't known raises.

A good photo is `photo_bytes()`, a folder of them `write_tour(folder, tour(12))`; `sequence_maker_json`, `tiff`, `xmp`,
`jpeg` and `segment` make the layers. Rarer oddities are made of these by hand: `xmp=factory.xmp().replace(b"GPano", b"pano")`.

Each photo has some bytes of its own in its scan, made from `picture`, a word that names what was seen. In a tour it is
made from start, place and number in the tour, whatever the photos are called and how they are tagged:

    tour(8, names="X{}.jpg")                the same photos under other names
    tour(8, sequence_id="anew")             the same photos tagged anew: same pictures, other ids
    tour(8, picture="again")                the same photos stitched anew: same JSON, other pictures
    tour(2, step_s=0, spacing=0)            a burst: same time and place, other pictures and ids
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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from PIL import Image, ImageDraw

Json = dict[str, Any]
Changes = Mapping[str, object]
Order = Literal["<", ">"]
Size = tuple[int, int]
Position = tuple[float, float]  # latitude, longitude
Value = tuple[int, int, bytes]  # of a tag: type, count, bytes (up to 4 of them stand in the IFD itself)

REMOVED: Final = object()
"""As a value in `changes`: delete that key. As a photo's JSON: no ImageDescription at all."""

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
TYPE_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
IMAGE_DESCRIPTION, EXIF_IFD, GPS_IFD = 0x010E, 0x8769, 0x8825
XMP_HEADER: Final = b"http://ns.adobe.com/xap/1.0/\0"
EXIF_HEADER: Final = b"Exif\0\0"
NAMESPACE: Final = uuid.UUID("5d5b2b0c-2b8e-5c0e-9d0e-3f6c6d2f7a11")
DEGREE_M: Final = 111_195.08  # metres of a degree of latitude


# ---- Sequence Maker's JSON ----

TEMPLATE: Final = """{
"photo": {"id": "", "original_GPSDateTime": "2021:07:29 09:16:54Z", "original_originalDateTime": "2021:07:29 11:16:54",
  "cli_connection_method": "timegps", "cli_frame_rate_set": 1000000.0, "cli_altitude_min_set": 0.0, "cli_distance_min_set": 0.0,
  "original_filename": "/srv/pano/walk/GS0001.jpg", "original_altitude": 92.86, "original_latitude": 51.5294417,
  "original_longitude": -0.1538283, "orignal_gps_direction_ref": "T", "orignal_gps_speed": 5, "original_heading": 350,
  "original_pitch": "", "original_roll": "", "original_camera_make": "Sample", "original_camera_model": "Panorama 1",
  "original_projection": "equirectangular", "software_version": 1.0, "uploader_photo_from_video": null,
  "uploader_nadir_added": null, "uploader_blur_added": null, "uploader_gps_track_added": null, "uploader_gps_modified": null,
  "uploader_tags": null, "connections": {}},
"sequence": {"id": "", "distance_km": 0.0, "earliest_time": "2021:07:29 09:16:54Z", "latest_time": "2021:07:29 09:16:54Z",
  "duration_sec": 0.0, "average_speed_kmh": 0.0, "uploader_sequence_name": null, "uploader_sequence_description": null,
  "uploader_transport_type": null}}"""


def identifier(*parts: object) -> str:
    """A UUID made from the parts: the same parts give the same one."""
    return str(uuid.uuid5(NAMESPACE, "/".join(map(str, parts))))


def sequence_maker_json(changes: Changes | None = None) -> Json:
    """One photo's object as Sequence Maker writes it, without connections; `changes` as in `changed`."""
    ids = {f"{kind}.id": identifier(kind) for kind in ("photo", "sequence")}
    return changed(json.loads(TEMPLATE), {**ids, **(changes or {})})


def changed(record: Json, changes: Changes) -> Json:
    """A copy with values set by dotted keys: {"photo.original_latitude": 51.5, "sequence.id": REMOVED}."""
    result: Json = json.loads(json.dumps(record))
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
        if value is REMOVED:
            del place[last]
    return result


def json_bytes(record: object) -> bytes:
    """The text of a JSON value as Sequence Maker writes it: ASCII, default separators, bare NaN and Infinity."""
    return json.dumps(record).encode("ascii")


# ---- EXIF: the TIFF block ----


def tiff(
    description: bytes | None = None, *, order: Order = ">", description_at: Literal["first", "last"] = "first",
    orientation: int | None = 1, make: str | None = "Sample", model: str | None = "Panorama 1", size: Size = (64, 32),
    position: Position = (51.5294417, -0.1538283), gps_time: str | None = "2021:07:29 09:16:54Z",
    taken: str | None = "2021:07:29 11:16:54", offset_time_original: str | None = None, sub_sec_time_original: str | None = None,
    thumbnail: bytes | None = None, maker_note: bytes | None = None, extra: Sequence[tuple[str, int, int, int, bytes]] = (),
) -> bytes:  # fmt: skip
    """The TIFF block of an EXIF segment, without `Exif\\0\\0`. What is None is left out.

    description is ImageDescription, without its NUL: first of all values, as by ExifTool, or at the very end of the block.
    extra is (ifd, tag, type, count, raw value): ifd "0th", "exif", "gps" or "1st"; it replaces the factory's own entry.
    """
    number, fraction = partial(_number, order), partial(_fraction, order)
    text = b"" if description is None else description + b"\0"
    main: dict[int, Value] = {IMAGE_DESCRIPTION: (ASCII, len(text), text)} if text else {}
    main |= _texts({0x010F: make, 0x0110: model, 0x0131: "factory 1.0", 0x0132: taken})
    main |= {0x011A: fraction(72), 0x011B: fraction(72), 0x0128: number(2)}
    main |= {} if orientation is None else {0x0112: number(orientation)}
    main |= {EXIF_IFD: number(0, LONG), GPS_IFD: number(0, LONG)}
    exif = {0x9000: (UNDEFINED, 4, b"0231"), 0x9101: (UNDEFINED, 4, b"\1\2\3\0"), 0xA001: number(1)}
    exif |= {0xA002: number(size[0], LONG), 0xA003: number(size[1], LONG), 0x829D: fraction(2.8, scale=10)}
    exif |= _texts({0x9003: taken, 0x9004: taken, 0x9011: offset_time_original, 0x9291: sub_sec_time_original})
    exif |= {} if maker_note is None else {0x927C: (UNDEFINED, len(maker_note), maker_note)}
    ifds = {"0th": main, "exif": exif, "gps": _gps(order, position, gps_time)}
    if thumbnail is not None:
        ifds["1st"] = {0x0103: number(6), 0x0201: number(0, LONG), 0x0202: number(len(thumbnail), LONG)}
    for name, tag, *value in extra:
        ifds.setdefault(name, {})[tag] = tuple(value)  # type: ignore[assignment]
    return _assembled(order, ifds, thumbnail or b"", text if description_at == "last" else b"")


def _texts(values: Mapping[int, str | None]) -> dict[int, Value]:
    raw = {tag: value.encode() + b"\0" for tag, value in values.items() if value is not None}
    return {tag: (ASCII, len(value), value) for tag, value in raw.items()}


def _number(order: Order, value: int, kind: int = SHORT) -> Value:
    return kind, 1, struct.pack(order + ("H" if kind == SHORT else "I"), value)


def _fraction(order: Order, *values: float, scale: int = 1) -> Value:
    numbers = [number for value in values for number in (round(value * scale), scale)]
    return RATIONAL, len(values), struct.pack(f"{order}{len(numbers)}I", *numbers)


def _gps(order: Order, position: Position, time: str | None) -> dict[int, Value]:
    values = {0: (BYTE, 4, b"\2\3\0\0"), **_texts({1: "NS"[position[0] < 0], 3: "EW"[position[1] < 0]})}
    values |= {tag: _fraction(order, abs(value), 0, 0, scale=10**7) for tag, value in zip((2, 4), position)}
    if time is not None:
        clock = [float(number) for number in re.split("[: ]", time.rstrip("Z"))[3:]]
        values |= {7: _fraction(order, *clock, scale=1000), **_texts({0x1D: time[:10]})}
    return values


def _assembled(order: Order, ifds: dict[str, dict[int, Value]], thumbnail: bytes, tail: bytes) -> bytes:
    """The IFDs from offset 8, each followed by its values; the thumbnail; ImageDescription's value, if that is the tail."""
    main = ifds["0th"]
    if tail:
        main[IMAGE_DESCRIPTION] = (ASCII, len(tail), b"goes")
    places, end = {}, 8
    for name, values in ifds.items():
        places[name] = end
        end += len(_ifd(order, values, 0, 0))
    main |= {tag: _number(order, places[name], LONG) for tag, name in ((EXIF_IFD, "exif"), (GPS_IFD, "gps"))}
    if thumbnail:
        ifds["1st"][0x0201] = _number(order, end, LONG)
    if tail:
        main[IMAGE_DESCRIPTION] = (ASCII, len(tail), struct.pack(order + "I", end + len(thumbnail)))
    following = {"0th": places.get("1st", 0)}
    blocks = [_ifd(order, values, places[name], following.get(name, 0)) for name, values in ifds.items()]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return b"".join([head, *blocks, thumbnail, tail])


def _ifd(order: Order, tags: dict[int, Value], start: int, following: int) -> bytes:
    """One IFD as it stands at offset `start`: the table sorted by tag, the values in the order given."""
    table, values = {}, b""
    place = start + 2 + 12 * len(tags) + 4
    for tag, (kind, count, value) in tags.items():
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack(order + "I", place + len(values))
            values += value + b"\0" * (len(value) % 2)
        table[tag] = struct.pack(order + "HHI", tag, kind, count) + field
    fields = b"".join(table[tag] for tag in sorted(table))
    return struct.pack(order + "H", len(tags)) + fields + struct.pack(order + "I", following) + values


# ---- XMP ----


@lru_cache(maxsize=256)
def xmp(
    projection: str | None = "equirectangular", form: Literal["attribute", "element"] = "element",
    cropped: tuple[int, int, int, int] | None = None, *, size: Size = (64, 32),
) -> bytes:  # fmt: skip
    """An XMP packet with Google's panorama properties, or no projection; without the segment's header.

    cropped is (left, top, width, height) of the part that `size` shows of a sphere twice as wide and high.
    """
    left, top, width, height = cropped or (0, 0, *size)
    full = (size[0] * 2, size[1] * 2) if cropped else size
    properties: Json = {} if projection is None else {"ProjectionType": projection, "UsePanoramaViewer": "True"}
    properties |= {"CroppedAreaLeftPixels": left, "CroppedAreaTopPixels": top, "FullPanoWidthPixels": full[0]}
    properties |= {"CroppedAreaImageWidthPixels": width, "CroppedAreaImageHeightPixels": height}
    properties |= {"FullPanoHeightPixels": full[1]}
    start, pattern, end = {
        "attribute": ("", "\n GPano:{0}='{1}'", "/>"),
        "element": (">\n", " <GPano:{0}>{1}</GPano:{0}>\n", "</rdf:Description>"),
    }[form]
    body = start + "".join(pattern.format(*item) for item in properties.items()) + end
    return (
        "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\n<x:xmpmeta xmlns:x='adobe:ns:meta/'>\n"
        "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\n<rdf:Description rdf:about='' "
        f"xmlns:GPano='http://ns.google.com/photos/1.0/panorama/'{body}\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end='w'?>"
    ).encode()


# ---- JPEG ----

JFIF: Final = b"JFIF\0\1\1\0\0\1\0\1\0\0"
KINDS: Final = {"baseline": "RGB", "progressive": "RGB", "cmyk": "CMYK", "grayscale": "L"}


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
    *, exif: bytes | None = None, xmp: bytes | None = None, exif2: bytes | None = None,
    layout: Sequence[str | bytes] = ("exif", "xmp"), size: Size = (64, 32), sof_size: Size | None = None,
    kind: str = "baseline", image: bytes | None = None, picture: str = "", filler: int = 16,
    second_image: bytes | None = None, trailer: bytes = b"", pad_to: int = 0,
) -> bytes:  # fmt: skip
    """A JPEG file.

    layout is the order of the head's segments, before the picture's own tables: "jfif", "exif", "xmp", "exif2" (a second
    EXIF segment), "fill" (FF bytes before the next marker), "mpf" (an index of two images; the second follows the first, as
    in a GoPro MAX photo), or raw bytes such as `segment(…)`. What is None is left out. size is drawn, sof_size only claimed,
    kind one of KINDS; image is a JPEG whose frame and scans are taken instead. filler is how many random bytes (never FF,
    from `picture`) stand between the last pixel and the end-of-image marker: they tell pictures apart, make a file as big as
    wanted, can't be compressed, and readers skip them. Then come the trailer and zeros up to pad_to bytes.
    """
    frame, scans = _frame_and_scans(image or encoded(size, kind))
    drawn, claimed = (struct.pack(">BHH", 8, high, wide) for wide, high in (size, sof_size or size))  # 8 bits a sample
    second, blank = second_image or encoded((32, 16)), _mpf(0, 0, 0)
    parts = {
        "jfif": segment(0xE0, JFIF),
        "exif": exif_segments(exif),
        "exif2": exif_segments(exif2),
        "xmp": b"" if xmp is None else segment(0xE1, XMP_HEADER + xmp),
        "fill": b"\xff" * 3,
        "mpf": blank,
    }
    order = layout if second_image is None or "mpf" in layout else (*layout, "mpf")
    head = b"".join(item if isinstance(item, bytes) else parts[item] for item in order)
    head += frame.replace(drawn, claimed)
    data = b"".join((b"\xff\xd8", head, scans, noise(filler, picture), b"\xff\xd9"))
    if "mpf" in order:
        data = data.replace(blank, _mpf(len(data), len(second), len(data) - data.index(blank) - 8)) + second
    return (data + trailer).ljust(pad_to, b"\0")


def _mpf(size: int, second_size: int, offset: int) -> bytes:
    """The index of two images. The second's offset counts from the index' byte order mark."""
    pictures = struct.pack(">IIIHH", 0x20030000, size, 0, 0, 0)
    pictures += struct.pack(">IIIHH", 0x00010001, second_size, offset, 0, 0)
    table = struct.pack(">HHI4s", 0xB000, UNDEFINED, 4, b"0100") + struct.pack(">HHII", 0xB001, LONG, 1, 2)
    table += struct.pack(">HHII", 0xB002, UNDEFINED, len(pictures), 50)
    index = b"MM" + struct.pack(">HIH", 42, 8, 3) + table + struct.pack(">I", 0) + pictures
    return segment(0xE2, b"MPF\0" + index)


def noise(size: int, seed: str = "") -> bytes:
    """So many random bytes, none of them FF, the same for the same seed."""
    return random.Random(seed).randbytes(size).replace(b"\xff", b"\x5a")


@lru_cache(maxsize=64)
def encoded(size: Size = (64, 32), kind: str = "baseline") -> bytes:
    """A drawn picture of that size as Pillow writes it (good as a thumbnail, too)."""
    picture = Image.new("RGB", size, (120, 170, 220))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, size[1] // 2, size[0], size[1]), fill=(90, 130, 70))
    draw.ellipse((size[0] // 8, size[1] // 8, size[0] // 4, size[1] * 3 // 8), fill=(250, 230, 120))
    file = io.BytesIO()
    picture.convert(KINDS[kind]).save(file, "JPEG", quality=60, optimize=True, progressive=kind == "progressive")
    return file.getvalue()


@lru_cache(maxsize=64)
def _frame_and_scans(image: bytes) -> tuple[bytes, bytes]:
    """A JPEG's tables and frame header (JFIF, EXIF, XMP and comments dropped); and its scans, without the end marker."""
    found = segments(image)
    scan = next(part.offset for part in found if part.marker == 0xDA)
    kept = [part for part in found if part.offset < scan and part.marker not in (0xD8, 0xE0, 0xE1, 0xFE)]
    return b"".join(segment(part.marker, part.payload) for part in kept), image[scan : found[-1].offset]


# ---- photos and tours ----

START: Final = "2021:07:29 09:16:54Z"
Method = Literal["timegps", "timecapture", "filename"]
_TIME: Final = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d(\.\d+)?Z?")


def photo_bytes(record: object = None, **options: Any) -> bytes:
    """A photo: a good one unless the options, those of `tiff`, `xmp` and `jpeg`, say otherwise.

    record is Sequence Maker's object (`sequence_maker_json()` if None), or text or bytes that stand in its place, or REMOVED
    for no ImageDescription. EXIF's position, times, make and model and the picture follow the object. exif or xmp puts other
    bytes in the place of the whole segment; None leaves it out.
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
    if isinstance(record, str):
        return record.encode("utf-8", "surrogatepass")
    return None if record is REMOVED else record if isinstance(record, bytes) else json_bytes(record)


def _from_record(record: object) -> dict[str, Any]:
    """The options that follow from a photo's JSON, as far as it makes sense."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(record) if isinstance(record, (str, bytes)) else record
    photo = record.get("photo") if isinstance(record, dict) else None
    if not isinstance(photo, dict):
        return {"picture": "" if record is REMOVED else repr(record)}
    taken, gps_time = str(photo.get("original_originalDateTime")), str(photo.get("original_GPSDateTime"))
    latitude, longitude = photo.get("original_latitude"), photo.get("original_longitude")
    options: dict[str, Any] = {"picture": f"{gps_time} {taken} {latitude} {longitude}"}
    options["taken"] = taken[:19] if _TIME.match(taken) else None
    options["gps_time"] = gps_time if _TIME.fullmatch(gps_time) else None
    if isinstance(latitude, float) and isinstance(longitude, float) and abs(latitude) <= 90 and abs(longitude) <= 180:
        options["position"] = (latitude, longitude)
    camera = {name: photo.get(f"original_camera_{name}") for name in ("make", "model")}
    return options | {name: text for name, text in camera.items() if isinstance(text, str) and text.isprintable()}


def tour(
    count: int, *, names: str | Sequence[str] = "GS{:04d}_calculated.jpg", first: int = 1, picture: str | None = None,
    every: Changes | None = None, changes: Mapping[int, Changes] | None = None, **options: Any,
) -> dict[str, bytes]:  # fmt: skip
    """The photos of a tour as Sequence Maker leaves them, by name. A longer tour has the same photos, then more.

    names is a format of the number (from `first`) or a list. `every` changes each photo's JSON, `changes` those of one index,
    both as in `changed`. options go to `tour_json` and `photo_bytes`.
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
    filenames: Sequence[str], *, start: str, latitude: float, longitude: float, sequence_id: str | None = None,
    step_s: float = 2, method: Method = "timegps", zone_h: float = 2,
    altitude: float = 40.0, course: float = 75.0, turn: float = 3.0, spacing: float = 5.0,
) -> list[Json]:  # fmt: skip
    """What Sequence Maker writes into the photos of a tour, in order.

    The walk begins in direction `course` and turns by `turn` degrees a photo; `spacing` metres, `step_s` seconds and half a
    metre up from photo to photo. start is by the clock that the method uses; the camera's is zone_h hours ahead of the GPS's.
    Ids follow from the sequence's, which follows from start and place if not given.
    """
    key = sequence_id or identifier("tour", start, latitude, longitude)
    ahead, position, records = timedelta(hours=zone_h), (latitude, longitude), []
    moment = parse_time(start) + {"timegps": ahead, "filename": ahead, "timecapture": timedelta(0)}[method]
    for index, filename in enumerate(filenames):
        captured, heading = moment + timedelta(seconds=step_s * index), (course + turn * index) % 360
        record = sequence_maker_json({"sequence.id": key, "photo.id": identifier(key, index)})
        record["photo"] |= {
            "original_GPSDateTime": format_time(captured - ahead) + "Z",
            "original_originalDateTime": format_time(captured),
            "cli_connection_method": method,
            "original_filename": f"/srv/pano/walk/{filename.replace('_calculated', '')}",
            "original_altitude": round(altitude + 0.5 * index, 3),
            "original_latitude": position[0],
            "original_longitude": position[1],
            "original_heading": round(heading, 2) or "",  # a true 0 becomes "", as by Sequence Maker
        }
        records.append(record)
        position = moved(position, heading, spacing)
    legs = [_leg(here["photo"], there["photo"], float(step_s)) for here, there in zip(records, records[1:])]
    for index, record in enumerate(records):
        record["photo"]["connections"] = _connections(index, key, legs)
    return records


def moved(start: Position, heading: float, metres: float) -> Position:
    """The position so many metres away in direction `heading` (degrees); good for some kilometres."""
    angle, here = math.radians(heading), math.radians(start[0])
    north, east = metres * math.cos(angle) / DEGREE_M, metres * math.sin(angle) / DEGREE_M / math.cos(here)
    return round(start[0] + north, 10), round((start[1] + east + 540) % 360 - 180, 10)


def _leg(here: Json, there: Json, seconds: float) -> Json:
    """The connection to the next photo. Sequence Maker's arithmetic is kept: 0 metres give NaN, 0 seconds a speed of 0."""
    north, east, up = (
        there[f"original_{name}"] - here[f"original_{name}"] for name in ("latitude", "longitude", "altitude")
    )
    east = ((east + 540) % 360 - 180) * math.cos(math.radians(here["original_latitude"]))
    metres = math.hypot(north, east) * DEGREE_M
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


def parse_time(text: str) -> datetime:
    """A time as Sequence Maker writes it, `2021:07:29 09:16:54Z` (Z or none, fraction or none), as a naive datetime."""
    return datetime.fromisoformat(text.rstrip("Z").replace(":", "-", 2))


def format_time(time: datetime) -> str:
    """The time as Sequence Maker writes it, without zone; milliseconds only where there are any."""
    return time.isoformat(" ", "milliseconds" if time.microsecond else "seconds").replace("-", ":")


def write_tour(folder: Path, photos: Mapping[str, bytes]) -> Path:
    """Write the photos into the folder, which is made (a tour may be empty); names may hold subfolders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in photos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
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


def _slots(data: bytes) -> Iterator[tuple[int, int, Slot]]:
    """Of IFD0 in the first EXIF segment: each tag, its type, and where it stands in the file."""
    part = next((part for part in segments(data) if part.payload.startswith(EXIF_HEADER)), None)
    if part is None:
        raise ValueError("no EXIF")
    block, base = part.payload[len(EXIF_HEADER) :], part.offset + 4 + len(EXIF_HEADER)
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, offset = struct.unpack_from(order + "HHII", block, entry)
        size = TYPE_SIZES.get(kind, 1) * number
        yield tag, kind, Slot(base + entry, base + (offset if size > 4 else entry + 8), size)


def slot_of(data: bytes, tag: int = IMAGE_DESCRIPTION) -> Slot:
    """Where a tag of IFD0 (ImageDescription) stands in the file. KeyError if there is none."""
    return {number: slot for number, _, slot in _slots(data)}[tag]


def texts_of(data: bytes) -> dict[int, str]:
    """The text tags of IFD0, up to their first NUL; none if they can't be read."""
    with contextlib.suppress(ValueError, LookupError, struct.error):
        found = [(tag, data[at : at + size]) for tag, kind, (_, at, size) in _slots(data) if kind == ASCII]
        return {tag: text.split(b"\0")[0].decode("utf-8", "replace") for tag, text in found}
    return {}


def description_text(data: bytes) -> bytes:
    """ImageDescription's value, all of it, NULs too."""
    _, place, size = slot_of(data)
    return data[place : place + size]


def description_of(data: bytes) -> Json:
    """The JSON object in ImageDescription."""
    record: Json = json.loads(description_text(data).rstrip(b"\0 ").decode("utf-8-sig"))
    return record
