"""Pure: names, extensions and content encodings of saved outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from flora_async.models import Output

_CONTENT_TYPES = {
    "png": "image/png image/x-png image/apng",
    "jpg": "image/jpeg image/jpg image/pjpeg image/x-jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "heic": "image/heic image/heic-sequence",
    "heif": "image/heif image/heif-sequence",
    "jxl": "image/jxl",
    "tiff": "image/tiff image/tif image/x-tiff",
    "bmp": "image/bmp image/x-bmp image/x-ms-bmp",
    "svg": "image/svg+xml image/svg",
    "mp4": "video/mp4 video/x-mp4 application/mp4",
    "m4v": "video/x-m4v video/m4v",
    "webm": "video/webm",
    "mov": "video/quicktime video/mov",
    "mkv": "video/x-matroska video/matroska",
    "avi": "video/x-msvideo video/avi video/msvideo",
    "mpg": "video/mpeg",
    "ogv": "video/ogg",
    "wav": "audio/wav audio/x-wav audio/wave audio/vnd.wave audio/x-pn-wav",
    "mp3": "audio/mpeg audio/mp3 audio/x-mp3 audio/mpeg3 audio/x-mpeg audio/x-mpeg-3",
    "m4a": "audio/mp4 audio/x-m4a audio/m4a",
    "aac": "audio/aac audio/x-aac audio/aacp",
    "ogg": "audio/ogg audio/vorbis application/ogg",
    "opus": "audio/opus",
    "weba": "audio/webm",
    "flac": "audio/flac audio/x-flac",
    "aiff": "audio/aiff audio/x-aiff",
    "pdf": "application/pdf application/x-pdf",
    "json": "application/json text/json",
    "txt": "text/plain",
    "md": "text/markdown text/x-markdown",
    "csv": "text/csv",
    "vtt": "text/vtt",
    "srt": "application/x-subrip",
    "zip": "application/zip application/x-zip-compressed",
    "glb": "model/gltf-binary",
}
_EXTENSIONS = {name: extension for extension, names in _CONTENT_TYPES.items() for name in names.split()}
EXTENSIONS = (*_CONTENT_TYPES, "jpeg", "tif", "mpeg", "aif", "bin")
"""All extensions that a saved output can have."""

_URL_EXTENSION = r"(?s)[^/?#]*//[^/?#]*/[^?#]*\.([A-Za-z0-9]{1,5})(?:[?#].*)?"
_UNSAFE = r"[^A-Za-z0-9._-]|^[.-]"
_MAX_STEM = 120
_DIGEST = 8


def extension_of(content_type: str, *urls: str) -> str:
    """Return the extension of a content type. If it is unknown, return the first known extension in *urls*."""
    known = _EXTENSIONS.get(re.split("[;,]", content_type)[0].strip().lower())
    if known is not None:
        return known
    for url in urls:
        match = re.fullmatch(_URL_EXTENSION, url)
        if match is not None and match[1].lower() in EXTENSIONS:
            return match[1].lower()
    return "bin"


def file_stems(run_id: str | None, outputs: Sequence[Output]) -> list[str]:
    """Return a file name without its extension for each output, always the same for the same output.

    The names are ``{run_id}_{output_id}`` where that is safe and unambiguous. Otherwise a digest follows the cleaned
    ids. It always follows the id of an output without its run, because other runs have outputs of the same id.
    """
    stems: list[str] = []
    seen: Counter[str] = Counter()
    for output in outputs:
        exact = output.output_id if run_id is None else f"{run_id}_{output.output_id}"
        clean = re.sub(_UNSAFE, "_", exact) or "output"
        folded = exact.casefold()  # file systems can ignore case
        unambiguous = run_id is not None and "_" not in run_id.removeprefix("run_") and output.output_id
        if not unambiguous or clean != exact or len(exact) > _MAX_STEM or seen[folded]:
            address = "" if run_id is not None else output.url if output.type == "text" else _without_query(output.url)
            identity = repr((run_id, output.output_id, seen[folded], address))
            digest = sha256(identity.encode()).hexdigest()[:_DIGEST]
            clean = f"{clean[: _MAX_STEM - _DIGEST - 1]}-{digest}"
        seen[folded] += 1
        stems.append(clean)
    return stems


def content_coding(header: str) -> str:
    """Return the encoding that a ``Content-Encoding`` header names: ``""`` for none, ``"gzip"``, or another.

    ``aws-chunked`` names how an object was uploaded. Object stores repeat it, and send the plain object.
    """
    names = [name.strip().lower() for name in header.split(",")]
    codings = [name for name in names if name not in ("", "identity", "aws-chunked")]
    return "gzip" if codings in (["gzip"], ["x-gzip"]) else ", ".join(codings)


def _without_query(url: str) -> str:
    return re.split("[?#]", url)[0]  # the query of a signed URL changes


def content_type_of(extension: str) -> str | None:
    """Return the content type of an *extension* in lower case; ``None`` if it is unknown."""
    names = _CONTENT_TYPES.get({"jpeg": "jpg", "tif": "tiff"}.get(extension, extension))
    return None if names is None else names.partition(" ")[0]
