"""The content type of a file: by its first bytes, or else by its name."""

import io
import struct

import pytest
from PIL import Image

from flora_async._media_types import SIGNATURE_BYTES, UPLOAD_TYPES, content_type_of_file
from flora_async.sandbox import _media


def box(major: bytes, *compatible: bytes) -> bytes:
    """Return the first box of an ISO base media file."""
    brands = major + b"\0\0\0\0" + b"".join(compatible)
    return struct.pack(">I4s", 8 + len(brands), b"ftyp") + brands + b"\0\0\0\x08free"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        (box(b"avif", b"mif1", b"miaf"), "image/avif"),
        (box(b"avis"), "image/avif"),
        (box(b"mif1", b"mif1", b"avif"), "image/avif"),
        (box(b"mif1", b"heic"), "image/heic"),
        (box(b"mif1", b"miaf"), "image/heif"),
        (box(b"heic", b"mif1"), "image/heic"),
        (box(b"isom", b"iso2", b"avc1", b"mp41"), "video/mp4"),
        (box(b"mp42"), "video/mp4"),
        (box(b"qt  "), "video/quicktime"),
        (box(b"M4A "), "audio/mp4"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm", "video/webm"),
        (b"\x1a\x45\xdf\xa3\xa3B\x82\x88matroska", "video/x-matroska"),
        (b"ID3\x04\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "audio/mpeg"),
        (b"\xff\xf3\x90\x64", "audio/mpeg"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
        (b"OggS\0\x02", "audio/ogg"),
        (b"%PDF-1.7", "application/pdf"),
        (b"RIFF\x24\0\0\0AVI LIST", "video/x-msvideo"),
        (b"BM\0\0", "image/bmp"),
        (b"", None),
        (b"RIFF", None),
        (b"\0\0\0\x18ftyp", "video/mp4"),
        (b"plain", None),
    ],
)
def test_signatures(head: bytes, expected: str | None) -> None:
    """Each documented format by its signature, from its specification; the cut ones too."""
    assert content_type_of_file(head, None) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.JPEG", "image/jpeg"),
        ("a.jpg", "image/jpeg"),
        ("a.mov", "video/quicktime"),
        ("a.b/c.pdf", "application/pdf"),
        ("a.unknown", None),
        ("png", None),
        ("", None),
    ],
)
def test_names(name: str, expected: str | None) -> None:
    """A file without a known signature is taken at its name."""
    assert content_type_of_file(b"??", name) == expected


def test_the_bytes_decide_against_the_name() -> None:
    """A JPEG under a wrong name is a JPEG."""
    assert content_type_of_file(b"\xff\xd8\xff\xe1", "a.png") == "image/jpeg"


def test_real_files() -> None:
    """Files that Pillow and PyAV wrote have the type that they were written as."""
    written = {form: io.BytesIO() for form in ("jpeg", "png", "gif", "webp", "pdf")}
    for form, file in written.items():
        Image.new("RGB", (8, 8)).save(file, form)
        kind = "application/pdf" if form == "pdf" else f"image/{form}"
        assert content_type_of_file(file.getvalue()[:SIGNATURE_BYTES], None) == kind
        assert kind in UPLOAD_TYPES
    for form, codec, kind in (
        ("mp4", "libx264", "video/mp4"),
        ("mov", "libx264", "video/quicktime"),
        ("webm", "libvpx", "video/webm"),
    ):
        file = io.BytesIO()
        with _media.av.open(file, "w", format=form) as container:
            stream = container.add_stream(codec, rate=1)
            stream.width = stream.height = 64
            frame = _media.av.VideoFrame.from_image(Image.new("RGB", (64, 64)))
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())
        assert content_type_of_file(file.getvalue()[:SIGNATURE_BYTES], None) == kind
    tune = _media.render("audio", "a heron", 1).content
    assert content_type_of_file(tune[:SIGNATURE_BYTES], None) == "audio/wav"
