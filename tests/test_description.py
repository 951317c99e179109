"""The description: the tours that Sequence Maker left, against code of the tests' own."""

from __future__ import annotations

import pytest

import factory
import mapillary_uploader as mu
from judging import judged, planned
from support import SHARED_PHOTOS

TOURS = sorted((SHARED_PHOTOS / "tours").glob("*")) if SHARED_PHOTOS.is_dir() else []


def expected_heading(photo: dict[str, object]) -> object:
    """original_heading where it is a number, modulo 360; "?" where the connections decide."""
    heading = photo.get("original_heading")
    return round(heading % 360, 3) % 360 if isinstance(heading, (int, float)) and heading == heading else "?"


@pytest.mark.skipif(not TOURS, reason="../shared isn't there")
@pytest.mark.parametrize("tour", TOURS, ids=lambda tour: tour.name)
def test_each_photo_of_a_tour_is_described_as_sequence_maker_has_it(tour: object) -> None:
    assert hasattr(tour, "glob")
    files = [path for path in tour.glob("*") if path.suffix.lower() in (".jpg", ".jpeg")]
    assert files
    for path in files:
        data = path.read_bytes()
        photo = judged(data, path.name).photo
        if photo is None:
            assert tour.name in ("flat_sony_real3_NOT_360", "mixed_good_and_untagged")  # type: ignore[attr-defined]
            continue
        record, description = factory.description_of(data), mu.describe(planned(photo))
        assert description["MAPLatitude"] == round(float(record["photo"]["original_latitude"]), 7)
        assert description["MAPLongitude"] == round(float(record["photo"]["original_longitude"]), 7)
        assert description["MAPSequenceUUID"] == record["sequence"]["id"]
        assert description["MAPFilename"] == path.name
        heading = expected_heading(record["photo"])
        assert heading == "?" or description["MAPCompassHeading"]["TrueHeading"] == heading
