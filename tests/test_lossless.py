"""What is sent, read by exiftool and by other code: every tag but ImageDescription as it was, the description as it must be."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import factory
import mapillary_uploader as mu
from judging import judged, sent
from support import SHARED_PHOTOS

NOISE = ("SourceFile", "System:", "ExifTool:", "IFD0:ImageDescription", "File:FileSize")
LAYOUTS: dict[str, dict[str, Any]] = {
    "little endian": {"order": "<"},
    "big endian": {"order": ">"},
    "XMP before EXIF": {"layout": ("xmp", "exif")},
    "JFIF first": {"layout": ("jfif", "exif", "xmp")},
    "fill bytes": {"layout": ("fill", "exif", "xmp")},
    "thumbnail": {"thumbnail": factory.encoded((64, 32), "baseline")},
    "MakerNote": {"maker_note": b"GoPro\0" * 200},
    "XPTitle above 0x8825": {"xp_title": b"t\0i\0"},
    "SceneType as BYTE": {"extra": [("exif", 0xA301, 1, 1, b"\1")]},
    "GPS 0xD000": {"extra": [("gps", 0xD000, 2, 6, b"extra\0")]},
    "second image": {"layout": ("exif", "xmp", "mpf")},
    "motion photo": {"trailer": b"\0\0\0\x18ftypmp42" + b"\0" * 3000},
    "padding": {"pad_to": 60_000},
    "progressive": {"kind": "progressive"},
    "CMYK": {"kind": "cmyk"},
    "grayscale": {"kind": "gray"},
}
SHORT = {
    "photo": {
        "original_latitude": 1,
        "original_longitude": 2,
        "original_heading": 1.25,
        "original_altitude": 3,
        "cli_connection_method": "gps",
        "original_GPSDateTime": "2020:01:01 00:00:00Z",
    },
    "sequence": {"id": "s"},
}
SHORT_TEXT = json.dumps(SHORT, separators=(",", ":"))


def exiftool(folder: Path) -> dict[str, dict[str, Any]]:
    """What exiftool reads of each file of a folder, without what tells of the file itself."""
    command = ["exiftool", "-j", "-G1", "-a", "-u", "-n", "-b", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    photos = json.loads(done.stdout)
    return {
        Path(tags["SourceFile"]).name: {name: value for name, value in tags.items() if not name.startswith(NOISE)}
        for tags in photos
    }


def assert_lossless(photos: Iterable[tuple[str, bytes]], tmp_path: Path) -> None:
    """Write each photo as it is and as it is sent, and compare what exiftool reads."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    for name, data in photos:
        (before / name).write_bytes(data)
        (after / name).write_bytes(sent(data))
    old, new = exiftool(before), exiftool(after)
    assert old and old.keys() == new.keys()
    for name in old:
        assert new[name] == old[name], name


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
def test_exiftool_reads_every_other_tag_as_it_was(tmp_path: Path) -> None:
    photos = ((f"{number:02d}.jpg", factory.photo_bytes(**options)) for number, options in enumerate(LAYOUTS.values()))
    assert_lossless(photos, tmp_path)


