"""README, "What is checked": why photos are rejected, sequences held back, people warned; and how sequences are cut."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import factory
import mapillary_uploader as mu
from factory import REMOVED, photo_bytes, segment, sequence_maker_json, tour, xmp
from sandbox import Sandbox
from support import SHARED_PHOTOS, run, upload, upload_here

THUMBNAIL = factory.encoded((16, 8))
SCRATCH = tempfile.TemporaryDirectory()


def checked(data: bytes, **options: Any) -> mu.Photo:
    """A photo of these bytes, checked by itself."""
    (path := Path(SCRATCH.name, "photo.jpg")).write_bytes(data)
    return mu.check_photo(path, mu.Settings(**options))


def reason(data: bytes) -> str:
    """Why the photo is rejected; "" if it passes."""
    return "; ".join(map(str, checked(data).problems))


def made(**changes: object) -> bytes:
    """A photo with other values in Sequence Maker's `photo`."""
    return photo_bytes(sequence_maker_json({f"photo.{key}": value for key, value in changes.items()}))


def toured(photos: Mapping[str, bytes], run: mu.Run | None = None, **options: Any) -> mu.Tour:
    """A folder of these photos, checked."""
    with tempfile.TemporaryDirectory() as folder:
        return mu.check_folder(factory.write_tour(Path(folder), photos), mu.Settings(**options), run)


def held(tour: mu.Tour) -> str:
    """Why sequences are held back."""
    return "; ".join(str(problem) for sequence in tour.sequences for problem in sequence.problems)


def warned(tour: mu.Tour) -> dict[str, str]:
    """The warnings by file."""
    return {photo.file: "; ".join(map(str, photo.warnings)) for photo in tour.photos if photo.warnings}


def times(tour: mu.Tour) -> list[str]:
    """The capture times that are sent, in the order of sending."""
    return [mu.description_of(photo)["MAPCaptureTime"] for sequence in tour.sequences for photo in sequence.photos]


# ---- what is a JPEG, and whole ----


def test_a_photo_cut_anywhere_is_rejected_and_a_cut_trailer_is_fine() -> None:
    whole = photo_bytes(thumbnail=THUMBNAIL)
    for place in range(len(whole)):
        assert reason(whole[:place]), f"cut at {place} of {len(whole)}"
    for trailer in (b"\0" * 6000, b"\0\0\0\x18ftypmp42" + factory.noise(9000)):  # padding, motion photo
        for length in (0, 1, *range(4092, 4099), len(trailer)):
            assert reason(whole + trailer[:length]) == ""
            assert "no end-of-image marker" in reason(whole[:-2] + trailer[:length])


def test_the_end_of_the_image_is_found_wherever_a_block_of_reading_ends() -> None:
    bare = photo_bytes(filler=0)
    scan = next(part for part in factory.segments(bare) if part.marker == 0xDA)
    for place in range(-3, 4):
        filler = 1024 * 1024 + place - (len(bare) - 2 - scan.offset - 4 - len(scan.payload))
        photo = photo_bytes(filler=filler, trailer=b"\0" * 6000)
        assert reason(photo) == "" and "cut short" in reason(photo.replace(b"\xff\xd9", b"\xff\0")), place


@pytest.mark.parametrize("kind", factory.KINDS)
@pytest.mark.parametrize("layout", ["exif xmp", "xmp exif", "jfif fill exif xmp", "exif xmp mpf"])
def test_every_kind_and_layout_of_jpeg_is_read(kind: str, layout: str) -> None:
    photo = checked(photo_bytes(kind=kind, layout=layout.split()))
    assert photo.problems == photo.warnings == () and photo.pixels == 64 * 32


def test_a_segment_that_pillow_does_not_know_is_refused_and_any_other_passed_over() -> None:
    photo = photo_bytes()
    for marker in {*range(0x01, 0xFF)} - {0xD8, 0xD9}:
        payload = b"" if 0xD0 <= marker <= 0xD7 else b"\0\4ab"
        data = photo[:2] + bytes((0xFF, marker)) + payload + photo[2:]
        try:
            known = Image.open(io.BytesIO(data)).format == "JPEG"
        except OSError:
            known = False
        assert (reason(data) == "") is known, f"{marker:02X}"


def test_what_is_no_jpeg_is_rejected_with_the_reason_and_what_to_do() -> None:
    def headed(*before: bytes) -> bytes:
        return photo_bytes(layout=(*before, "exif", "xmp"))

    full, good = segment(0xE2, b"?" * 65_533), photo_bytes()
    for data, expected in [
        (b"", "empty"), (b"\xff", "not a JPEG"), (b"\xff\xd8", "cut short"), (b"\xff\xd8\xff\xd9", "no image in it"),
        (b"\xff\xd8" + good, "no image in it"), (b"GIF89a" + b"\0" * 50, "not a JPEG"), (b"\x89PNG\r\n\x1a\n" * 9, "not a JPEG"),
        (b"\0\0\0\x18ftypmp42" + good, "not a JPEG"), (headed(b"\0"), "no marker at byte 2"), (headed(full * 257), "over 16 MB"),
        (headed(segment(0xE2, b"", 1)), "ends inside its header"), (headed(segment(0xDB, b"\0")), "Pillow: bad quantization"),
        (headed(segment(0xE2, b"", 59_999)), "ends inside its header"),
    ]:  # fmt: skip
        assert expected in reason(data) and all(problem.fix for problem in checked(data).problems), expected
    rest = 16 * 1024 * 1024 - headed(full * 255).index(b"\xff\xda")  # up to the limit
    for more, expected in ((0, ""), (1, "over 16 MB before the pixels")):
        at_limit = headed(full * 255, segment(0xE2, b"?" * (rest - 4 + more)))
        assert expected in reason(at_limit) and (reason(at_limit) == "") is (not expected)
    assert f"unknown encoding: {'x' * 62})" in reason(
        photo_bytes(xmp=b'<?xml version="1.0" encoding="%s"?><a/>' % (b"x" * 99))
    )


