"""README, "What Mapillary gets": the description key by key, and that nothing else of a photo changes in what is sent."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

import factory
import mapillary_uploader as mu
from factory import REMOVED, photo_bytes, sequence_maker_json
from sandbox import Sandbox
from support import SHARED_PHOTOS, environment, upload, upload_here

needs_photos = pytest.mark.skipif(not SHARED_PHOTOS.exists(), reason="the real photos are not here")
needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")


def described(data: bytes, file: str = "photo.jpg") -> tuple[dict[str, Any], bytes]:
    """The description of a photo alone in its folder, and the bytes that are sent; an AssertionError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        tour = mu.check_folder(factory.write_tour(Path(folder), {file: data}))
        (photo,) = tour.photos
        assert photo.state == "ready", photo.problems or tour.sequences[0].problems
        return mu.description_of(photo), b"".join(mu.sent_bytes(folder, photo))


def reason(data: bytes) -> str:
    """Why the photo is rejected; "" if it passes."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "photo.jpg")).write_bytes(data)
        return "; ".join(map(str, mu.check_photo(path).problems))


def with_field(data: bytes, tag: int, place: int, value: int) -> bytes:
    """The photo with another number at a place of an entry of IFD0: its type's, count's or offset's."""
    order = "<" if b"II*\0" in data[:60] else ">"
    at, size = factory.slot_of(data, tag).entry_offset + place, 2 if place == 2 else 4
    return data[:at] + struct.pack(order + ("H" if size == 2 else "I"), value) + data[at + size :]


# ---- the description, key by key ----


def test_the_heading_is_the_cameras_or_towards_the_next_photo_or_away_from_the_last() -> None:
    cases: Any = [
        (350, {}, 350.0), (-10.5, {}, 349.5), (450, {}, 90.0), (359.9999, {}, 0.0), ("123.4", {}, 123.4), (0, {}, 0.0),
        (-0.0001, {}, 0.0), ("", {}, None), ("undef", {"b": (5, 80)}, 80.0), (None, {"a": (-5, 30)}, 210.0),
        ("", {"a": (-5, 30), "b": (5, 80), "c": (6, 90)}, 80.0), (None, {"a": (-5, 200)}, 20.0), (None, {"null": (5, 80)}, None),
        (None, {"b": (0, 80)}, None), (math.nan, {"b": (math.nan, 80), "c": (5, math.inf), "d": (5, "12.5")}, 12.5),
        (True, {"b": (math.inf, 80)}, None),
    ]  # fmt: skip
    for own, legs, heading in cases:
        connections = {
            key: {"distance_mtrs": metres, "heading_deg": degrees} for key, (metres, degrees) in legs.items()
        }
        changes = {"photo.original_heading": own, "photo.connections": connections}
        description, _ = described(photo_bytes(sequence_maker_json(changes)))
        expected = None if heading is None else {"TrueHeading": heading, "MagneticHeading": heading}
        assert description.get("MAPCompassHeading") == expected, (own, legs)


def test_position_altitude_camera_and_orientation_are_as_sequence_maker_and_exif_have_them() -> None:
    cases: Any = [
        ("latitude", 51.52944174, "MAPLatitude", 51.5294417), ("latitude", "-0.00000001", "MAPLatitude", 0.0),
        ("longitude", " 179.99999996 ", "MAPLongitude", 180.0), ("altitude", -3.0006, "MAPAltitude", -3.001),
        ("altitude", "12.3456", "MAPAltitude", 12.346), ("altitude", 0, "MAPAltitude", 0.0), ("altitude", -0.0001, "MAPAltitude", 0.0),
        *[("altitude", value, "MAPAltitude", None) for value in ("", "undef", None, True, math.nan, math.inf, REMOVED, [1])],
        ("camera_make", "", "MAPDeviceMake", None), ("camera_make", " \0 ", "MAPDeviceMake", None),
        ("camera_make", 360, "MAPDeviceMake", "360"), ("camera_make", math.nan, "MAPDeviceMake", None),
        ("camera_model", "Käméra \ud800", "MAPDeviceModel", "Käméra \ufffd"), ("camera_model", None, "MAPDeviceModel", None),
    ]  # fmt: skip
    for key, value, name, expected in cases:
        description, sent = described(photo_bytes(sequence_maker_json({f"photo.original_{key}": value})))
        assert description.get(name) == expected and factory.description_text(sent).isascii(), (key, value)
        assert b":-0.0," not in factory.description_text(sent)
    for orientation in (*range(10), None):
        description, _ = described(photo_bytes(orientation=orientation))
        assert description["MAPOrientation"] == (orientation if orientation in range(1, 9) else 1)


