"""Planning: groups, order, times, Mapillary's limits, names of parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mapillary_uploader as mu

SLOT = mu.Slot("<", 0, 0, 2000)


def photo(file: str, taken_at: int = 0, pixels: int = 1, sequence: str = "s", latitude: float = 51.0) -> mu.Photo:
    """A photo that passed."""
    values = {"altitude": None, "heading": None, "make": "", "model": "", "orientation": 1, "connections": ()}
    place = {"latitude": latitude, "longitude": 0.0, "photo_id": file, "slot": SLOT, "file": file, "pixels": pixels}
    place |= {"size": 1, "mtime_ns": 0}
    return mu.Photo(sequence_id=sequence, taken_at=taken_at, **values, **place)  # type: ignore[arg-type]


def test_photos_are_grouped_by_sequence_and_ordered_by_time_then_name() -> None:
    photos = [photo("IMG_2", 5), photo("IMG_10", 5), photo("b", 1), photo("x", 0, sequence="other")]
    parts = mu.plan_sequences(photos, ())
    assert [(part.uuid, [p.photo.file for p in part.photos]) for part in parts] == [
        ("s", ["b", "IMG_2", "IMG_10"]),
        ("other", ["x"]),
    ]


def test_equal_times_are_spread_to_the_next_photo_or_the_end_of_the_second() -> None:
    assert mu.spread([1000] * 5) == [1000, 1200, 1400, 1600, 1800]
    assert mu.spread([1000, 1000, 1500]) == [1000, 1250, 1500]
    assert mu.spread([1900, 1900]) == [1900, 1950]
    assert mu.spread([1000, 1000, 5000]) == [1000, 1500, 5000]


@given(st.lists(st.integers(0, 3000), max_size=60).map(sorted))
def test_times_always_increase_and_never_go_back(times: list[int]) -> None:
    result = mu.spread(times)
    assert len(result) == len(times) and all(a < b for a, b in zip(result, result[1:]))
    assert all(sent >= taken for sent, taken in zip(result, times))


def test_more_photos_than_milliseconds_move_on() -> None:
    assert mu.spread([999] * 4) == [999, 1000, 1001, 1002]


@pytest.mark.parametrize(
    ("count", "pixels", "expected"), [(1000, 1, [1000]), (1001, 1, [1000, 1]), (205, 29_491_200, [203, 2])]
)
def test_long_sequences_are_cut_and_no_photo_is_lost_or_repeated(count: int, pixels: int, expected: list[int]) -> None:
    parts = mu.plan_sequences([photo(f"{n}", n, pixels) for n in range(count)], ())
    assert [len(part.photos) for part in parts] == expected
    assert [part.uuid for part in parts] == (["s"] if len(parts) == 1 else ["s_1", "s_2"])
    assert [p.photo.file for part in parts for p in part.photos] == [f"{n}" for n in range(count)]


@pytest.mark.parametrize(
    ("settled", "count", "names"),
    [
        ((), 1, ["s"]),
        ((), 2, ["s_1", "s_2"]),
        (("s",), 1, ["s_2"]),
        (("s_1", "s_3"), 1, ["s_2"]),
        (("s_1",), 2, ["s_2", "s_3"]),
        (("other",), 1, ["s"]),
    ],
)
def test_published_parts_keep_their_names(settled: tuple[str, ...], count: int, names: list[str]) -> None:
    assert mu.part_names("s", count, {*settled, "s"}, set(settled)) == names


def test_a_part_never_takes_another_sequences_name() -> None:
    photos = [photo(f"{n}", n) for n in range(1001)] + [photo("x", sequence="s_2")]
    assert sorted(part.uuid for part in mu.plan_sequences(photos, ())) == ["s_1", "s_2", "s_3"]


def test_a_fast_hop_is_warned_of_and_none_between_sequences() -> None:
    walk = [photo("a", 0), photo("b", 1000, latitude=52.0), photo("c", 3_600_000, latitude=52.1)]
    other = [photo("d", 3_601_000, sequence="other")]
    assert list(mu.find_hops(mu.plan_sequences(walk + other, ()))) == ["b"]


def test_a_fast_hop_across_a_cut_is_warned_of() -> None:
    photos = [photo(f"{n:04}", 2_000 * n, latitude=51 if n < mu.SEQUENCE_PHOTOS else 52) for n in range(1_002)]
    parts = mu.plan_sequences(photos, ())
    assert len(parts) == 2 and list(mu.find_hops(parts)) == ["1000"]


def test_copies_are_rejected_and_the_one_that_the_resume_file_holds_is_kept() -> None:
    verdicts = [mu.Verdict(file, photo(file), "id") for file in ("a", "b", "c")]
    same = {("b", "a"), ("a", "b")}
    judged = mu.find_copies(verdicts, {"b"}, lambda one, other: (one, other) in same)
    assert [bool(verdict.problems) for verdict in judged] == [True, False, False]
    assert "may be deleted" in str(judged[0].problems[0]) and "other content" in judged[2].warnings[0]


def test_photos_without_id_are_never_copies() -> None:
    verdicts = [mu.Verdict(file, photo(file)) for file in ("a", "b")]
    assert not any(v.problems or v.warnings for v in mu.find_copies(verdicts, set(), lambda *_: True))


def test_a_connection_to_a_photo_that_is_not_here_is_warned_of() -> None:
    from dataclasses import replace

    verdicts = [mu.Verdict("a", replace(photo("a"), connections=("b", "gone")), "a"), mu.Verdict("b", None, "b")]
    assert "gone" in mu.find_missing(verdicts, ())[0].warnings[0]
    assert mu.find_missing(verdicts, ("gone",))[0].warnings == ()
