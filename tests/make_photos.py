"""Makes the sample tour, tests/photos/: a walk on the Inner Circle of Regent's Park, London, drawn by this script.

    python tests/make_photos.py [FOLDER]

Eight equirectangular panoramas, each with compass letters where the compass has them and its own number, tagged as
Sequence Maker tags them. The same Pillow gives the same bytes. Needs Pillow (10.1 or newer) only.
"""

from __future__ import annotations

import io
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

from factory import (
    Facts,
    Stop,
    destination,
    identifier,
    jpeg,
    json_bytes,
    tiff,
    tour_json,
    write_tour,
    xmp,
)

PHOTOS: Final = 8
SIZE: Final = (1024, 512)
DRAWN: Final = (2048, 1024)  # twice the size, then scaled down: smooth edges
QUALITY: Final = 80
START: Final = datetime(2021, 7, 29, 9, 16, 54)  # UTC
STEP: Final = timedelta(seconds=9)
CENTRE: Final = (51.527620, -0.154150)  # of the Inner Circle, about
RADIUS: Final = 160.0  # metres
SPACING: Final = 12.0  # metres from photo to photo
FIRST_BEARING: Final = 215.0  # of the first photo, seen from the centre
EYE: Final = 2.2  # metres above the ground
PATH: Final = 2.1  # half the path's width in metres
SUN: Final = (113.0, 42.0)  # azimuth and elevation in degrees

Colour = tuple[int, int, int]
Point = tuple[float, float]
SKY: Final = ((66, 124, 196), (200, 224, 240))
SUNLIGHT: Final = (255, 244, 205)
GRASS: Final = ((104, 142, 66), (116, 154, 74))
VERGE: Final = (150, 160, 96)
GRAVEL: Final = ((206, 190, 160), (196, 180, 150))
FAR_GREEN: Final = (150, 178, 160)
HILLS: Final = (((150, 176, 196), 6.5, 4.2, 1), ((116, 150, 150), 4.2, 3.0, 2), ((92, 130, 98), 2.2, 1.6, 3))
LETTERS: Final = (("N", 0, (196, 44, 44)), ("E", 90, (40, 48, 60)), ("S", 180, (40, 48, 60)), ("W", 270, (40, 48, 60)))


@dataclass(frozen=True)
class Tree:
    """A tree: its place in metres east and north of the circle's centre, height in metres, and what shapes its crown."""

    place: Point
    height: float
    seed: int


@dataclass(frozen=True)
class View:
    """A panorama being drawn: what it is drawn on, from where (metres east and north of the centre), looking where."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    eye: Point
    heading: float

    def column(self, azimuth: float) -> float:
        """The column of a compass direction: the heading is in the middle."""
        return ((azimuth - self.heading) / 360 + 0.5) % 1 * DRAWN[0]

    def columns(self, azimuth: float) -> Iterator[float]:
        """The same, and again a whole picture to either side, for what crosses the seam."""
        column = self.column(azimuth)
        yield from (column - DRAWN[0], column, column + DRAWN[0])


def row(elevation: float) -> float:
    """The row of an elevation in degrees."""
    return (0.5 - elevation / 180) * DRAWN[1]


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """The first colour with so much of the second, 0 to 1, in it."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


# ---------------------------------------------------------------------------------------------------------------------
# Where things are
# ---------------------------------------------------------------------------------------------------------------------


def circle_bearing(index: int) -> float:
    """The bearing of photo `index` from the centre; the walk goes clockwise."""
    return FIRST_BEARING + math.degrees(SPACING / RADIUS) * index


def on_circle(bearing: float, radius: float = RADIUS) -> Point:
    """Metres east and north of the centre."""
    return radius * math.sin(math.radians(bearing)), radius * math.cos(math.radians(bearing))


def stops() -> list[Stop]:
    """Where and when the photos were taken; headings along the walk, as a hand holds a camera."""
    shake = random.Random(7)
    found = []
    for index in range(PHOTOS):
        latitude, longitude = destination(CENTRE, circle_bearing(index), RADIUS)
        heading = (circle_bearing(index) + 90 + shake.uniform(-4, 4)) % 360
        altitude = round(38.4 + 0.9 * math.sin(index / 3), 2)
        moment = START + STEP * index
        found.append(Stop(round(latitude, 9), round(longitude, 9), altitude, moment, round(heading, 2)))
    return found


def trees() -> list[Tree]:
    """Trees inside and outside the circle, most of them near the path."""
    chance, found = random.Random(1838), []
    for index in range(80):
        bearing = chance.uniform(FIRST_BEARING - 50, circle_bearing(PHOTOS) + 50)
        radius = RADIUS + chance.choice((-1, 1)) * (4.5 + 60 * chance.random() ** 1.6)
        found.append(Tree(on_circle(bearing, radius), chance.uniform(5, 15), index))
    return found


def lamps() -> list[Point]:
    """Lamp posts along the outer edge of the path."""
    return [on_circle(FIRST_BEARING - 60 + 9.0 * index, RADIUS + PATH + 0.9) for index in range(18)]


