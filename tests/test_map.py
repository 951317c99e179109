"""The map: what is on the page, in a real browser where there is one, and its GeoJSON."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from geojson_pydantic import FeatureCollection

import factory
import mapillary_uploader as mu
from browser import CHROMIUM, Browser
from sandbox import Sandbox
from support import upload_here

HOSTILE = ["<script>alert(1)<.jpg", "\"'>]]>&amp;<!--%s.jpg", "\udcff\udcfe.jpg", "\u202e\n.jpg"]
PLACES = [(51.5, -0.15), (-16.8, 180.0), (89.99999, 40.0), (-89.99999, 0.0)]
WALKS = {"street": (5, 9), "drive": (300, 9), "stationary": (0, 3), "alone": (0, 1)}  # metres apart, photos
BOX = "document.querySelector('aside')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests, whose pages may ask for nothing and complain of nothing."""
    if not CHROMIUM:
        pytest.skip("chromium isn't here")
    with Browser() as running:
        yield running
        assert running.complaints == []
        assert [url for url in running.requests if not url.startswith(("file:", "data:image/jpeg;"))] == []


def page_of(tmp_path: Path, *tours: mu.Tour) -> Path:
    """The tours' page in a file."""
    (tmp_path / "map.html").write_text(mu.map_html(tours), encoding="utf-8")
    return tmp_path / "map.html"


def made(count: int, folder: str = "/srv/tour", **facts: Any) -> mu.Tour:
    """A checked tour without files: photos 3 m apart on the way north, at noon."""
    photos = []
    for n in range(count):
        known = {"latitude": 48 + n * 3 / 111_195, "longitude": 11.0, "heading": 0.0, **facts}
        photos.append(mu.Photo(f"{n:05d}.jpg", uuid="a", captured_at=1_627_560_000_000 + 2000 * n, **known))
    return mu.Tour(Path(folder), photos=photos, sequences=[mu.Sequence("a", list(photos))])


def moved(place: tuple[float, float], east: float, north: float) -> tuple[float, float]:
    """Where one gets from a place by going straight on so many metres: on a sphere, by vectors."""
    lat, lon, metres = *map(math.radians, place), math.hypot(east, north)
    up = math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)
    to_east = -math.sin(lon), math.cos(lon), 0
    to_north = -math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat)
    ahead = [(east * e + north * n) / (metres or 1) for e, n in zip(to_east, to_north)]
    angle = metres / 6_371_008.8
    x, y, z = (math.cos(angle) * u + math.sin(angle) * a for u, a in zip(up, ahead))
    return math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x))


def dots(browser: Browser) -> dict[str, tuple[float, float]]:
    """Where each photo's dot stands in the window, in pixels."""
    script = "[...document.querySelectorAll('[data-file]')].map(dot => [dot.dataset.file, dot.getScreenCTM()]).map(([file, m]) => [file, m.e, m.f])"
    return {file: (x, y) for file, x, y in browser.value(script)}


def box(browser: Browser) -> list[str]:
    """The lines of what stands beside the pointer."""
    return str(browser.value(f"{BOX}.innerText")).split("\n")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("walk", WALKS)