def test_a_description_holds_these_keys_and_neither_path_nor_account() -> None:
    data = photo_bytes()
    description, sent = described(data, "A_calculated.jpg")
    assert description == {
        "MAPAltitude": 92.86, "MAPCaptureTime": "2021_07_29_09_16_54_000", "MAPDeviceMake": "Sample", "MAPDeviceModel": "Panorama 1",
        "MAPCompassHeading": {"TrueHeading": 350, "MagneticHeading": 350}, "MAPFilename": "A_calculated.jpg", "MAPLatitude": 51.5294417,
        "MAPLongitude": -0.1538283, "MAPOrientation": 1, "MAPSequenceUUID": factory.identifier("sequence"),
    }  # fmt: skip
    text = json.dumps(description, sort_keys=True, separators=(",", ":")).encode()
    assert factory.description_text(sent) == text + b"\0"
    assert b"/srv" in data and b"/srv" not in sent


def expected(record: Mapping[str, Any]) -> dict[str, Any]:
    """The description of one of Sequence Maker's photos but its capture time and orientation, computed anew."""
    photo = record["photo"]
    legs = [leg for key, leg in photo["connections"].items() if key != "null" and math.isfinite(leg["distance_mtrs"])]
    headings = [photo["original_heading"]] if isinstance(photo["original_heading"], (int, float)) else []
    headings += [leg["heading_deg"] for leg in legs if leg["distance_mtrs"] > 0]
    headings += [leg["heading_deg"] + 180 for leg in legs if leg["distance_mtrs"] < 0]
    return {
        "MAPLatitude": round(photo["original_latitude"], 7), "MAPLongitude": round(photo["original_longitude"], 7),
        "MAPAltitude": round(photo["original_altitude"], 3), "MAPSequenceUUID": record["sequence"]["id"],
        "MAPDeviceMake": str(photo["original_camera_make"]), "MAPDeviceModel": str(photo["original_camera_model"]),
        "MAPCompassHeading": round(headings[0] % 360, 3) % 360 if headings else None,
    }  # fmt: skip


def compare(folder: Path, zone_h: float) -> int:
    """Compare each photo of a folder with what it should be described as; how many that were."""
    sequences = mu.check_folder(folder).sequences
    for sequence in sequences:
        previous, taken = "", Counter(photo.taken_at for photo in sequence.photos)
        for photo in sequence.photos:
            got, record = mu.description_of(photo), factory.description_of((folder / photo.file).read_bytes())
            camera = record["photo"]["cli_connection_method"] == "timecapture"
            clock = record["photo"]["original_originalDateTime" if camera else "original_GPSDateTime"]
            sent = datetime.strptime(got["MAPCaptureTime"] + "000", "%Y_%m_%d_%H_%M_%S_%f")
            late = sent - factory.parse_time(clock) + timedelta(hours=zone_h * camera)
            assert not late or (taken[photo.taken_at] > 1 and timedelta() < late < timedelta(seconds=1))
            assert previous < (previous := got["MAPCaptureTime"])
            found = got.pop("MAPCompassHeading", {"TrueHeading": None})["TrueHeading"]
            assert {**got, "MAPCompassHeading": found}.items() >= expected(record).items()
            assert got["MAPFilename"] == photo.file and sequence.problems == []
    return sum(len(sequence.photos) for sequence in sequences)


MADE: list[dict[str, Any]] = [
    {},
    {"method": "timecapture", "zone_h": -3.5},
    {"step_s": 0.25},
    {"step_s": 0, "spacing": 0},
]


@pytest.mark.parametrize("options", MADE)
def test_each_photo_of_a_made_tour_is_described_as_sequence_maker_has_it(
    options: dict[str, Any], tmp_path: Path
) -> None:
    assert compare(factory.write_tour(tmp_path, factory.tour(9, **options)), -3.5) == 9


@needs_photos
def test_each_photo_of_a_real_tour_is_described_as_sequence_maker_has_it() -> None:
    assert sum(compare(folder, 1) for folder in (SHARED_PHOTOS / "tours").iterdir()) == 75  # one is a copy


# ---- no other byte changes ----

