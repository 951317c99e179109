"""The checks: limits, and every value that Sequence Maker's object may hold."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factory
import mapillary_uploader as mu
from judging import judged, planned

KEYS = [f"photo.{key}" for key in factory.sequence_maker_json()["photo"]] + ["photo", "sequence", "sequence.id"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(("size", "passes"), [((10_000, 10_000), True), ((65_500, 32_750), False)])
def test_photos_of_a_hundred_million_pixels_pass_and_larger_ones_do_not(size: tuple[int, int], passes: bool) -> None:
    assert bool(judged(factory.photo_bytes(sof_size=size)).photo) is passes


@pytest.mark.parametrize(
    ("latitude", "passes"), [(90, True), ("51.5", True), (90.1, False), (True, False), ("x", False)]
)
def test_a_latitude_is_a_finite_number_up_to_90(latitude: object, passes: bool) -> None:
    record = factory.sequence_maker_json({"photo.original_latitude": latitude})
    assert bool(judged(factory.photo_bytes(factory.json_bytes(record))).photo) is passes


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_field_gives_a_reason_or_a_description_of_finite_numbers(key: str, value: Any) -> None:
    record = factory.sequence_maker_json()
    *above, last = key.split(".")
    (record[above[0]] if above else record)[last] = value
    verdict = judged(factory.photo_bytes(json.dumps(record).encode()))
    assert bool(verdict.photo) != bool(verdict.problems)
    if verdict.photo:
        description = mu.describe(planned(verdict.photo))
        json.dumps(description, allow_nan=False)
        assert math.isfinite(description["MAPLatitude"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", KEYS)
def test_a_number_that_is_not_finite_counts_as_absent(key: str, number: str) -> None:
    def photo_with(value: str) -> mu.Verdict:
        text = json.dumps(factory.sequence_maker_json({key: "HERE"})).replace('"HERE"', value.ljust(len("-Infinity")))
        return judged(factory.photo_bytes(text.encode()))

    verdict, absent = photo_with(number), photo_with("null")
    assert verdict.photo == absent.photo
    assert [problem.what for problem in verdict.problems] == [problem.what for problem in absent.problems]