def test_dots_stand_at_their_places(tmp_path: Path, browser: Browser, walk: str, place: Any, width: int) -> None:
    apart, count = WALKS[walk]
    tour = made(count)
    offsets = [(apart * (n - count // 2), apart * abs(n - count // 2)) for n in range(count)]
    for photo, offset in zip(tour.photos, offsets):
        photo.latitude, photo.longitude = moved(place, *offset)
    browser.open(page_of(tmp_path, tour), width)
    bar = "document.querySelector('[data-metres]')"
    scale = browser.value(f"{bar}.getBBox().width * {bar}.getScreenCTM().a / {bar}.dataset.metres")
    metres, label = browser.value(f"[{bar}.dataset.metres, document.querySelector('svg text').textContent]")
    assert label == f"{metres} m, north up".replace("000 m", " km")
    stand = list(dots(browser).values())
    for (x, y), (east, north) in zip(stand, offsets):
        middle = stand[count // 2]
        assert math.dist((x - middle[0], middle[1] - y), (scale * east, scale * north)) < 1
        assert 10 < x < width - 10 and y > 100
    assert 2 * apart * scale < width and 20 * scale < width


@pytest.mark.parametrize("longitude", [10, 179.9999])
def test_a_heading_is_drawn_from_the_plans_north(longitude: float) -> None:
    tour = made(3, latitude=60.0)
    for n, photo in enumerate(tour.photos):
        photo.longitude = math.remainder(longitude + 2 * n, 360)
    assert re.findall(r"rotate\((.*?)\)", mu.map_html([tour])) == ["2", "0", "-2"]


def test_legs_join_the_dots_the_ends_are_named_and_the_scale_takes_a_quarter_at_most() -> None:
    page = mu.map_html([made(4)])
    spots = re.findall(r'<circle class="" transform="translate\((.*?)\)"', page)
    assert len(spots) == 4 and re.findall(r'class="leg " d="M(.*?)L(.*?)"', page) == [*pairwise(spots)]
    ends = re.findall(r'<text transform="translate\((.*?)\)".*?>(\w+)<', page)
    assert ends == [(spots[0], "first"), (spots[-1], "last")]
    assert [100 < float(units) <= 250 for units in re.findall("v8h(.*?)v-8", page)] == [True]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_hover_and_tap_show_a_photo(tmp_path: Path, browser: Browser, width: int, scheme: str) -> None:
    photos = factory.tour(6, thumbnail=factory.encoded((160, 80)))
    tour, touch = mu.check_folder(factory.write_tour(tmp_path / "tour", photos)), width < 700
    browser.open(page_of(tmp_path, tour), width, 900, scheme, touch)
    assert browser.value("document.documentElement.scrollWidth") == width
    shade = browser.value(f"getComputedStyle({BOX}).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(shade) > 127) == (scheme == "light")
    for name, at in dots(browser).items():
        (browser.tap if touch else browser.hover)(*at)
        assert box(browser)[0] == f"file: {name}" and "time: 2021-07-29T09:1" in "".join(box(browser))
        assert browser.value(f"{BOX}.querySelector('img').decode().then(() => true)")
        outside = f"(b => [-b.left, -b.top, b.right - {width}, b.bottom - 900])({BOX}.getBoundingClientRect())"
        assert max(browser.value(outside)) <= 0
    (browser.tap if touch else browser.click)(5, 5)
    assert box(browser) == [""]


def test_what_is_odd_and_what_is_left_out_is_told_and_drawn(tmp_path: Path, browser: Browser) -> None:
    keys = {2: ("heading", 255.0), 4: ("latitude", 51.54), 6: ("GPSDateTime", "x")}
    changes = {n: {f"photo.original_{key}": value} for n, (key, value) in keys.items()}
    photos = factory.tour(8, changes=changes) | {"flat.jpg": factory.photo_bytes(exif=None)}
    night: dict[str, Any] = {"start": "2021:07:28 23:00:00Z", "step_s": 900, "latitude": -20.0, "longitude": 57.5}
    photos |= factory.tour(2, names="N{}.jpg", course=0, turn=0, **night)  # three in the morning on Mauritius
    browser.open(page_of(tmp_path, mu.check_folder(factory.write_tour(tmp_path / "tour", photos))))
    text = " ".join(browser.value("document.body.innerText").split())
    told = """7 held, 2 ready, 2 rejected
        : 2 photos 0.01 km 2021-07-28T23:00:00Z to 23:15:00Z: to upload
        1 × a leg faster than 400 km/h
        2 × a fast leg to the next photo GS0004_calculated.jpg, GS0005_calculated.jpg
        1 × it faces against the track GS0003_calculated.jpg
        2 × taken at night: is its time right? N1.jpg, N2.jpg
        1 × no usable capture time
        flat.jpg (no EXIF)"""
    assert [line for line in map(str.strip, told.splitlines()) if line not in text] == []
    looks = "[...document.querySelectorAll('{}')].map(found => getComputedStyle(found).{})"
    assert browser.value(looks.format(".leg.fast", "stroke")) == ["rgb(211, 38, 27)"] * 2
    assert browser.value(looks.format("circle.bad", "fill")) == ["rgb(211, 38, 27)"]  # between its neighbours
    links = browser.value("[...document.querySelectorAll('figure a')].map(link => link.href)")
    assert len(links) == 2 and links[0].startswith("https://www.openstreetmap.org/?mlat=51.5")


def test_gaps_and_cuts_into_parts_are_told() -> None:
    tour = made(300, sequence_id="whole")
    for n, photo in enumerate(tour.photos):
        photo.captured_at, photo.latitude = photo.captured_at + 900_000 * (n > 99), photo.latitude + 0.001 * (n > 199)
    page = mu.map_html([tour])
    assert page.count('class="leg a gap to the next photo its') == 2
    assert "<summary>2 × a gap to the next photo</summary>00099.jpg, 00199.jpg<" in page
    assert "<summary>300 × its sequence was cut into parts<" in page
    for seconds, metres, gaps in ((59, 0, 0), (61, 0, 1), (2, 45, 0), (2, 48, 1)):  # over a minute, or over 50 m
        tour = made(9)
        for photo in tour.photos[5:]:
            photo.captured_at += 1000 * (seconds - 2)
            photo.latitude += metres / 111_195
        assert mu.map_html([tour]).count('class="leg a gap') == gaps, (seconds, metres)


def test_a_photo_alone_several_at_one_spot_and_links_to_what_is_live(tmp_path: Path, browser: Browser) -> None:
    facts = {"image_id": "12345", "state": "published", "latitude": -33.0, "longitude": -70.0, "heading": None}
    alone, live = made(1), made(3, "/srv/old", **facts)
    live.photos.append(mu.Photo("gone.jpg", "published", uuid="a"))
    browser.open(page_of(tmp_path, alone, live))
    browser.value("document.querySelectorAll('figure')[1].scrollIntoView()")
    assert len(dots(browser)) == 3 and browser.value("document.querySelectorAll('[data-file]').length") == 4
    browser.hover(*dots(browser)["00002.jpg"])
    assert box(browser)[0] == "file: 00002.jpg" and box(browser)[-1] == "also here: 00001.jpg, 00000.jpg"
    assert browser.value(f"{BOX}.querySelector('a').href") == mu.PHOTO_PAGE + "12345"


def test_hostile_names_stay_text(tmp_path: Path, browser: Browser) -> None:
    tour = made(len(HOSTILE))
    for photo, name in zip(tour.photos, HOSTILE):
        photo.file = photo.make = photo.image_id = name
        photo.failure = mu.shown(name)
    tour.sequences += [mu.Sequence(name, tour.photos) for name in HOSTILE]
    tour.errors += [mu.UploaderError(name) for name in HOSTILE]
    tour.folder = Path(HOSTILE[0])
    browser.open(page_of(tmp_path, tour))
    browser.value("[...document.querySelectorAll('figure')].at(-1).scrollIntoView()")
    assert list(dots(browser)) == [mu.shown(name) for name in HOSTILE]
    for name, at in dots(browser).items():
        browser.hover(*at)
        assert box(browser)[0] == f"file: {name}"
    assert browser.value("document.querySelectorAll('script').length") == 1
    FeatureCollection.model_validate_json(json.dumps(mu.map_geojson([tour])))


def test_the_page_of_20_000_photos_or_with_thumbnails_is_of_bounded_size(tmp_path: Path, monkeypatch: Any) -> None:
    assert len(mu.map_html([made(20_000)])) < 10_000_000
    tour = mu.check_folder(factory.write_tour(tmp_path / "tour", factory.tour(9, thumbnail=factory.encoded((160, 80)))))
    assert mu.map_html([tour]).count("data:image/jpeg") == 9
    monkeypatch.setattr(mu, "THUMBNAIL_BYTES", 5_000)
    assert mu.map_html([tour]).count("data:image/jpeg") in (2, 3, 5)
    shutil.rmtree(tour.folder)
    assert mu.map_html([tour]).count("data:image/jpeg") == 0


def test_geojson_is_valid_and_holds_longitude_before_latitude(tmp_path: Path) -> None:
    photos = factory.tour(4) | {"flat.jpg": factory.photo_bytes(exif=None)}
    tour = mu.check_folder(factory.write_tour(tmp_path / "tour", photos))
    found: list[Any] = list(FeatureCollection.model_validate_json(json.dumps(mu.map_geojson([tour]))).features)
    (line, first, flat), places = (found[0], found[1], found[-1]), [(p.longitude, p.latitude) for p in tour.photos[:4]]
    assert line.geometry.type == "LineString" and [tuple(at) for at in line.geometry.coordinates] == places
    assert first.geometry.coordinates.longitude == pytest.approx(-0.1538283)
    facts = {"file": "GS0001_calculated.jpg", "time": "2021-07-29T09:16:54.000Z", "heading": 75, "kind": "photo"}
    assert (facts | {"state": "ready", "folder": str(tour.folder)}).items() <= first.properties.items()
    assert flat.geometry is None and "no EXIF" in flat.properties["problems"][0]


def test_what_is_published_is_drawn_once_and_its_copy_left_out(sandbox: Sandbox, tmp_path: Path) -> None:
    photos = factory.tour(3)
    folder = factory.write_tour(tmp_path / "tour", photos | {"copy.jpg": photos["GS0001_calculated.jpg"]})
    for result in (upload_here(folder, sandbox), mu.check_folder(folder)):
        facts = [feature["properties"] for feature in mu.map_geojson([result])["features"]]
        assert Counter(fact["kind"] for fact in facts) == {"sequence": 1, "photo": 3, "left out": 1}
        assert facts[-1]["file"] == "copy.jpg"


def test_a_line_is_cut_at_the_antimeridian() -> None:
    def through(*places: tuple[float, float]) -> dict[str, Any] | None:
        return mu.line_of([mu.Photo("", longitude=east, latitude=north) for east, north in places])

    assert through((179, 10), (-179, 20), (178, 20)) == {
        "type": "MultiLineString",
        "coordinates": [[(179, 10), (180, 15)], [(-180, 15), (-179, 20), (-180, 20)], [(180, 20), (178, 20)]],
    }
    assert through((179, 1)) == {"type": "Point", "coordinates": (179, 1)}
    assert through((0, 0)) is through() is None
    assert through((180, 1), (-180, 1), (-179, 1)) is not None
