"""The sandbox's media: real pictures, videos and sounds, the same for the same prompt and seed.

An image is a landscape with the prompt in its corner, a video is a day over it, and a sound is a short tune. Pillow
and PyAV come with the extra ``sandbox``.
"""

from __future__ import annotations

import colorsys
import io
import math
import struct
import textwrap
import wave
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct
from PIL import Image, ImageDraw, ImageFont

from flora_async.models import GenerationType
from flora_async.sandbox._runs import seeded_random

PICTURE_SIZE = 768
VIDEO_SIZE = 480
VIDEO_FRAMES = 60
FRAMES_PER_SECOND = 24
SAMPLES_PER_SECOND = 22_050
NOTES = 12
NOTE_SECONDS = 0.28
_PENTATONIC = (0, 2, 4, 7, 9, 12, 14, 16)

# PyAV's types are known in part only.
av: Any = import_module("av")

Color = tuple[int, int, int]


class Medium(Struct, frozen=True):
    """The bytes of one output, and their media type."""

    content: bytes
    content_type: str


@lru_cache(maxsize=64)
def render(kind: GenerationType, prompt: str, seed: int, picture: bytes | None = None) -> Medium:
    """Render the medium of a finished run, of the given *picture* where there is one.

    Takes up to a second: call it in a worker thread.
    """
    makers: dict[GenerationType, tuple[Callable[[_Scene], bytes], str]] = {
        "image": (_picture, "image/png"),
        "video": (_video, "video/mp4"),
        "audio": (_tune, "audio/wav"),
    }
    make, content_type = makers[kind]
    return Medium(make(_Scene(prompt, seed, _decode(picture))), content_type)


def _decode(picture: bytes | None) -> Image.Image | None:
    try:
        return None if picture is None else Image.open(io.BytesIO(picture)).convert("RGB")
    except OSError:  # a type that Pillow does not read
        return None


class _Scene:
    """A landscape that can be drawn at any size and hour."""

    def __init__(self, prompt: str, seed: int, picture: Image.Image | None = None) -> None:
        self.prompt, self.seed, self.picture = prompt, seed, picture
        pick = seeded_random("scene", prompt, seed)
        self.hue = pick.random()
        self.turn = pick.choice((-1, 1)) * pick.uniform(0.08, 0.2)
        self.sun = (pick.uniform(0.22, 0.78), pick.uniform(0.2, 0.42), pick.uniform(0.06, 0.13))
        self.ridges = [
            [(pick.uniform(2, 14), pick.uniform(0, math.tau), pick.uniform(0.01, 0.06)) for _ in range(4)]
            for _ in range(5)
        ]
        self.stars = [(pick.random(), pick.uniform(0, 0.5), pick.uniform(0.0008, 0.0022)) for _ in range(70)]
        self.caption = textwrap.shorten(prompt, 90, placeholder=" ...") or " "

    def color(self, depth: float, light: float, strength: float = 0.55) -> Color:
        """Return the color of a layer: *depth* 0 is the sky's top, 1 the nearest ridge."""
        red, green, blue = colorsys.hls_to_rgb((self.hue + self.turn * depth) % 1, light, strength)
        return round(255 * red), round(255 * green), round(255 * blue)

    def draw(self, size: int, hour: float) -> Image.Image:
        """Draw it at an *hour* from 0, dawn, to 1, dusk. Of a given picture, draw a move towards its center."""
        if self.picture is not None:
            side = min(self.picture.size) * (1 - 0.3 * hour)
            left, top = ((length - side) / 2 for length in self.picture.size)
            return self.picture.resize((size, size), box=(left, top, left + side, top + side))
        image = Image.new("RGB", (size, size))
        pen = ImageDraw.Draw(image)
        day = 0.45 + 0.55 * math.sin(math.pi * hour)
        for row in range(size):
            share = row / size
            pen.line(((0, row), (size, row)), fill=self.color(share, (0.2 + 0.55 * share) * day))
        for x, y, radius in self.stars:
            glow = self.color(0.1, 0.35 + 0.6 * day, 0.3)
            _disc(pen, x * size, y * size, radius * size, glow)
        x, y, radius = self.sun
        across, height = (x + 0.5 * (hour - 0.5)) * size, (y + 0.7 * (hour - 0.5) ** 2) * size
        for ring in range(5, -1, -1):
            light = min(0.95, 0.62 + 0.32 * day - 0.055 * ring)
            _disc(pen, across, height, radius * size * (1 + 0.16 * ring**1.3), self.color(0.85, light, 0.75))
        for number, waves in enumerate(self.ridges):
            depth = (number + 1) / len(self.ridges)
            base = 0.5 + 0.4 * depth
            drift = 0.35 * depth * (hour - 0.5)
            line = [(column, size * (base - _swell(waves, column / size + drift))) for column in range(0, size + 4, 4)]
            shade = self.color(depth, (0.46 - 0.37 * depth) * (0.35 + 0.65 * day))
            pen.polygon([*line, (size, size), (0, size)], fill=shade)
        return image

    def write(self, image: Image.Image) -> None:
        """Write the prompt into the lower corner."""
        size = image.width
        font = ImageFont.load_default(size / 26)
        pen = ImageDraw.Draw(image)
        text = "\n".join(textwrap.wrap(self.caption, 44))
        left, edge = size * 0.05, size * 0.955
        pen.multiline_text((left + 1.5, edge + 1.5), text, font=font, fill=(0, 0, 0), anchor="ld")
        pen.multiline_text((left, edge), text, font=font, fill=(250, 248, 240), anchor="ld")