THUMBNAIL = factory.encoded((64, 32))
BARE = THUMBNAIL[:2] + THUMBNAIL[20:]  # without JFIF


def directory_last(offset: int = 8) -> bytes:
    """A TIFF block whose description begins at `offset`, before its directory; the directory's offset ends in a space."""
    text = factory.json_bytes(sequence_maker_json())
    place = (8 + len(text)) // 256 * 256 + 256 + 32
    directory = struct.pack(">HHHIII", 1, factory.IMAGE_DESCRIPTION, 2, len(text), offset, 0)
    return b"MM\0*" + struct.pack(">I", place) + text.ljust(place - 8, b"\0") + directory


LAYOUTS: dict[str, dict[str, Any]] = {
    "big-endian": {}, "little-endian": {"order": "<"}, "XMP first": {"layout": ("xmp", "exif")},
    "JFIF, fill bytes": {"layout": ("jfif", "fill", "exif", "xmp")}, "description last": {"description_at": "last"},
    "MakerNote": {"maker_note": factory.noise(3000)}, "EXIF near 64 KB": {"maker_note": factory.noise(60_000)},
    "EXIF over 64 KB": {"maker_note": factory.noise(80_000)},
    "directory last": {"exif": directory_last()}, "two EXIF": {"layout": ("exif", "xmp", "exif2"), "exif2": factory.tiff()},
    "thumbnail": {"thumbnail": THUMBNAIL}, "second image": {"second_image": THUMBNAIL}, "padding": {"pad_to": 60_000},
    "motion photo": {"trailer": b"\0\0\0\x18ftypmp42" + b"\0" * 3000}, "SceneType as BYTE": {"extra": [("exif", 0xA301, 1, 1, b"\1")]},
    "GPS 0xD000": {"extra": [("gps", 0xD000, 2, 6, b"extra\0")]}, "tag above GPS": {"extra": [("0th", 0xC4A5, 7, 8, b"PrintIM\0")]},
    **{kind: {"kind": kind} for kind in factory.KINDS},
}  # fmt: skip


@pytest.mark.parametrize("kind", [1, 2, 7, 129])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_slot_and_the_type_and_count_of_its_entry_change(layout: str, kind: int) -> None:
    data = with_field(photo_bytes(**LAYOUTS[layout]), factory.IMAGE_DESCRIPTION, 2, kind)
    description, sent = described(data)
    entry, value, size = factory.slot_of(data)
    changed = {at for at, (old, new) in enumerate(zip(data, sent)) if old != new}
    assert len(sent) == len(data) and changed <= {*range(entry + 2, entry + 8), *range(value, value + size)}
    text = factory.description_text(sent)
    assert sent[entry + 2 : entry + 8] in (struct.pack(order + "HI", 2, len(text)) for order in "<>")
    assert json.loads(text[:-1]) == description and not any(sent[value + len(text) - 1 : value + size])


RECORD: dict[str, Any] = {
    "photo": {"original_latitude": 1, "original_longitude": 2, "original_heading": 1.25, "original_altitude": 3,
              "cli_connection_method": "gps", "original_GPSDateTime": "2020:01:01 00:00:00Z"},
    "sequence": {"id": "s"},
}  # fmt: skip
SHORT = json.dumps(RECORD, separators=(",", ":"))  # shorter than any description of it


@pytest.mark.parametrize("camera", [{}, {"photo.original_camera_make": "a", "photo.original_camera_model": "b" * 99}])
def test_a_description_leaves_out_the_file_name_then_the_camera_to_fit_its_slot_to_the_last_byte(camera: Any) -> None:
    text, name = json.dumps(factory.changed(RECORD, camera), separators=(",", ":")), f"{'n' * 60}.jpg"
    whole, _ = described(photo_bytes(text.ljust(999)), name)
    steps = [whole, {key: whole[key] for key in whole if key != "MAPFilename"}]
    steps += [{key: steps[1][key] for key in steps[1] if key not in ("MAPDeviceMake", "MAPDeviceModel")}]
    lengths = [len(json.dumps(step, separators=(",", ":"))) for step in steps]
    for size in range(len(text) + 1, lengths[0] + 3):
        data = photo_bytes(text.ljust(size - 1))
        description, sent = described(data, name)
        fits = [step for step, length in zip(steps, lengths) if length < size]
        assert description == factory.description_of(sent) == [*fits, whole][0], size
        assert (len(sent) == len(data)) is bool(fits)


