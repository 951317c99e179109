"""Reading a photo: what is a JPEG, and where its first image ends."""

from __future__ import annotations

import io

import pytest
from PIL import Image

import factory
from judging import judged

TRAILERS = [b"", b"\0" * 5000, b"\0\0\0\x18ftypmp42" + b"\0" * 12 + factory.noise(4000)]


@pytest.mark.parametrize("trailer", TRAILERS, ids=["none", "padding", "motion photo"])
def test_a_photo_cut_inside_its_image_is_rejected_wherever_it_was_cut(trailer: bytes) -> None:
    bare = factory.photo_bytes(thumbnail=factory.encoded((16, 8)), filler=20_000)
    assert judged(bare + trailer).photo
    for step in range(100):
        place = len(bare) * step // 100
        assert judged(bare[:place]).problems, f"cut at {place} of {len(bare)}"


@pytest.mark.parametrize("kind", ["baseline", "progressive", "cmyk", "grayscale"])
def test_every_kind_of_jpeg_is_read(kind: str) -> None:
    assert judged(factory.photo_bytes(kind=kind)).problems == ()


@pytest.mark.parametrize("marker", {*range(0x01, 0xFF)} - {*range(0xD0, 0xDA)})
def test_a_segment_that_pillow_does_not_know_is_refused_and_any_other_passed_over(marker: int) -> None:
    photo = factory.photo_bytes()
    data = photo[:2] + bytes((0xFF, marker)) + b"\0\4ab" + photo[2:]
    try:
        known = Image.open(io.BytesIO(data)).format == "JPEG"
    except OSError:
        known = False
    assert bool(judged(data).photo) is known


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"GIF89a" + b"\0" * 50, b"\x89PNG\r\n\x1a\n" * 9])
def test_what_is_no_jpeg_is_rejected_with_a_reason(data: bytes) -> None:
    assert all(problem.what and problem.fix for problem in judged(data).problems) and judged(data).problems
