"""What the sandbox makes opens, depends on the prompt, and is the same for the same prompt and seed."""

import io
import wave
from typing import Any

import av
import pytest
from PIL import Image, ImageChops, ImageStat

from flora_async.sandbox import _media
from flora_async.sandbox._runs import seeded_random
from flora_async.sandbox._texts import text

STRANGE = ["", "   ", "\u0000", "a" * 5000, "日本語のプロンプト 🎨", "half \ud83d", "{prompt} %s {0}", "line\nbreak"]


def picture(prompt: str, seed: int = 0) -> Image.Image:
    """Open a picture."""
    image = Image.open(io.BytesIO(_media.render("image", prompt, seed).content))
    image.load()
    return image


def test_pictures() -> None:
    """A PNG, visibly of its prompt and seed."""
    mug, storm, other = picture("a mug"), picture("a storm"), picture("a mug", 1)
    assert mug.format == "PNG"
    assert mug.size == (768, 768)
    for different in (storm, other):
        change = ImageStat.Stat(ImageChops.difference(mug.convert("RGB"), different.convert("RGB"))).mean
        assert sum(change) > 15


def test_the_prompt_stands_in_the_picture() -> None:
    """The prompt is in the lower corner of the picture, light on dark."""
    corner = picture("a mug").convert("L").crop((30, 690, 400, 760))
    low, high = corner.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    assert high - low > 150


def picture_of(frame: Any) -> Image.Image:
    """Give a frame of a video."""
    image: Image.Image = frame.to_image()
    return image


def test_videos() -> None:
    """An MP4 that browsers play and begin early: H.264, 4:2:0, its index first; it moves."""
    content = _media.render("video", "a mug", 0).content
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(io.BytesIO(content), "r") as video:
        stream: Any = video.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = [picture_of(frame) for frame in video.decode(video=0)]
    assert len(frames) == _media.VIDEO_FRAMES
    assert sum(ImageStat.Stat(ImageChops.difference(frames[0], frames[-1])).mean) > 5


def test_tunes() -> None:
    """A WAV of a few seconds, mono, 16 bit, neither silent nor clipped."""
    with wave.open(io.BytesIO(_media.render("audio", "a mug", 0).content)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        samples = memoryview(sound.readframes(sound.getnframes())).cast("h")
        assert 2 < sound.getnframes() / sound.getframerate() < 10
    assert 10_000 < max(map(abs, samples)) < 32_767


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_the_same_again(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same prompt and seed, byte by byte; for another, another."""
    monkeypatch.setattr(_media, "VIDEO_FRAMES", 6)
    first = _media.render(kind, "again", 3)
    _media.render.cache_clear()
    assert _media.render(kind, "again", 3) == first
    assert _media.render(kind, "again", 4) != first
    _media.render.cache_clear()


@pytest.mark.parametrize("prompt", STRANGE)
def test_strange_prompts(prompt: str) -> None:
    """Whatever it says, there is a picture and a text."""
    assert picture(prompt).size == (768, 768)
    assert len(text(prompt, seeded_random(prompt))) > 20


def test_texts() -> None:
    """A text depends on the prompt and on the seed."""
    assert "a mug" in text("a mug", seeded_random("a mug", 1))
    assert text("a mug", seeded_random(1)) == text("a mug", seeded_random(1))
    assert len({text("a mug", seeded_random(seed)) for seed in range(20)}) > 10