# ---- bytes that the slot shares ----


def test_a_slot_that_shares_a_byte_with_another_tag_or_the_thumbnail_is_refused() -> None:
    data = photo_bytes(thumbnail=THUMBNAIL)
    slot, make = factory.slot_of(data), factory.slot_of(data, 0x010F)
    base = data.index(b"MM\0*")
    begin, end = slot.value_offset - base, slot.value_offset + slot.value_size - base
    for offset in (begin - make.value_size, begin - make.value_size + 1, begin + 9, end - 1, end):
        shares = begin - make.value_size < offset < end
        assert ("shares bytes" in reason(with_field(data, 0x010F, 8, offset))) is shares, offset
    for kind, width in (factory.TYPE_SIZES | {13: 4, 129: 1}).items():  # IFD, and Exif 3.0's UTF-8
        typed = with_field(with_field(data, 0x010F, 2, kind), 0x010F, 4, 9)
        for offset, shares in ((begin - 9 * width, False), (begin - 9 * width + 1, True)):
            assert ("shares bytes" in reason(with_field(typed, 0x010F, 8, offset))) is shares, (kind, offset)
    row = data.index(struct.pack(">HHI", 0x0201, 4, 1)) + 8
    for place, size in ((begin - 9, 9), (begin - 9, 10), (begin + 9, 5), (end - 1, 9), (end, 9)):
        moved = data[:row] + struct.pack(">IHHII", place, 0x0202, 4, 1, size) + data[row + 16 :]
        assert ("shares bytes" in reason(moved)) is (begin - size < place < end), (place, size)


def test_a_slot_that_shares_a_byte_with_a_directory_or_the_header_is_refused() -> None:
    text = factory.json_bytes(sequence_maker_json())
    text += b"\0" * (len(text) % 2)
    # EXIF's directory follows
    data = photo_bytes(REMOVED, extra=[("0th", factory.IMAGE_DESCRIPTION, 2, len(text), text)])
    longer = with_field(data, factory.IMAGE_DESCRIPTION, 4, len(text) + 1)
    assert reason(data) == "" and "shares bytes" in reason(longer)
    for length in range(300, 556):  # until the link before the description ends in a byte that may stand before JSON
        data = photo_bytes(text, thumbnail=THUMBNAIL, extra=[("gps", 0x1B, 7, length, b"g" * length)])
        slot = factory.slot_of(data)
        if data[slot.value_offset - 1] in b" \n\r\t":
            break
    longer = with_field(data, factory.IMAGE_DESCRIPTION, 4, slot.value_size + 1)
    longer = with_field(longer, factory.IMAGE_DESCRIPTION, 8, slot.value_offset - data.index(b"MM\0*") - 1)
    assert reason(data) == "" and "shares bytes" in reason(longer)
    assert reason(photo_bytes(exif=directory_last(8))) == ""
    assert "shares bytes" in reason(photo_bytes(exif=directory_last(7)))


# ---- a slot that is too short: EXIF is rewritten ----


def tags_of(data: bytes) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """EXIF as Pillow reads it, but the description and what says where other things stand."""
    exif = Image.open(io.BytesIO(data)).getexif()
    main = {tag: value for tag, value in exif.items() if tag not in (0x010E, 0x8769, 0x8825)}
    return main, exif.get_ifd(0x8769), exif.get_ifd(0x8825)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"thumbnail": BARE}, {"layout": ("jfif", "xmp", "exif")}, {"pad_to": 9_000}])
def test_a_short_slot_is_rewritten_without_harm_to_anything(order: str, options: dict[str, Any]) -> None:
    data = photo_bytes(SHORT, order=order, **options)
    description, sent = described(data)
    assert factory.description_of(sent) == description and description["MAPFilename"] == "photo.jpg"
    assert tags_of(sent) == tags_of(data) and sent.count(BARE) == data.count(BARE)
    before, after = factory.segments(data), factory.segments(sent)
    for old, new in zip(before, after):
        assert old.marker == new.marker and (old.payload == new.payload or b"Exif" in old.payload)
    assert len(before) == len(after) and sent[after[-2].offset :] == data[before[-2].offset :]


