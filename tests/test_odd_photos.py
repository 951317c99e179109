"""Odd and hostile photos: the right verdict for each, no crash, no warning from a library."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from pathlib import Path

import pytest

import factory
from judging import judged, sent
from support import SHARED_PHOTOS, run

BAD = SHARED_PHOTOS / "bad"
VERDICTS = SHARED_PHOTOS / "verdicts.json"
needs_photos = pytest.mark.skipif(not VERDICTS.exists(), reason="../shared isn't there")


@needs_photos
def test_each_bad_photo_gets_its_verdict_with_a_reason() -> None:
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, expected in json.loads(VERDICTS.read_bytes()).items():
            verdict = judged((BAD / name).read_bytes(), name)
            assert verdict.photo or all(len(str(problem)) > 15 for problem in verdict.problems)
            if expected["verdict"] not in ("either", "accept" if verdict.photo else "reject"):
                wrong.append(name)
    assert wrong == []


@needs_photos
def test_a_run_over_all_of_them_prints_no_traceback(tmp_path: Path) -> None:
    for number, name in enumerate(json.loads(VERDICTS.read_bytes())):
        shutil.copyfile(BAD / name, tmp_path / f"{number}.jpg")
    result = run("-d", tmp_path, "--dry-run")
    assert result.code == 3
    assert "Traceback" not in result.err and "Warning:" not in result.err and "unexpected" not in result.err


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The photo with some bytes of its first 64 KB flipped, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(min(len(changed), 65_536) or 1), chance.randint(1, 40)
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case _:
                changed[at:at] = chance.randbytes(length)
    return bytes(changed)


@pytest.mark.parametrize("order", ["<", ">"])
def test_damage_ends_in_a_verdict_and_never_in_another_exception(order: str) -> None:
    base = factory.photo_bytes(order=order, thumbnail=factory.encoded((16, 8)), maker_note=b"note" * 50)
    chance = random.Random(f"seed {order}")
    for _ in range(1500):
        data = mutated(base, chance)
        verdict = judged(data)
        assert bool(verdict.photo) != bool(verdict.problems)
        if verdict.photo:
            assert sent(data)


def test_what_is_no_regular_file_is_rejected_and_odd_names_are_not(tmp_path: Path) -> None:
    names = [b"-a b'\".jpg", b"new\nline.jpg", b"\xff\xfe.jpg", "e\u0301.jpg".encode(), "\u00e9.jpg".encode()]
    names.append(b"n" * 251 + b".jpg")
    for number, name in enumerate(names):
        record = factory.sequence_maker_json({"photo.id": factory.identifier(number)})
        (tmp_path / os.fsdecode(name)).write_bytes(factory.photo_bytes(record, seed=str(number)))
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    result = run("-d", tmp_path, "--dry-run", "--json")
    rejected = {photo["file"] for photo in result.document["photos"] if photo["state"] == "rejected"}
    assert result.code == 3
    assert rejected == {"folder.jpg", "fifo.jpg", "dangling.jpg", "loop.jpg"}
    assert len(result.document["photos"]) == len(names) + 4