@pytest.mark.skipif(not (shutil.which("exiftool") and SHARED_PHOTOS.exists()), reason="no exiftool, or no real photos")
def test_exiftool_reads_every_other_tag_of_real_and_odd_photos_as_it_was(tmp_path: Path) -> None:
    paths = [p for p in sorted(SHARED_PHOTOS.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg") and p.is_file()]
    data = [path.read_bytes() for path in paths]
    good = [one for one in data if judged(one).photo]
    assert len(good) > 100
    assert_lossless(((f"{number:03d}.jpg", one) for number, one in enumerate(good)), tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_slot_and_the_count_differ(layout: str) -> None:
    data = factory.photo_bytes(**LAYOUTS[layout])
    entry, value, size = factory.slot_of(data)
    changed = {at for at, (old, new) in enumerate(zip(data, sent(data))) if old != new}
    assert len(sent(data)) == len(data) and changed
    assert changed <= {*range(entry + 4, entry + 8), *range(value, value + size)}


def rewrites(data: bytes) -> bool:
    """Whether the photo passes by having its EXIF segment rewritten."""
    photo = judged(data).photo
    return photo is not None and photo.slot.exif is not None


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_short_slot_is_rewritten_by_piexif_without_harm_to_any_tag(order: str) -> None:
    data = factory.photo_bytes(SHORT_TEXT, order=order)
    assert rewrites(data)
    old, new = (factory.entries_of(one) for one in (data, sent(data)))
    assert old.keys() == new.keys() and factory.description_of(sent(data))["MAPCompassHeading"]["TrueHeading"] == 1.25
    assert len([s for s in factory.segments(sent(data)) if s.payload.startswith(b"Exif\0\0")]) == 1
    assert sent(data).endswith(data[data.index(b"http://ns.adobe.com") :])


@pytest.mark.parametrize(
    "options",
    [
        {"maker_note": b"M" * 100, "order": "<"},  # its offsets count from the TIFF header, whose byte order changes
        {"extra": [("exif", 0xEA1D, 9, 1, b"\0\0\0\1")]},  # unknown to piexif
        {"extra": [("gps", 0xD000, 2, 6, b"extra\0")]},
        {"extra": [("exif", 0xA301, 1, 1, b"\1")]},  # SceneType as BYTE: piexif.dump raises
    ],
)
def test_where_piexif_would_change_another_tag_the_photo_is_rejected(options: dict[str, Any]) -> None:
    verdict = judged(factory.photo_bytes(SHORT_TEXT, **options))
    assert verdict.photo is None and "no room" in str(verdict.problems[0])


def test_sizes_at_the_limits() -> None:
    for width, height, fits in (
        (20_000, 5_000, True),
        (20_000, 5_001, False),
        (16_384, 8_192, False),
        (65_500, 32_750, False),
    ):
        assert bool(judged(factory.photo_bytes(sof_size=(width, height))).photo) is fits
    mu.check_size(mu.MAX_BYTES)
    with pytest.raises(mu.Rejection, match="larger than 50 MB"):
        mu.check_size(mu.MAX_BYTES + 1)


def expected_heading(photo: dict[str, Any]) -> float | None:
    """MAPCompassHeading by section 7 of the contract, computed anew."""
    own = photo["original_heading"]
    if isinstance(own, (int, float)) or (isinstance(own, str) and own.replace(".", "").lstrip("-").isdigit()):
        return float(own) % 360
    ahead, behind = None, None
    for key, leg in photo["connections"].items():
        if key != "null" and math.isfinite(leg["distance_mtrs"]) and math.isfinite(leg["heading_deg"]):
            if leg["distance_mtrs"] > 0 and ahead is None:
                ahead = leg["heading_deg"]
            if leg["distance_mtrs"] < 0 and behind is None:
                behind = (leg["heading_deg"] + 180) % 360
    return ahead if ahead is not None else behind


@pytest.mark.skipif(not SHARED_PHOTOS.exists(), reason="the real tours are not here")
def test_each_field_of_each_real_photo() -> None:
    count = 0
    for path in sorted((SHARED_PHOTOS / "tours").rglob("*")):
        data = path.read_bytes() if path.suffix.lower() in (".jpg", ".jpeg") else b""
        if not data or not judged(data).photo:
            continue
        count += 1
        photo = json.loads(factory.description_text(data).rstrip(b"\0"))["photo"]
        got = factory.description_of(sent(data))
        timegps = photo["cli_connection_method"] in ("timegps", "filename")
        clock = photo["original_GPSDateTime" if timegps else "original_originalDateTime"]
        assert got["MAPCaptureTime"][:19] == clock.rstrip("Z").replace(":", "_").replace(" ", "_"), path
        assert got["MAPLatitude"] == round(photo["original_latitude"], 7)
        assert got["MAPLongitude"] == round(photo["original_longitude"], 7)
        assert got.get("MAPAltitude") == round(photo["original_altitude"], 3)
        assert got["MAPDeviceMake"] == photo["original_camera_make"]
        assert got["MAPDeviceModel"] == photo["original_camera_model"]
        heading = expected_heading(photo)
        found: Any = got.get("MAPCompassHeading")
        assert (
            found is None
            if heading is None
            else found["TrueHeading"] == found["MagneticHeading"] == pytest.approx(heading, abs=6e-4)
        )
        assert got.keys() <= set(mu.describe(mu.Planned(judged(data).photo, "s", 0))) | {"MAPAltitude"}  # type: ignore[arg-type]
    assert count == 76


def test_exif_in_two_segments_is_described_or_rejected_clearly() -> None:
    long = factory.photo_bytes(maker_note=b"M" * 80_000, description_at="first")
    if judged(long).photo:
        assert [old for old, new in zip(long, sent(long)) if old != new] and len(sent(long)) == len(long)
    beyond = judged(factory.photo_bytes(maker_note=b"M" * 80_000, description_at="last"))
    assert "outside the EXIF segment" in str(beyond.problems[0])
    second = factory.tiff(b"a second description of twenty letters")
    assert "two ImageDescriptions" in str(
        judged(factory.photo_bytes(layout=("exif", "xmp", "exif2"), exif2=second)).problems[0]
    )
