"""Pure: encode multipart forms, and check the forms that FLORA asks an upload to send to another host."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async.models import Asset

MAX_FORM_FIELDS = 1000
MAX_FORM_BYTES = 2**20
"""Largest total of names and values in a form. Stores accept less: Amazon S3 20,000 bytes."""

_ESCAPES = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}
"""Characters that a name in a part's header cannot hold. Source: WHATWG HTML, "Multipart form data"."""


class FormBody(Struct, frozen=True):
    """The bytes of a request around those of the file."""

    content_type: str
    head: bytes = b""
    tail: bytes = b""


class UploadTarget(Struct, frozen=True):
    """Where the bytes of a reserved upload go."""

    url: str
    method: str = "POST"
    file_field: str = "file"
    fields: tuple[tuple[str, str], ...] = ()


class _EncodedTarget(Struct, frozen=True):
    """The JSON text of ``upload_url`` in FLORA's 0.12.0 client."""

    url: str
    fields: dict[str, object] | None = None


def encode_form(fields: Iterable[tuple[str, str]], *, file_field: str, file_name: str, content_type: str) -> FormBody:
    """Encode a form with its *fields* first and the file last: stores ignore the fields after the file."""
    boundary = f"flora-{uuid.uuid4().hex}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_escape(name)}"\r\n\r\n{value}\r\n'
        for name, value in fields
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_escape(file_field)}"; '
        f'filename="{_escape(file_name)}"\r\nContent-Type: {content_type}\r\n\r\n'
    )
    head = "".join(parts).encode(errors="replace")
    return FormBody(f"multipart/form-data; boundary={boundary}", head, f"\r\n--{boundary}--\r\n".encode())


def _escape(name: str) -> str:
    return name.translate(_ESCAPES)


def upload_target(asset: Asset) -> UploadTarget:
    """Return where to send the bytes of a reserved asset.

    Without ``upload``, ``upload_url`` is JSON text of a form, or a plain URL for a PUT: FLORA's clients differ.

    Raises:
        UploadError: there is no target, or its form cannot be sent as it is.
    """
    form, given = asset.upload, asset.upload_url
    if form is not None and form.url:
        method, file_field = (form.method or "POST").upper(), form.file_field or "file"
        return _check_form(UploadTarget(form.url, method, file_field), form.form_fields or {})
    if not given:
        raise errors.UploadError("FLORA named no address for the file")
    try:
        encoded = msgspec.json.decode(given, type=_EncodedTarget)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return UploadTarget(given, "PUT")
    return _check_form(UploadTarget(encoded.url), encoded.fields or {})


def _check_form(target: UploadTarget, fields: dict[str, object]) -> UploadTarget:
    """Return *target* with its *fields*. Refuse a form that a store could read in another way than FLORA meant it."""
    if target.method not in ("POST", "PUT"):
        raise errors.UploadError(f"FLORA asks for an upload by {target.method[:20]!r}, which is neither POST nor PUT")
    if len(fields) > MAX_FORM_FIELDS:
        raise errors.UploadError(f"FLORA's form has {len(fields)} fields. At most {MAX_FORM_FIELDS} are sent")
    size = 0
    texts: list[tuple[str, str]] = []
    for name, value in fields.items():
        if not isinstance(value, str):
            raise errors.UploadError(f"FLORA's form has no text in its field {name[:80]!r}")
        if name.lower() == target.file_field.lower():
            raise errors.UploadError(f"FLORA's form has a field {name[:80]!r} beside the file of that name")
        size += len(name) + len(value)
        texts.append((name, value))
    for name in (target.file_field, *fields):
        if not name or not name.isprintable():
            raise errors.UploadError(f"FLORA's form has a field with the name {name[:80]!r}, which cannot be sent")
    if size > MAX_FORM_BYTES:
        raise errors.UploadError(f"FLORA's form has {size} characters. At most {MAX_FORM_BYTES} are sent")
    return UploadTarget(target.url, target.method, target.file_field, tuple(texts))
