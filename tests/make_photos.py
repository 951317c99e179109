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
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

import factory

PHOTOS: Final = 8
WIDTH, HEIGHT = SIZE = (1024, 512)
HORIZON: Final = HEIGHT // 2
CENTRE: Final = (51.527620, -0.154150)  # of the Inner Circle, about
RADIUS: Final = 160.0  # metres
SPACING: Final = 12.0  # metres from photo to photo
FIRST_BEARING: Final = 215.0  # of the first photo, seen from the centre; the walk goes clockwise
TURN: Final = math.degrees(SPACING / RADIUS)
EYE: Final = 2.2  # metres above the ground
PATH: Final = 2.1  # half the path's width in metres

SKY: Final = ((66, 124, 196), (200, 224, 240))  # overhead, at the horizon
GRASS: Final = ((104, 142, 66), (116, 154, 74))
GRAVEL: Final = ((206, 190, 160), (196, 180, 150))
HILLS: Final = {(150, 176, 196): (6.5, 4.2, 1), (92, 130, 98): (2.8, 2.0, 3)}  # height and swing in degrees, seed
LETTERS: Final = {0: "N", 90: "E", 180: "S", 270: "W"}


def columns(heading: float, azimuth: float) -> Iterator[float]:
    """The column of a compass direction (the heading is in the middle), and again a whole picture to either side."""
    column = ((azimuth - heading) / 360 + 0.5) % 1 * WIDTH
    yield from (column - WIDTH, column, column + WIDTH)


def row(elevation: float) -> float:
    """The row of an elevation in degrees."""
    return (0.5 - elevation / 180) * HEIGHT


def panorama(index: int, heading: float) -> Image.Image:
    """The picture of one photo."""
    image = Image.new("RGB", SIZE)
    draw = ImageDraw.Draw(image)
    for line in range(HORIZON + 1):
        share = (line / HORIZON) ** 1.5
        draw.line((0, line, WIDTH, line), tuple(round(a + (b - a) * share) for a, b in zip(*SKY)))
    for colour, shape in HILLS.items():
        draw.polygon([*ridge(heading, *shape), (WIDTH, HORIZON), (0, HORIZON)], fill=colour)
    image.paste(ground(heading, math.radians(FIRST_BEARING + TURN * index)), (0, HORIZON))
    draw_letters(draw, heading)
    for column in (WIDTH / 2, 0, WIDTH):  # its number, on the path ahead and behind
        font, grey = ImageFont.load_default(size=56), (120, 108, 88)
        draw.text((column, row(-48)), str(index + 1), "white", font, "mm", stroke_width=3, stroke_fill=grey)
    return image


def ridge(heading: float, height: float, swing: float, seed: int) -> Iterator[tuple[int, float]]:
    """A ridge at infinity: `height` degrees, give or take `swing`; it depends on the compass direction alone."""
    chance = random.Random(seed)
    waves = [(turns, chance.uniform(0, 360), swing / turns**0.7) for turns in (2, 3, 5, 9, 14)]
    for column in range(0, WIDTH + 1, 2):
        azimuth = heading + (column / WIDTH - 0.5) * 360
        shape = sum(size * math.sin(math.radians(turns * azimuth + phase)) for turns, phase, size in waves)
        yield column, row(max(height + shape * 0.6, 0.3))


def ground(heading: float, bearing: float) -> Image.Image:
    """Lawn mown in rings and path with joints, plain far away: each pixel of what lies where it looks."""
    angles = [math.radians(heading + ((x + 0.5) / WIDTH - 0.5) * 360) for x in range(WIDTH)]
    pixels = bytearray()
    for line in range(HORIZON):
        far = EYE / math.tan(math.radians((line + 0.5) / HORIZON * 90))
        for angle in angles:
            east = RADIUS * math.sin(bearing) + far * math.sin(angle)
            north = RADIUS * math.cos(bearing) + far * math.cos(angle)
            if abs((radius := math.hypot(east, north)) - RADIUS) < PATH:
                pixels += bytes(GRAVEL[int(math.atan2(east, north) * RADIUS // 3) % 2 if far < 40 else 0])
            else:
                pixels += bytes(GRASS[int(radius // 4) % 2 if far < 90 else 0])
    return Image.frombytes("RGB", (WIDTH, HORIZON), bytes(pixels))


def draw_letters(draw: ImageDraw.ImageDraw, heading: float) -> None:
    """N, E, S and W in the sky, each over a tick, and small ticks every 15 degrees, in the columns where they belong."""
    font, line, white = ImageFont.load_default(size=42), row(17), (255, 255, 255)
    for azimuth in range(0, 360, 15):
        letter, colour = LETTERS.get(azimuth, ""), (40, 48, 60) if azimuth else (196, 44, 44)
        for column in columns(heading, azimuth):
            draw.line((column, line, column, line + (13 if letter else 6)), white, 2)
            draw.text((column, line - 5), letter, colour, font, "ms", stroke_width=2, stroke_fill=white)


def encoded(picture: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def sample_tour() -> dict[str, bytes]:
    """The photos by name."""
    names = [f"PANO_{number:04d}_calculated.jpg" for number in range(1, PHOTOS + 1)]
    latitude, longitude = factory.moved(CENTRE, FIRST_BEARING, RADIUS)
    walk: dict[str, Any] = {"start": factory.START, "latitude": latitude, "longitude": longitude, "altitude": 38.4}
    walk |= {"sequence_id": factory.identifier("sample tour"), "step_s": 9, "zone_h": 1}
    walk |= {"course": FIRST_BEARING + 90 + TURN / 2, "turn": TURN, "spacing": SPACING}
    photos = {}
    for index, (name, record) in enumerate(zip(names, factory.tour_json(names, **walk))):
        picture = panorama(index, record["photo"]["original_heading"])
        options = {"size": SIZE, "thumbnail": encoded(picture.resize((160, 80)), 70), "offset_time_original": "+01:00"}
        photos[name] = factory.photo_bytes(record, image=encoded(picture, 80), **options)
    return photos


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "photos"
    photos = sample_tour()
    factory.write_tour(folder, photos)
    print(f"{len(photos)} photos, {sum(map(len, photos.values())) // 1024} KB, in {folder}")