def seen(eye: Point, place: Point) -> tuple[float, float]:
    """The compass direction in degrees and the distance in metres of a place."""
    east, north = place[0] - eye[0], place[1] - eye[1]
    return math.degrees(math.atan2(east, north)) % 360, math.hypot(east, north)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def panorama(index: int, stop: Stop) -> Image.Image:
    """The picture of one photo."""
    image = Image.new("RGB", DRAWN)
    view = View(image, ImageDraw.Draw(image), on_circle(circle_bearing(index)), stop.heading or 0.0)
    draw_sky(view)
    draw_sun(view)
    for colour, height, swing, seed in HILLS:
        draw_hills(view, colour, height, swing, seed)
    draw_ground(view)
    draw_things(view)
    draw_letters(view)
    draw_number(view, index + 1)
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def draw_sky(view: View) -> None:
    """From deep blue overhead to pale at the horizon."""
    horizon = DRAWN[1] // 2
    for line in range(horizon + 1):
        view.draw.line((0, line, DRAWN[0], line), fill=mixed(*SKY, (line / horizon) ** 1.5))


def draw_sun(view: View) -> None:
    """A disc with a glow; wider than high, as things are off the horizon of an equirectangular picture."""
    azimuth, elevation = SUN
    middle, stretch = row(elevation), 1 / math.cos(math.radians(elevation))
    glow = Image.new("L", DRAWN)
    draw = ImageDraw.Draw(glow)
    for size in range(180, 24, -2):
        for column in view.columns(azimuth):
            box = (column - size * stretch, middle - size, column + size * stretch, middle + size)
            draw.ellipse(box, fill=255 if size < 40 else round(200 * (1 - size / 180) ** 2))
    view.image.paste(SUNLIGHT, (0, 0), glow)