@pytest.mark.parametrize(
    "options",
    [
        {"maker_note": b"M" * 100}, {"maker_note": b"M" * 100, "order": "<"},  # its offsets count from the TIFF header
        {"extra": [("exif", 0xEA1D, 9, 1, b"\0\0\0\1")]}, {"extra": [("gps", 0xD000, 2, 6, b"extra\0")]},  # unknown to piexif
        {"extra": [("exif", 0xA301, 1, 1, b"\1")]},  # of another type: piexif fails
        {"extra": [("exif", 0x9286, 99, 5, b"\0\0\0\1")]}, {"extra": [("exif", 0x9003, 2, 0, b"")]},  # of no type, of no size
        {"thumbnail": THUMBNAIL},  # piexif takes its JFIF away
    ],
)  # fmt: skip
def test_where_rewriting_would_change_another_tag_the_photo_is_rejected(options: dict[str, Any]) -> None:
    assert "no room" in reason(photo_bytes(SHORT, **options))


def test_exif_with_tags_out_of_bounds_or_that_would_be_longer_than_a_segment_is_not_rewritten() -> None:
    for text, passes in ((None, True), (SHORT, False)):
        data = photo_bytes(text, thumbnail=BARE)
        assert reason(data) == "" and (reason(with_field(data, 0x0131, 8, 60_000)) == "") is passes
    rest = len(factory.segments(photo_bytes(SHORT))[1].payload) + 12  # bytes; a segment holds 65,533
    for room in (200, 1):
        size = 65_533 - rest - room
        found = reason(photo_bytes(SHORT, extra=[("exif", 0x9286, 7, size, b"u" * size)]))
        assert ("no room" in found) is bool(found) is (room == 1)


# ---- by other programs' reading ----


