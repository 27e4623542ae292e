"""Pure: the content types that FLORA accepts as assets, from the first bytes of a file or from its name.

The table has the types of FLORA's list only. A detection library would be a fifth dependency of the core for
types that FLORA refuses. Sources: the format specifications; the registered brands of ISO base media files (mp4ra.org).
"""

from __future__ import annotations

from pathlib import PurePath

from flora_async._file_names import content_type_of

SIGNATURE_BYTES = 64
"""Number of bytes at the beginning of a file that decide on its type."""
UPLOAD_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/gif", "image/avif", "image/heic", "image/heif"),
    *("video/mp4", "video/webm", "video/quicktime", "audio/mpeg", "audio/wav", "audio/ogg", "application/pdf"),
)
"""Content types of assets. Official client 0.11.0: ``POST /assets``."""

_PREFIXES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    *((bytes((0xFF, second)), "audio/mpeg") for second in (0xFA, 0xFB, 0xF2, 0xF3, 0xE2, 0xE3)),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"fLaC", "audio/flac"),
    (b"PK\x03\x04", "application/zip"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "image/heic"),
    **dict.fromkeys((b"mif1", b"msf1", b"mif2"), "image/heif"),
    **dict.fromkeys((b"M4A ", b"M4B ", b"M4P "), "audio/mp4"),
    b"qt  ": "video/quicktime",
}
"""Types of ISO base media files by their brand. Other brands are MPEG-4 video."""


def content_type_of_file(head: bytes, name: str | None) -> str | None:
    """Return the content type by the first bytes of a file, else by its name; ``None`` if neither is known."""
    if (detected := _detect(head)) is not None:
        return detected
    return None if name is None else content_type_of(PurePath(name).suffix[1:].lower())


def _detect(head: bytes) -> str | None:
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head else "video/x-matroska"
    return _detect_brand(head) if head[4:8] == b"ftyp" else None


def _detect_brand(head: bytes) -> str:
    """Return the type of an ISO base media file. A generic image brand is refined by the compatible brands."""
    length = min(int.from_bytes(head[:4]), len(head))
    major, *compatible = (head[at : at + 4] for at in (8, *range(16, length - 3, 4)))
    kind = _BRANDS.get(major, "video/mp4")
    if kind == "image/heif":
        kinds = [_BRANDS.get(brand) for brand in compatible]
        return next((each for each in ("image/avif", "image/heic") if each in kinds), kind)
    return kind