def draw_hills(view: View, colour: Colour, height: float, swing: float, seed: int) -> None:
    """A ridge at infinity: `height` degrees, give or take `swing`; it depends on the compass direction alone."""
    chance = random.Random(seed)
    waves = [(turns, chance.uniform(0, 360), swing / turns**0.7) for turns in (2, 3, 5, 9, 14)]
    ridge = []
    for column in range(0, DRAWN[0] + 1, 4):
        azimuth = view.heading + (column / DRAWN[0] - 0.5) * 360
        shape = sum(size * math.sin(math.radians(turns * azimuth + phase)) for turns, phase, size in waves)
        ridge.append((column, row(max(height + shape * 0.6, 0.3))))
    view.draw.polygon([*ridge, (DRAWN[0], DRAWN[1] // 2 + 2), (0, DRAWN[1] // 2 + 2)], fill=colour)


def draw_ground(view: View) -> None:
    """Lawn and path, pixel by pixel (at half the drawn height and width): each looks up what lies where it looks."""
    width, height = DRAWN[0] // 2, DRAWN[1] // 4
    directions = [math.radians(view.heading + ((x + 0.5) / width - 0.5) * 360) for x in range(width)]
    aims = [(math.sin(angle), math.cos(angle)) for angle in directions]
    pixels = bytearray()
    for line in range(height):
        far = EYE / math.tan(math.radians((line + 0.5) / height * 90))
        haze = min(far / 260, 0.75)
        for east, north in aims:
            pixels += bytes(hazy(ground_colour(view.eye[0] + east * far, view.eye[1] + north * far, far), haze))
    ground = Image.frombytes("RGB", (width, height), bytes(pixels))
    view.image.paste(ground.resize((DRAWN[0], DRAWN[1] // 2), Image.Resampling.BICUBIC), (0, DRAWN[1] // 2))


def hazy(colour: Colour, share: float) -> Colour:
    """The colour as the air between makes it, in 16 steps."""
    return _hazy(colour, round(share * 16))


@cache
def _hazy(colour: Colour, steps: int) -> Colour:
    return mixed(colour, FAR_GREEN, steps / 16)


def ground_colour(east: float, north: float, far: float) -> Colour:
    """Of the ground at a place in metres from the centre: path, its verge, or lawn mown in rings."""
    radius = math.hypot(east, north)
    aside = abs(radius - RADIUS)
    if aside < PATH:
        along = math.atan2(east, north) * RADIUS
        return GRAVEL[int(along // 3) % 2] if far < 40 else GRAVEL[0]
    if aside < PATH + 0.35:
        return VERGE
    return GRASS[int(radius // 4) % 2] if far < 90 else GRASS[0]


def draw_things(view: View) -> None:
    """Trees and lamps, the farthest first."""
    things: list[tuple[float, float, Tree | None]] = []
    for tree in trees():
        azimuth, far = seen(view.eye, tree.place)
        things.append((far, azimuth, tree))
    for lamp in lamps():
        azimuth, far = seen(view.eye, lamp)
        things.append((far, azimuth, None))
    for far, azimuth, thing in sorted(things, key=lambda item: -item[0]):
        for column in view.columns(azimuth):
            if thing is None:
                draw_lamp(view.draw, column, far)
            else:
                draw_tree(view.draw, column, far, thing)


def height_row(metres: float, far: float) -> float:
    """The row of a point so high above the ground and so far away."""
    return row(math.degrees(math.atan2(metres - EYE, far)))


def draw_tree(draw: ImageDraw.ImageDraw, column: float, far: float, tree: Tree) -> None:
    """Shadow, trunk and a crown of some round parts, lighter at the top."""
    chance, metre = random.Random(tree.seed), DRAWN[0] / 360 * math.degrees(1 / far)
    haze, foot = min(far / 260, 0.6), height_row(0, far)
    width = tree.height * 0.3 * metre
    draw.ellipse((column - width, foot - metre * 0.25, column + width, foot + metre * 0.25), fill=hazy(GRASS[0], haze))
    trunk = max(0.2 * metre, 0.8)
    draw.rectangle(
        (column - trunk, height_row(tree.height * 0.5, far), column + trunk, foot), fill=hazy((94, 74, 56), haze)
    )
    base: Colour = (chance.randint(52, 84), chance.randint(104, 130), chance.randint(48, 66))
    for part in range(9):
        up = 0.38 + 0.5 * part / 8
        reach = width * (1.0 - abs(up - 0.55) * 1.3) * 0.62
        x, y = column + chance.uniform(-0.5, 0.5) * width, height_row(tree.height * up, far)
        light = mixed(base, (190, 206, 120), part / 8 * 0.45)
        draw.ellipse((x - reach, y - reach * 0.85, x + reach, y + reach * 0.85), fill=hazy(light, haze))


def draw_lamp(draw: ImageDraw.ImageDraw, column: float, far: float) -> None:
    """A post four metres high with a lantern."""
    metre = DRAWN[0] / 360 * math.degrees(1 / far)
    haze, top = min(far / 260, 0.6), height_row(4.0, far)
    half = max(0.06 * metre, 0.7)
    draw.rectangle((column - half, top, column + half, height_row(0, far)), fill=hazy((48, 56, 58), haze))
    lantern = 0.2 * metre
    draw.rectangle((column - lantern, top - 2.2 * lantern, column + lantern, top), fill=hazy((240, 232, 196), haze))
    roof = ((column - 1.3 * lantern, top - 2.2 * lantern), (column + 1.3 * lantern, top - 2.2 * lantern))
    draw.polygon([*roof, (column, top - 3.2 * lantern)], fill=hazy((48, 56, 58), haze))


def draw_letters(view: View) -> None:
    """N, E, S and W in the sky, each over a tick, and small ticks every 15 degrees, in the columns where they belong."""
    font = ImageFont.load_default(size=84)
    line = row(17)
    for azimuth in range(0, 360, 15):
        tick = 26 if azimuth % 90 == 0 else 12
        for column in view.columns(azimuth):
            view.draw.line((column, line, column, line + tick), fill=(255, 255, 255), width=5)
    for letter, azimuth, colour in LETTERS:
        for column in view.columns(azimuth):
            view.draw.text((column, line - 10), letter, colour, font, "ms", stroke_width=5, stroke_fill=(255, 255, 255))


def draw_number(view: View, number: int) -> None:
    """The photo's number, on the path ahead and behind."""
    font = ImageFont.load_default(size=110)
    for column in (DRAWN[0] / 2, 0.0, float(DRAWN[0])):
        place = (column, row(-48))
        view.draw.text(place, str(number), (255, 255, 255), font, "mm", stroke_width=6, stroke_fill=(120, 108, 88))


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def photo(picture: Image.Image, stop: Stop, record: dict[str, Any]) -> bytes:
    """The photo's file: picture, small thumbnail, EXIF with Sequence Maker's JSON, XMP."""
    thumbnail = encoded(picture.resize((160, 80), Image.Resampling.LANCZOS), 70)
    fields = record["photo"]
    facts = Facts(
        latitude=stop.latitude,
        longitude=stop.longitude,
        altitude=stop.altitude,
        heading=stop.heading,
        taken=fields["original_originalDateTime"],
        gps_time=fields["original_GPSDateTime"],
    )
    exif = tiff(json_bytes(record), facts=facts, size=SIZE, thumbnail=thumbnail, offset_time_original="+01:00")
    packet = xmp(size=SIZE, heading=stop.heading)
    return jpeg(exif=exif, xmp=packet, image=encoded(picture, QUALITY))


def sample_tour() -> dict[str, bytes]:
    """The photos by name."""
    names = [f"PANO_{number:04d}_calculated.jpg" for number in range(1, PHOTOS + 1)]
    places = stops()
    records = tour_json(places, names, sequence_id=identifier("sample tour"), camera_clock_h=1)
    return {
        name: photo(panorama(index, stop), stop, record)
        for index, (name, stop, record) in enumerate(zip(names, places, records, strict=True))
    }


def main() -> None:
    """Write the sample tour into the folder named, or tests/photos."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "photos"
    photos = sample_tour()
    write_tour(folder, photos)
    print(f"{len(photos)} photos, {sum(map(len, photos.values())) // 1024} KB, in {folder}")


if __name__ == "__main__":
    main()