def exiftool(folder: Path) -> dict[str, dict[str, Any]]:
    """What exiftool reads of each file of a folder but the description, and what tells of the file itself."""
    command = ["exiftool", "-j", "-G1", "-a", "-u", "-n", "-b", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
    rewritten = ("File:ExifByteOrder", "IFD1:ThumbnailOffset")  # what else changes where piexif writes
    left_out = ("SourceFile", "System:", "ExifTool:", "IFD0:ImageDescription", "File:FileSize", *rewritten)
    photos = {Path(tags["SourceFile"]).name: tags for tags in json.loads(done.stdout)}
    return {name: {key: tags[key] for key in tags if not key.startswith(left_out)} for name, tags in photos.items()}


def assert_lossless(photos: Iterable[bytes], tmp_path: Path) -> None:
    """Write each photo as it is and as it is sent, and compare what exiftool reads."""
    for number, data in enumerate(photos):
        factory.write_tour(tmp_path, {f"before/{number}.jpg": data, f"after/{number}.jpg": described(data)[1]})
    old, new = exiftool(tmp_path / "before"), exiftool(tmp_path / "after")
    assert old and [name for name in old if old[name] != new[name]] == []


@needs_exiftool
def test_exiftool_reads_every_other_tag_as_it_was(tmp_path: Path) -> None:
    short = [photo_bytes(SHORT, order=order, thumbnail=BARE) for order in "<>"]
    assert_lossless([*short, *(photo_bytes(**options) for options in LAYOUTS.values())], tmp_path)


@needs_exiftool
@needs_photos
def test_exiftool_reads_every_other_tag_of_real_and_odd_photos_as_it_was(tmp_path: Path) -> None:
    paths = [p for p in sorted(SHARED_PHOTOS.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg") and p.is_file()]
    good = [path.read_bytes() for path in paths if not mu.check_photo(path).problems and "date_gps" not in path.name]
    assert_lossless(good, tmp_path)
    assert len(good) == 164


def test_what_is_sent_passes_the_official_clients_schema_and_reader(sandbox: Sandbox, tmp_path: Path) -> None:
    from mapillary_tools.exif_read import ExifRead
    from mapillary_tools.serializer.description import ImageDescriptionEXIFSchema

    photos = {}
    for number, options in enumerate(LAYOUTS.values()):
        record = sequence_maker_json({"photo.id": str(number), "sequence.id": str(number)})
        photos[f"{number}.jpg"] = photo_bytes(record, picture=str(number), **options)
    folder = factory.write_tour(tmp_path / "tour", photos)
    assert upload(folder, sandbox, "--output", str(tmp_path / "out"), "--min-age", "0").code == 0
    assert {photo.name for photo in sandbox.published} == set(photos) and sandbox.corrupt == []
    for photo in sandbox.published:
        jsonschema.validate(photo.description, ImageDescriptionEXIFSchema)
        before, after = ExifRead(folder / photo.name), ExifRead(tmp_path / "out" / photo.name)
        for name in ("make", "model", "orientation", "lon_lat", "altitude", "capture_time", "width"):
            assert getattr(after, f"extract_{name}")() == getattr(before, f"extract_{name}")()


def test_the_official_client_uploads_to_the_sandbox(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    profile = (
        f"user_upload_token = {sandbox.accounts[0].token}\nMAPSettingsUserKey = 1001\nMAPSettingsUsername = demo\n"
    )
    (tmp_path / "CONFIG_PATH").write_text(f"[demo]\n{profile}")
    places = ("UPLOAD_HISTORY_PATH", "TOOLS_UPLOAD_CACHE_DIR", "CONFIG_PATH")
    env = environment(sandbox, **{f"MAPILLARY_{place}": str(tmp_path / place) for place in places})
    env["MAPILLARY_TOOLS_PROMPT_DISABLED"] = "YES"
    program = [sys.executable, "-c", "from mapillary_tools.commands.__main__ import main; main()", "process_and_upload"]
    command = [*program, "--user_name", "demo", "--desc_path", str(tmp_path / "d.json"), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [len(cluster.photos) for cluster in sandbox.clusters] == [8] and sandbox.corrupt == []


# ---- what is sent is what is shown ----


def test_what_arrives_is_what_is_shown_before_and_the_photos_stay(
    sandbox: Sandbox, folder: Path, tmp_path: Path
) -> None:
    record = {**RECORD, "photo": {**RECORD["photo"], "original_latitude": 3}}
    factory.write_tour(folder, {"short.jpg": photo_bytes(record), "large.jpg": photo_bytes(filler=3_000_000)})
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    tour = mu.check_folder(folder, mu.Settings(min_age=0))
    shown = {photo.file: b"".join(mu.sent_bytes(folder, photo)) for photo in tour.photos}
    assert upload(folder, sandbox, "--output", str(tmp_path / "new/out"), "--min-age", "0").code == 0
    assert shown == {path.name: path.read_bytes() for path in (tmp_path / "new/out").iterdir()} and len(shown) == 10
    assert {bytes(photo.data) for photo in sandbox.published} == {*shown.values()} and sandbox.corrupt == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    for photo in tour.photos:
        for offset in (*range(0, 4_000, 61), 1_048_576, 1_048_577, photo.size - 1, len(shown[photo.file])):
            blocks = [*mu.sent_bytes(folder, photo, offset)]
            assert b"".join(blocks) == shown[photo.file][offset:] and max(map(len, blocks), default=0) <= 1_048_576


def test_a_photo_that_changes_is_not_sent_on(tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path / "large", {"a.jpg": photo_bytes(filler=3_000_000)})
    (photo,) = mu.check_folder(folder).photos
    blocks = mu.sent_bytes(folder, photo)
    assert next(blocks) and next(blocks)
    os.utime(folder / "a.jpg", ns=(0, photo.mtime_ns + 1))
    for rest in (blocks, mu.sent_bytes(folder, photo)):
        with pytest.raises(mu.UploaderError, match="was changed after it was checked"):
            next(rest)
    factory.write_tour(tmp_path / "short", {"b.jpg": photo_bytes(SHORT)})
    (short,) = mu.check_folder(tmp_path / "short").photos
    (tmp_path / "short" / "b.jpg").write_bytes(b"something else")
    with pytest.raises(mu.UploaderError, match="was changed after it was checked"):
        next(mu.sent_bytes(tmp_path / "short", short))
    os.unlink(folder / "a.jpg")
    with pytest.raises(mu.UploaderError, match="no such file"):
        next(mu.sent_bytes(folder, photo))


def test_a_name_that_is_no_valid_text_is_sent_without_what_is_not(sandbox: Sandbox, tmp_path: Path) -> None:
    names = {
        b"\xff\xfe.jpg": "\ufffd\ufffd.jpg",
        "é \U0001f6b2.jpg".encode(): "é \U0001f6b2.jpg",
        b'a\nb".jpg': 'a\nb".jpg',
    }
    for name, data in zip(names, factory.tour(3).values()):
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    assert upload_here(tmp_path, sandbox).code == 0
    assert {photo.name for photo in sandbox.published} == set(names.values())
    document = json.loads(json.dumps(mu.check_folder(tmp_path).document()))
    assert {photo["file"] for photo in document["photos"]} == {
        name.decode("utf-8", "surrogateescape") for name in names
    }
