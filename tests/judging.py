"""Judging and tagging photos that exist only as bytes, for the tests of the pure core."""

from __future__ import annotations

import io
import os

import mapillary_uploader as mu

RULES = mu.Rules(mu.Clock().now())


def judged(data: bytes, file: str = "photo.jpg") -> mu.Verdict:
    """The verdict on a file of these bytes."""
    status = os.stat_result((0o100644, 0, 0, 1, 0, 0, len(data), 0, 0, 0))
    return mu.judge(io.BytesIO(data), file, status, RULES)


def planned(photo: mu.Photo) -> mu.Planned:
    """The photo as the only one of its sequence."""
    return mu.plan_sequences([photo], [])[0].photos[0]


def sent(data: bytes, file: str = "photo.jpg") -> bytes:
    """The bytes that are sent of a photo that passes; an AssertionError with its problems where it doesn't."""
    verdict = judged(data, file)
    assert verdict.photo, verdict.problems
    splices = mu.tagged(planned(verdict.photo))
    return b"".join(mu.tagged_blocks(io.BytesIO(data), len(data), splices))