def _swell(waves: Sequence[tuple[float, float, float]], x: float) -> float:
    return sum(tall * math.sin(wide * x + at) for wide, at, tall in waves)


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _picture(scene: _Scene) -> bytes:
    # The picture is drawn twice as large and reduced, which smooths the edges.
    hour = seeded_random("hour", scene.prompt, scene.seed).uniform(0.25, 0.75)
    image = scene.draw(2 * PICTURE_SIZE, hour).reduce(2)
    scene.write(image)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _video(scene: _Scene) -> bytes:
    # "faststart" lets a browser play before it has the whole file; it needs a real file. With more threads, or with
    # the encoder's macroblock tree, the bytes differ each time.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(path, "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream(
                "libx264", rate=FRAMES_PER_SECOND, options={"x264-params": "threads=1:mbtree=0"}
            )
            stream.width = stream.height = VIDEO_SIZE
            stream.pix_fmt = "yuv420p"
            for number in range(VIDEO_FRAMES):
                image = scene.draw(VIDEO_SIZE, number / (VIDEO_FRAMES - 1))
                scene.write(image)
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            container.mux(stream.encode())
        return path.read_bytes()


def _tune(scene: _Scene) -> bytes:
    pick = seeded_random("tune", scene.prompt, scene.seed)
    root = 220.0 * 2 ** (pick.randrange(12) / 12)
    length = round(NOTE_SECONDS * SAMPLES_PER_SECOND)
    tail = 3 * length
    samples = [0.0] * (NOTES * length + tail)
    step = pick.randrange(len(_PENTATONIC))
    for number in range(NOTES):
        step = min(max(step + pick.choice((-2, -1, -1, 0, 1, 1, 2)), 0), len(_PENTATONIC) - 1)
        pitch = root * 2 ** (_PENTATONIC[step] / 12)
        turn = math.tau * pitch / SAMPLES_PER_SECOND
        loud = 0.22 if number % 3 else 0.3
        for at in range(length + tail):
            fade = min(1.0, at / 200) * math.exp(-4.5 * at / length)
            samples[number * length + at] += loud * fade * (math.sin(turn * at) + 0.35 * math.sin(2 * turn * at))
    peak = max(abs(sample) for sample in samples)
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLES_PER_SECOND)
        sound.writeframes(struct.pack(f"<{len(samples)}h", *(round(29_000 * sample / peak) for sample in samples)))
    return file.getvalue()