def test_a_hundred_megapixels_and_fifty_megabytes_pass_and_no_more_without_a_word_from_pillow(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(photo_bytes(sof_size=(10_000, 10_000))) == reason(photo_bytes(sof_size=(20_000, 5_000))) == ""
        assert "more than 100 megapixels (10000 × 10001)" in reason(photo_bytes(sof_size=(10_000, 10_001)))
        assert "more than 100 megapixels (65500 × 32750)" in reason(photo_bytes(sof_size=(65_500, 32_750)))
    (path := tmp_path / "a.jpg").write_bytes(photo_bytes())
    for size, expected in ((52_428_800, ""), (52_428_801, "larger than 50 MB")):
        os.truncate(path, size)
        assert [problem.what[-17:] for problem in mu.check_photo(path).problems] == ([expected] if expected else [])


def test_all_problems_of_a_photo_are_found_in_one_pass() -> None:
    changes = {"photo.original_latitude": 91, "photo.original_GPSDateTime": "", "sequence.id": "a b"}
    found = reason(photo_bytes(sequence_maker_json(changes), sof_size=(20_000, 10_000), projection="flat")[:-2])
    for words in ("megapixels", "no end-of-image", "not a 360° panorama", "position", "capture time", "sequence id"):
        assert words in found


@pytest.mark.parametrize("name", ["folder.jpg", "fifo.jpeg", "socket.JPG", "dangling.jpg", "loop.jpg"])
def test_what_is_no_regular_file_is_rejected_unopened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with socket.socket(socket.AF_UNIX) as listener:
        makers: dict[str, Callable[[], object]] = {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}
        makers |= {"dangling": lambda: path.symlink_to("nowhere"), "loop": lambda: path.symlink_to(name)}
        makers.get(path.stem, lambda: listener.bind(str(path)))()
        result = run("-d", tmp_path, "--dry-run", "--json")
        assert result.code == 3 and [photo["state"] for photo in result.document["photos"]] == ["rejected"]
        assert mu.check_photo(path).problems[0].what == "can't be read"


# ---- XMP: is it a panorama? ----

PANORAMA, FLAT = xmp(), xmp(None)
DOCTYPE = PANORAMA.replace(b"<x:", b'<!DOCTYPE x [<!ENTITY e "equirectangular">]><x:', 1)


def spoilt(old: bytes, new: bytes, packet: bytes = PANORAMA) -> bytes:
    """An XMP packet in which something is replaced."""
    assert old in packet
    return packet.replace(old, new)


def test_a_panorama_is_known_by_the_namespace_and_what_only_mentions_one_is_none() -> None:
    for packet in [
        xmp(form="attribute"), xmp(form="element"), xmp(" EquiRectangular\n"), spoilt(b"GPano", b"pano"), PANORAMA + b"\0" * 300,
        b"\xef\xbb\xbf" + PANORAMA, b"<?xml version='1.0' encoding='latin-1'?>" + PANORAMA,
    ]:  # fmt: skip
        assert reason(photo_bytes(xmp=packet)) == "", packet
    for packet in [
        xmp("cylindrical"), xmp(""), FLAT, spoilt(b"google.com/photos", b"example.com/photos"),
        spoilt(b"<x:xmpmeta", b"<!--GPano:ProjectionType='equirectangular'--><x:xmpmeta", FLAT),
        spoilt(b"<rdf:RDF", b"GPano:ProjectionType=equirectangular<rdf:RDF", FLAT),
    ]:  # fmt: skip
        found = reason(photo_bytes(xmp=packet))
        says = ["cylindrical"] if b"cylindrical" in packet else []
        assert "not a 360° panorama" in found and re.findall(r"it says (\w*)", found) == says, packet


def test_the_xmp_of_a_second_image_does_not_count_and_that_of_a_second_segment_does() -> None:
    assert "not a 360°" in reason(photo_bytes(xmp=FLAT, second_image=photo_bytes()))
    second, contrary = (segment(0xE1, factory.XMP_HEADER + packet) for packet in (PANORAMA, xmp("flat")))
    assert reason(photo_bytes(xmp=FLAT, layout=("exif", "xmp", second))) == ""
    assert reason(photo_bytes(layout=("exif", "xmp", contrary))) == ""  # the first one counts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_document_type_in_xmp_is_refused_and_no_entity_expanded(encoding: str) -> None:
    for packet in (DOCTYPE, spoilt(b">equirectangular<", b">&e;<", DOCTYPE)):
        assert "declares a document type" in reason(photo_bytes(xmp=packet.decode().encode(encoding)))


SPOILT = [
    (b"</x:xmpmeta>", b""), (b"</x:xmpmeta>", b"<!-- </x:xmpmeta>"), (b"<?xpacket end", b"\0" * 200 + b"<?xpacket end"),
    (b"</rdf:RDF>", b"\0</rdf:RDF>"), (b"</rdf:RDF>", b"</rdf:RDF"), (b"</rdf:RDF>", b"</rdf:RDF></rdf:RDF>"),
    (b"</rdf:RDF>", b"< /rdf:RDF>"), (b"<rdf:RDF", b"<!-- a -- b --><rdf:RDF"), (b">True<", b">\1<"), (b">True<", b">\xe9<"),
    (b">True<", b">\xe2\x82<"), (b">True<", b">\xed\xa0\x80<"), (b">True<", b">a & b<"), (b">True<", b">&nbsp;<"),
    (b">True<", b">a < b<"), (b">True<", b"><a:b/><"), (b"</GPano:UsePanoramaViewer>", b"</GPano:Use>"),
    (b"</GPano:UsePanoramaViewer>", b""), (b"xmlns:GPano", b"xmlns:other"), (b"about=''", b"about='' rdf:about=''"),
    (b"about=''", b"about=x"), (b"about=''", b"about"), (b"about=''", b"about='"), (b"about='' ", b"about=''"),
]  # fmt: skip
ODD_XMP = [
    None, FLAT, b"", b" \n" * 40, b"equirectangular", DOCTYPE, PANORAMA[: len(PANORAMA) // 2], PANORAMA * 2, PANORAMA + b"text",
    PANORAMA + b"\xff" * 50, *(PANORAMA.decode().encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32")),
    *(f"<?xml version='1.0' encoding='{word}'?>".encode() + PANORAMA for word in ("utf-16", "x-none")),
    b"\n<?xml version='1.0'?>" + PANORAMA * 2, *(spoilt(*pair) for pair in SPOILT),
]  # fmt: skip


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
def test_the_hint_on_a_damaged_or_missing_panorama_mends_it(tmp_path: Path) -> None:
    rejected: dict[str, list[str]] = {}
    for number, packet in enumerate(ODD_XMP):
        (path := tmp_path / f"{number}.jpg").write_bytes(photo_bytes(xmp=packet, thumbnail=THUMBNAIL))
        for problem in mu.check_photo(path).problems:
            rejected.setdefault(re.findall("exiftool .*? FILE", problem.fix)[0], []).append(str(path))
    assert sum(map(len, rejected.values())) == len(ODD_XMP) and len(rejected) == 2
    for command, files in rejected.items():
        subprocess.run([*command.split()[:-1], *files], check=True, capture_output=True, timeout=300)
    assert [path.name for path in tmp_path.glob("*.jpg") if mu.check_photo(path).problems] == []


def test_a_part_of_the_sphere_and_a_missing_heading_are_warned_of() -> None:
    sizeless = re.sub(rb" <GPano:(Full|Cropped).*\n", b"", PANORAMA)
    cases: Any = [
        ({}, False), ({"xmp": sizeless}, False), ({"cropped": (0, 8, 64, 32)}, True), ({"xmp": sizeless, "size": (64, 24)}, True),
        ({"xmp": sizeless, "size": (64, 33)}, True),
    ]  # fmt: skip
    for options, partial in cases:
        photo = checked(photo_bytes(**options))
        assert photo.problems == () and ("part of the sphere" in str(photo.warnings)) is partial
    for heading in ("undef", "", None, math.nan, 0):
        assert ("no heading" in str(checked(made(original_heading=heading)).warnings)) is (heading != 0)


# ---- ImageDescription: Sequence Maker's JSON ----

TEXT = factory.json_bytes(sequence_maker_json())


def test_json_that_only_looks_odd_is_accepted() -> None:
    for text in [
        TEXT + b"\0" * 40, TEXT + b" " * 40, b"\xef\xbb\xbf" + TEXT, TEXT.replace(b"/srv/pano", b"/srv/\xff\xc3"),
        TEXT.replace(b'"Sample"', '"Käméra"'.encode()), TEXT.replace(b'"photo":', b'"photo": 5, "photo":'),
        TEXT.replace(b"1000000.0", b"NaN").replace(b'"original_pitch": ""', b'"original_pitch": -Infinity'),
    ]:  # fmt: skip
        assert reason(photo_bytes(text)) == "", text


def test_what_is_not_sequence_makers_json_is_named_for_what_it_is() -> None:
    for text, expected in [
        (REMOVED, "no ImageDescription"), ("  ", "is empty"), (TEXT + b"}", "damaged at character"), (TEXT + b"x", "is damaged"),
        ("DCIM\\100", "isn't JSON, it begins DCIM"), ("[" * 20_000, "isn't JSON"), ('{"a":' * 10_000, "ImageDescription"),
        (str(sequence_maker_json()), "damaged at character 2"), (TEXT.replace(b'"id"', b"id", 1), "damaged at character 12"),
        (TEXT.replace(b"350", b"3" * 5_000), "ImageDescription"), ({"photo": {}}, "JSON of something else"),
        ({"MAPLatitude": 1, "MAPLongitude": 2, "MAPCaptureTime": "x"}, "already tagged for Mapillary"),
        *[(text, "JSON of something else") for text in ("{}", "[]", "5", '"photo"', "null", "NaN", '{"photo":[],"sequence":{}}')],
    ]:  # fmt: skip
        assert expected in (found := reason(photo_bytes(text))) and "Sequence Maker" in found, (expected, found)
    cases: Any = [
        ({"exif": None}, "no EXIF"), ({"exif": b"MM\0+\0\0\0\x08"}, "no TIFF header"), ({"exif": b"MM\0*"}, "no TIFF header"),
        ({"layout": ("exif", "xmp", "exif2"), "exif2": factory.tiff(b"another")}, "two ImageDescriptions"),
        ({"maker_note": b"M" * 80_000, "description_at": "last"}, "outside the EXIF segment"),
    ]  # fmt: skip
    for options, expected in cases:
        assert expected in (found := reason(photo_bytes(**options))) and "Sequence Maker" in found, (expected, found)


def test_json_cut_anywhere_is_called_cut_off() -> None:
    text = b'{"photo": {"a": [1.5e-3, -2, true, null, NaN, -Infinity, "\\u00e9\\n \xc3\xa9"], "b": {}}, "sequence": {"id": "s"}}'
    for place in range(1, len(text)):
        assert "is cut off" in reason(photo_bytes(text[:place])), text[:place]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_description_of_bytes_is_text_and_one_of_numbers_is_not(order: str) -> None:
    for kind in (1, 2, 7, 129):
        for text in (TEXT, TEXT + b"\0"):
            assert reason(photo_bytes(order=order, extra=[("0th", 0x010E, kind, len(text), text)])) == ""
    for kind in (0, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 128, 130):
        size = factory.TYPE_SIZES.get(kind, 4)
        text = TEXT + b" " * (-len(TEXT) % size)
        assert "not text" in reason(photo_bytes(order=order, extra=[("0th", 0x010E, kind, len(text) // size, text)]))


# ---- its values ----

KEYS = [f"photo.{key}" for key in sequence_maker_json()["photo"]] + ["photo", "sequence", "sequence.id"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_field_gives_a_reason_or_a_description_of_finite_numbers(key: str, value: Any) -> None:
    record = sequence_maker_json()
    *above, last = key.split(".")
    (record[above[0]] if above else record)[last] = value
    document = toured({"a.jpg": photo_bytes(json.dumps(record).encode())}).document()
    assert bool(document["photos"][0]["description"]) is (document["photos"][0]["state"] != "rejected")
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_counts_as_absent(number: str) -> None:
    def with_value(key: str, value: str) -> tuple[list[str], object]:
        text = json.dumps(sequence_maker_json({key: "HERE"})).replace('"HERE"', value.ljust(len("-Infinity")))
        photo = toured({"a.jpg": photo_bytes(text)}).document()["photos"][0]
        return [problem.partition(" (")[0] for problem in photo["problems"] + photo["warnings"]], photo["description"]

    for key in KEYS:
        assert with_value(key, number) == with_value(key, "null"), key


def test_a_position_is_two_finite_numbers_in_range_and_not_both_zero() -> None:
    good: list[Any] = [(90, 180), (-90, -180), (0, 5), (5, 0), ("51.5", " -1e1 ")]
    bad: list[Any] = [
        (90.000001, 5),
        (-90.000001, 5),
        (5, 180.000001),
        (5, -180.000001),
        (5, math.inf),
        (0, 0),
        (0, "-0.0"),
    ]
    bad += [(value, 5) for value in (True, False, "", "5°", None, REMOVED, [5], math.nan, "nan", 10**400, "1_0", "٥")]
    for number, (latitude, longitude) in enumerate(good + bad):
        found = reason(made(original_latitude=latitude, original_longitude=longitude))
        assert ("no usable position" in found) is bool(found) is (number >= len(good)), (latitude, longitude)
    for photo in (checked(made(original_latitude=91)), checked(b"no JPEG")):
        assert (photo.latitude, photo.longitude) == (0, 0)  # nobody takes it for a place


def test_a_sequence_id_is_letters_digits_hyphens_and_underscores() -> None:
    for value in ("", "a b", "a/b", "ä", "a.b", "a\n", 5, None, True, ["a"], REMOVED):
        assert "no usable sequence id" in reason(photo_bytes(sequence_maker_json({"sequence.id": value}))), value
    assert reason(photo_bytes(sequence_maker_json({"sequence.id": "Az_09-"}))) == ""


# ---- capture times ----


class At(mu.Run):
    """A call made at a certain time."""

    def __init__(self, now: str) -> None:
        super().__init__()
        self.clock = type("Stopped", (mu.Clock,), {"now": lambda _: mu.from_iso(now)})()


def test_a_capture_time_lies_between_2000_and_tomorrow() -> None:
    for now, time, expected in [
        ("2026-11-25T12:00:00Z", "2000:01:01 00:00:00Z", "()"), ("2026-11-25T12:00:00Z", "2026:11:26 12:00:00Z", "()"),
        ("2026-11-25T12:00:00Z", "1999:12:31 23:59:59.999Z", "camera's clock set?"),
        ("2026-11-25T12:00:00Z", "2026:11:26 12:00:00.001Z", "camera's clock set?"),
        ("2025-12-31T23:59:59Z", "2026:06:01 12:00:00Z", "this machine's clock says 2025-12-31"),
        ("2026-01-01T00:00:00Z", "2026:06:01 12:00:00Z", "camera's clock set?"),
        ("2025-12-31T23:59:59Z", "1999:06:01 12:00:00Z", "camera's clock set?"),
    ]:  # fmt: skip
        (photo,) = toured({"a.jpg": made(original_GPSDateTime=time)}, At(now)).photos
        assert expected in str(photo.problems), (now, time)


WRITTEN: dict[object, str] = {
    "2020:04:16 10:24:34Z": "16_10_24_34_000", "2020:04:16 10:24:34": "16_10_24_34_000",
    "2020-04-16T10:24:34.5Z": "16_10_24_34_500", "2020-04-16 10:24:34,0679": "16_10_24_34_067",
    "2020:04:16 10:24:34.999999z": "16_10_24_34_999", "2020:04:16 10:24:34+02:00": "16_08_24_34_000",
    "2020:04:16 10:24:34 -0330": "16_13_54_34_000", "2020:04:16 10:24:34+14": "15_20_24_34_000",
    " 2020:04:30 23:59:59Z ": "30_23_59_59_000", "2020:04:31 10:24:34Z": "", "2020:04:16 24:00:00Z": "", "10:24:34": "",
    **{f"2020:04:16 10:24:34{zone}": "" for zone in ("+14:01", "-14:01", "+02:60", "+2", "CET", "+")},
    "2020:04:16 10:60:00Z": "", "0000:00:00 00:00:00": "", "2020:04:16": "", "": "", None: "", 1587032674: "", REMOVED: "",
}  # fmt: skip


@pytest.mark.parametrize(("written", "sent"), WRITTEN.items())
def test_times_are_read_in_the_forms_of_exif_and_iso_8601(written: object, sent: str) -> None:
    tour = toured({"a.jpg": made(original_GPSDateTime=written)})
    assert times(tour) == ([f"2020_04_{sent}"] if sent else [])
    assert ("no usable capture time" in str(tour.photos[0].problems)) is not bool(sent)


METHODS = dict.fromkeys(("timegps", "GPS", "GPSDateTime", "filename"), "10")
METHODS |= dict.fromkeys(("timecapture", "originalDateTime"), "12")


@pytest.mark.parametrize("method", [*METHODS, "video", "", 5])
def test_the_clock_is_the_one_that_sequence_maker_used_and_the_other_never_a_fallback(method: str) -> None:
    clocks = {"original_GPSDateTime": "2020:01:01 10:00:00", "original_originalDateTime": "2020:01:01 12:00:00+00:00"}
    tour = toured({"a.jpg": made(cli_connection_method=method, **clocks)})
    assert [time[11:13] for time in times(tour)] == ([METHODS[method]] if method in METHODS else [])
    own = [*clocks][METHODS.get(method) == "12"]
    found = reason(made(cli_connection_method=method, **{**clocks, own: ""}))
    clock = {"10": "nothing as GPS time", "12": "nothing as camera time", None: "as the clock that it used"}
    assert "no usable capture time" in found and clock[METHODS.get(method)] in found


# ---- zones: never guessed ----


def by_camera(*clocks: str, sequence: str = "s", **exif: str | None) -> dict[str, bytes]:
    """Photos of a sequence tagged by camera time; each of "camera's time / GPS time", of 2021:07:29 unless it says else."""
    photos = {}
    for index, text in enumerate(clocks):
        camera, gps = (time if time[4:5] == ":" else f"2021:07:29 {time}" for time in text.split(" / "))
        known = {"original_originalDateTime": camera, "original_GPSDateTime": gps}
        changes = {f"photo.{key}": value for key, value in known.items()} | {"photo.id": f"{sequence}{index}"}
        record = sequence_maker_json(changes | {"sequence.id": sequence, "photo.cli_connection_method": "timecapture"})
        photos[f"{sequence}{index}.jpg"] = photo_bytes(record, **exif)
    return photos


def test_a_cameras_zone_is_written_or_exifs_or_given_or_its_distance_from_gps_time() -> None:
    for written, exif, option, sent in [
        ("+05:00", "+03:00", 120, "06_00"), ("-05:00", "+03:00", 120, "16_00"), ("", "+03:00", 120, "08_00"),
        ("", "-03:30", None, "14_30"), ("", None, 60, "10_00"), ("", "+14:30", 60, "10_00"), ("", "  :  ", None, "10_00"),
        ("", "2021", None, "10_00"), ("", None, None, "10_00"),
    ]:  # fmt: skip
        tour = toured(by_camera(f"11:00:00{written} / 10:00:00Z", offset_time_original=exif), utc_offset=option)
        assert held(tour) == "" and times(tour) == [f"2021_07_29_{sent}_00_000"], (written, exif, option)


def test_a_zone_that_lies_partly_outside_exif_counts_for_nothing() -> None:
    text = factory.description_text(by_camera("11:00:00 / 10:00:00Z")["s0.jpg"])
    for zone, sent in ((b"+02:00\0", "09_00"), (b"+02:00", "10_00"), (b"+02", "10_00")):
        block = struct.pack(">4sIHHHIIHHIII", b"MM\0*", 8, 2, 0x010E, 2, len(text), 56, 0x8769, 4, 1, 38, 0)
        block += struct.pack(">HHHIII", 1, 0x9011, 2, 7, 56 + len(text), 0) + text + zone
        assert times(toured({"a.jpg": photo_bytes(exif=block)})) == [f"2021_07_29_{sent}_00_000"], zone


def test_clocks_tell_the_zone_within_ten_minutes_of_a_half_hour_up_to_fourteen() -> None:
    for gps, sent in {
        "10:00:00Z": "29_10_00", "10:10:00Z": "29_10_00", "09:50:00Z": "29_10_00", "05:30:00Z": "29_05_30", "16:00:00Z": "29_16_00",
        "11:00:00+02:00": "29_09_00", "2021:07:28 21:00:00Z": "28_21_00", "2021:07:30 01:00:00Z": "30_01_00",
        "10:00:00Z, 10:00:30Z, 07:13:00Z": "29_10_00", "10:00:00Z, , ": "29_10_00",  # the median
        "10:10:01Z": "", "09:49:59Z": "", "2021:07:28 20:30:00Z": "", "2021:07:30 01:30:00Z": "", "2016:01:01 00:00:00Z": "", "-": "",
    }.items():  # fmt: skip
        photos = by_camera(*(f"11:00:00 / {time}" for time in gps.split(", ")))
        tour = toured(photos)
        if sent:
            assert held(tour) == "" and all(time[8:16] == sent for time in times(tour)), gps
        else:
            assert "--utc-offset (+00:00 for UTC)" in held(tour) and tour.photos[0].state == "held" and tour.code == 3
            assert held(toured(photos, utc_offset=-60)) == "", gps


def test_a_zone_that_contradicts_the_clocks_holds_the_sequence_back() -> None:
    photos = by_camera("11:00:00 / 10:00:00Z", "11:00:02 / 10:04:00Z")
    assert "another zone than --utc-offset" in held(toured(photos, utc_offset=120, skip_invalid=True))
    assert held(toured(photos, utc_offset=60)) == "" and "(+1 h)" in held(toured(photos, utc_offset=0))
    assert "0.8 h apart" in held(toured(by_camera("11:00:00 / 10:10:01Z")))


def test_a_sequence_in_which_only_some_photos_tell_their_zone_stays_in_order() -> None:
    photos = by_camera("11:00:00 / 09:00:00Z", "11:00:02 / 09:00:02Z", "11:00:04 / 09:00:00Z")
    photos["s0.jpg"] = by_camera("11:00:00 / 09:00:00Z", offset_time_original="+02:00")["s0.jpg"]
    assert [time[11:19] for time in times(toured(photos))] == ["09_00_00", "09_00_02", "09_00_04"]


def test_each_sequence_has_the_zone_of_its_own_clocks_and_a_single_photo_none() -> None:
    clocks = {"a": "11:00:00 / 10:00:00Z", "b": "11:00:00 / 03:00:00Z", "c": "11:00:00 / 2000:01:01 00:00:00Z"}
    photos = {file: data for name in clocks for file, data in by_camera(clocks[name], sequence=name).items()}
    tour = toured(photos)
    assert [time[11:13] for time in times(tour)[:2]] == ["10", "03"]
    assert [sequence.state for sequence in tour.sequences] == ["ready", "ready", "held"]
    assert "zone" in str(checked(photos["a0.jpg"]).warnings) and checked(photos["a0.jpg"]).problems == ()
    assert checked(photos["a0.jpg"], utc_offset=60).warnings == checked(photo_bytes()).warnings == ()


def test_sub_seconds_are_a_camera_times_decimals_where_it_has_none() -> None:
    for digits, decimals, sent in [
        ("5", "", "500"), ("05", "", "050"), ("12ab", "", "120"), ("1239", "", "123"), ("  ", "", "000"), ("", "", "000"),
        ("x5", "", "000"), (None, "", "000"), ("9", ".25", "250"), ("9", ".0", "000"),
    ]:  # fmt: skip
        photos = by_camera(f"11:00:00{decimals} / 10:00:00Z", sub_sec_time_original=digits)
        assert times(toured(photos)) == [f"2021_07_29_10_00_00_{sent}"], digits
        assert times(toured({"a.jpg": photo_bytes(sub_sec_time_original=digits)}))[0].endswith("54_000")  # by GPS


# ---- legs ----


def walk(*stops: tuple[float, float], sequence: str = "s", east: bool = False) -> dict[str, bytes]:
    """Photos so many metres north (or east) of the start, so many seconds after it."""
    photos = {}
    for index, (metres, seconds) in enumerate(stops):
        time = factory.format_time(factory.parse_time(factory.START) + timedelta(seconds=seconds)) + "Z"
        place = {"latitude": 51.0, "longitude": 0.0}
        place["longitude" if east else "latitude"] += metres / 111_195.08 / (math.cos(math.radians(51)) if east else 1)
        known: dict[str, Any] = {f"photo.original_{name}": degrees for name, degrees in place.items()}
        known |= {"photo.original_GPSDateTime": time}
        record = sequence_maker_json({**known, "photo.id": f"{sequence}{index}", "sequence.id": sequence})
        photos[f"{sequence}{index}.jpg"] = photo_bytes(record, picture=f"{sequence}{index}")
    return photos


def test_over_400_kmh_more_than_a_kilometre_is_held_back_and_less_warned_of() -> None:
    for metres, seconds, verdict in [
        (110, 1, "fine"), (113, 1, "warned"), (999.8, 1, "warned"), (1_000.2, 1, "held"),  # 396, 407, 3,599, 3,601 km/h
        (995, 0, "warned"), (110, 0, "fine"), (110, 0.2, "fine"), (1_005, 0.2, "held"),  # counted as 1 s at least
        (1_105, 10, "fine"), (1_120, 10, "held"), (995, 8, "warned"), (557_000, 2, "held"), (557_000, 5_100, "fine"),
    ]:  # fmt: skip
        for east in (False, True) if metres < 2_000 else (False,):  # further off a parallel is no shortest way
            tour = toured(walk((0, 0), (metres, seconds), east=east))
            found = ("400 km/h" in held(tour), "fast leg" in str(warned(tour)), tour.code)
            assert found == (verdict == "held", verdict == "warned", 3 if verdict == "held" else 0), (metres, seconds)
            assert verdict == "fine" or f"{metres:,.0f} m from s0.jpg to s1.jpg" in held(tour) + str(warned(tour))
            assert "more)" not in held(tour)


def test_first_fixes_hundreds_of_kilometres_off_hold_their_sequence_back_and_the_noise_of_gps_none() -> None:
    for count in (1, 2):
        stops = [(557_000.0 if index < count else 3.0 * index, 2.0 * index) for index in range(20)]
        tour = toured(walk(*stops) | walk((0, 0), (3, 2), sequence="other"), skip_invalid=True)
        assert [sequence.state for sequence in tour.sequences] == ["ready", "held"] and "556,99" in held(tour)
    assert "; 1 more)" in held(toured(walk((0, 0), (557_000, 2), (3, 4))))
    chance = random.Random(1)
    slow = [(8.3 * second + chance.uniform(51, 150) * (second % 100 == 7), second) for second in range(400)]  # 30 km/h
    burst = [(2.0 * index, index // 5) for index in range(60)]  # 5 fps, times in whole seconds
    stale = [(36.1 * (second - second % 4), second) for second in range(60)]  # 130 km/h, a fix every 4 s
    assert [held(toured(walk(*stops))) for stops in (slow, burst, stale)] == ["", "", ""]


def test_what_is_held_back_is_not_sent_and_the_rest_is_with_skip_invalid(sandbox: Sandbox, tmp_path: Path) -> None:
    photos = walk((0, 0), (557_000, 2), sequence="leap") | walk((0, 0), (3, 2), sequence="good")
    photos |= by_camera("11:00:00 / 2016:01:01 00:00:00Z", sequence="clock")
    folder = factory.write_tour(tmp_path / "tour", photos)
    zone = ["--utc-offset", "+01:00"]
    for options, arrived in (([], []), (["--skip-invalid"], ["good"]), (["--skip-invalid", *zone], ["good", "clock"])):
        result = upload(folder, sandbox, *options, "--min-age", "0")
        assert result.code == 3 and "400 km/h" in result.out
        assert ("--utc-offset (+00:00" in result.out) is (zone[1] not in options)
        assert [cluster.photos[0].description["MAPSequenceUUID"] for cluster in sandbox.clusters] == arrived
    assert sandbox.published[-1].description["MAPCaptureTime"] == "2021_07_29_10_00_00_000"


# ---- connections ----

FIRST, SECOND, THIRD = (f"GS000{number}_calculated.jpg" for number in (1, 2, 3))


def test_a_missing_neighbour_is_warned_of_and_a_rejected_one_called_so(sandbox: Sandbox, tmp_path: Path) -> None:
    bogus = {"photo.connections.null": {"distance_mtrs": 0}}
    photos = tour(5, changes={0: bogus, 3: {"photo.original_latitude": 91}, 4: bogus})
    second = factory.description_of(photos.pop(SECOND))["photo"]["id"]
    found = warned(toured(photos, min_age=0))
    assert "isn't here" in found[FIRST] and second in found[FIRST] and "isn't here" in found[THIRD]
    assert "rejected (GS0004_calculated.jpg)" in found["GS0005_calculated.jpg"] and len(found) == 3
    folder = factory.write_tour(tmp_path / "tour", tour(2))
    assert upload_here(folder, sandbox).code == 0
    for path in folder.glob("*.jpg"):
        path.unlink()
    factory.write_tour(folder, {THIRD: tour(3)[THIRD]})
    assert warned(mu.check_folder(folder)) == {}  # its neighbour is published


# ---- plans ----


def test_photos_are_grouped_by_sequence_and_ordered_by_time_then_by_natural_order_of_names() -> None:
    burst = tour(3, step_s=0, names=["IMG_10.jpg", "IMG_9.jpg", "IMG_2b.jpg"], sequence_id="burst")
    early = tour(1, names="zz.jpg", start="2021:07:29 09:16:53Z", sequence_id="burst", every={"photo.id": "early"})
    planned = toured(burst | early | tour(1, names="A.jpg", start="2020:01:01 00:00:00Z", sequence_id="a")).sequences
    files = {sequence.uuid: [photo.file for photo in sequence.photos] for sequence in planned}
    assert files == {"a": ["A.jpg"], "burst": ["zz.jpg", "IMG_2b.jpg", "IMG_9.jpg", "IMG_10.jpg"]}


def test_equal_times_are_spread_to_the_next_photo_or_the_end_of_the_second() -> None:
    for taken, sent in [
        ([1000] * 5, [1000, 1200, 1400, 1600, 1800]), ([1000, 1000, 1500], [1000, 1250, 1500]), ([1900, 1900], [1900, 1950]),
        ([1000, 1000, 5000], [1000, 1500, 5000]), ([999] * 4, [999, 1000, 1001, 1002]), ([998] * 3 + [999], [998, 999, 1000, 1001]),
    ]:  # fmt: skip
        assert mu.spread(taken) == sent


@given(st.lists(st.integers(0, 3000), max_size=60).map(sorted))
def test_sent_times_always_increase_and_never_go_back(taken: list[int]) -> None:
    sent = mu.spread(taken)
    assert len(sent) == len(taken) and all(a < b for a, b in zip(sent, sent[1:]))
    assert all(a <= b for a, b in zip(taken, sent)) and (len(set(taken)) < len(taken) or sent == taken)


@pytest.mark.parametrize(("size", "limit"), [((64, 32), 1_000), ((10_000, 10_000), 60)])
def test_a_sequence_is_cut_at_1000_photos_and_6_gigapixels(size: factory.Size, limit: int) -> None:
    photos = tour(limit + 1, sof_size=size, sequence_id="s", names="{:04}.jpg")
    other = tour(1, sequence_id="s_2", start="2021:07:30 09:00:00Z")
    parts = [part for part in toured(photos | other).sequences if part.uuid != "s_2"]
    assert [(part.uuid, len(part.photos)) for part in parts] == [("s_1", limit), ("s_3", 1)]  # s_2 is another one's
    assert [photo.file for part in parts for photo in part.photos] == [*photos]
    *_, last = photos
    far = factory.changed(factory.description_of(photos.pop(last)), {"photo.original_latitude": 52.0})
    assert [(part.uuid, len(part.photos)) for part in toured(photos, min_age=0).sequences] == [("s", limit)]
    leap = toured(photos | {last: photo_bytes(far, sof_size=size)})
    assert [(len(part.photos), part.state) for part in leap.sequences] == [(limit, "held"), (1, "held")]


@example([100_000_000] * 121)
@given(st.lists(st.integers(1, 100_000_000), min_size=1, max_size=200))
def test_no_photo_is_lost_or_repeated_and_no_part_is_cut_early(pixels: list[int]) -> None:
    photos = [mu.Photo(str(index), pixels=count) for index, count in enumerate(pixels)]
    parts = mu.cut(photos)
    sums = [sum(photo.pixels for photo in part) for part in parts]
    assert [photo for part in parts for photo in part] == photos and max(sums) <= 6_000_000_000
    assert all(total + following[0].pixels > 6_000_000_000 for total, following in zip(sums, parts[1:]))


NAMES = st.sets(st.sampled_from(["s", *(f"s_{n}" for n in range(1, 6)), "other", "s_x"]))


@given(settled=NAMES, others=NAMES, count=st.integers(1, 4))
def test_parts_take_free_names_beside_those_that_are_published(settled: set[str], others: set[str], count: int) -> None:
    names = mu.part_names("s", count, {*settled, *others, "s"}, settled)
    if count == 1 and not settled - {"other", "s_x"}:
        assert names == ["s"]
    else:
        free = [f"s_{n}" for n in range(2 if "s" in settled else 1, 20) if f"s_{n}" not in settled | others]
        assert names == free[:count]


# ---- damage ----

VERDICTS = SHARED_PHOTOS / "verdicts.json"


@pytest.mark.skipif(not VERDICTS.exists(), reason="the real photos are not here")
def test_each_odd_photo_gets_its_verdict_with_a_reason() -> None:
    verdicts = {name: entry["verdict"] for name, entry in json.loads(VERDICTS.read_bytes()).items()}
    photos = {name: mu.check_photo(SHARED_PHOTOS / "bad" / name) for name in verdicts}
    assert len(photos) == 241 and all(len(str(problem)) > 15 for photo in photos.values() for problem in photo.problems)
    words = {"rejected": ("reject", "either"), "ready": ("accept", "either")}
    assert [name for name, photo in photos.items() if verdicts[name] not in words[photo.state]] == []


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The photo with some bytes of its first 64 KB changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(min(len(changed), 65_536) or 1), chance.randint(1, 40)
        old = changed[at : at + length]
        news = (chance.randbytes(1) + old[1:], b"", old * 2, chance.randbytes(length) + old)
        changed[at : at + length] = chance.choice(news)
    return bytes(changed)


@pytest.mark.parametrize("order", ["<", ">"])
def test_damage_ends_in_a_reason_or_in_bytes_to_send_and_never_in_an_exception(order: str, tmp_path: Path) -> None:
    whole = photo_bytes(order=order, thumbnail=THUMBNAIL, maker_note=b"note" * 50)
    chance, path = random.Random(f"seed {order}"), tmp_path / "a.jpg"
    for _ in range(1_500):
        path.write_bytes(mutated(whole, chance))
        if not mu.check_photo(path).problems:
            tour = mu.check_folder(tmp_path)
            assert held(tour) or b"".join(mu.sent_bytes(tmp_path, tour.photos[0]))
            json.dumps(tour.document(), allow_nan=False)


def test_odd_names_and_photos_cause_no_traceback_and_no_warning_of_a_library(tmp_path: Path) -> None:
    names = [b"-a b'\".jpg", b"new\nline.jpg", b"\xff\xfe.jpg", b"e\xcc\x81.jpg", b"\xc3\xa9.jpg", b"n" * 251 + b".jpg"]
    for name, data in zip(names, tour(len(names)).values()):
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    assert run("-d", tmp_path, "--dry-run").code == 0
    chance = random.Random("odd")
    for number in range(100):
        (tmp_path / f"{number}.jpg").write_bytes(mutated(photo_bytes(picture=str(number)), chance))
    result = run("-d", tmp_path, "--dry-run", "-v")
    assert result.code == 3 and not re.search("Traceback|Warning:|unexpected", result.out + result.err)
