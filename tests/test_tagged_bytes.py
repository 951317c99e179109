"""Tagged bytes: nothing changes but ImageDescription's slot and its count."""

from __future__ import annotations

from typing import Any

import pytest

import factory
from judging import sent

LAYOUTS: dict[str, dict[str, Any]] = {
    "big-endian": {},
    "little-endian": {"order": "<"},
    "XMP first": {"layout": ("xmp", "exif")},
    "description last": {"description_at": "last"},
    "MakerNote": {"maker_note": factory.noise(3000)},
    "EXIF near 64 KB": {"maker_note": factory.noise(60_000)},
    "thumbnail": {"thumbnail": factory.encoded((16, 8))},
    "second image": {"second_image": factory.encoded((16, 8))},
    "padding": {"trailer": b"\0" * 3000},
    "SceneType as BYTE": {"extra": [("exif", 0xA301, 1, 1, b"\1")]},
    "GPS 0xD000": {"extra": [("gps", 0xD000, 7, 4, b"abcd")]},
    "tag above GPS": {"extra": [("0th", 0xC4A5, 7, 8, b"PrintIM\0")]},
    "progressive": {"kind": "progressive"},
    "CMYK": {"kind": "cmyk"},
    "grayscale": {"kind": "grayscale"},
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_only_the_slot_and_the_count_change(options: dict[str, Any]) -> None:
    before = factory.photo_bytes(**options)
    after = sent(before)
    assert after is not None and len(after) == len(before)
    slot = factory.slot_of(before)
    allowed = set(range(slot.value_offset, slot.value_offset + slot.value_size))
    allowed |= set(range(slot.entry_offset + 4, slot.entry_offset + 8))  # the count
    assert {place for place in range(len(before)) if before[place] != after[place]} <= allowed
    assert factory.description_of(after)["MAPFilename"] == "photo.jpg"
    assert after.count(factory.EXIF_HEADER) == before.count(factory.EXIF_HEADER)
