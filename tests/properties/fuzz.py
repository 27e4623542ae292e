"""Feed arbitrary bytes to everything that reads what a server, or a stranger, says. Run by `nox -s fuzz`.

Nothing but a FloraError may come out, whatever goes in.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import Any

from multidict import CIMultiDict

from flora_async import FloraError, GenerationPage, webhooks
from flora_async._http import urls
from flora_async._http.requests import Request, retrieve_request
from flora_async._http.responses import (
    RawResponse,
    decompress,
    find_run_id,
    http_date,
    parse_page,
    parse_response,
    parse_run,
    parse_started_run,
)
from flora_async._validation import check_id

ORIGIN = urls.parse_base_url("https://app.flora.ai/api/v1")
REQUEST = Request(method="GET", url="https://app.flora.ai/api/v1/runs/run_1")
READERS = (
    partial(parse_run, "run_1"),
    parse_started_run,
    parse_page,
    partial(parse_response, dict),
    partial(parse_response, GenerationPage),
)
STATUSES = (200, 201, 204, 302, 400, 409, 429, 500, 503, 999)
ENCODINGS = ("", "gzip", "deflate", "br")
SECRET = "whsec_fuzz"
LIMIT = 2**20


def read(body: bytes, header: str, choice: int) -> None:
    """Read bytes as an answer, in one of many ways."""
    status, encoding = STATUSES[choice % len(STATUSES)], ENCODINGS[choice // 16 % len(ENCODINGS)]
    headers = CIMultiDict(
        {"Content-Encoding": encoding, "Retry-After": header, "Date": header, "Location": header, "request-id": header}
    )
    answer = RawResponse(request=REQUEST, status=status, headers=headers, body=body)
    READERS[choice % len(READERS)](decompress(answer, LIMIT))


def verify(body: bytes, header: str, choice: int) -> None:
    """Verify bytes as a call-back, sometimes with a proper signature."""
    signed = webhooks.sign(body, SECRET, now=1.8e9) if choice % 2 else {"Flora-Signature": header}
    webhooks.verify(body, signed, SECRET, now=1.8e9)


def place(body: bytes, header: str, choice: int) -> None:
    """Read text as each kind of address."""
    target = urls.poll_target(ORIGIN, header)
    assert target is None or target.startswith("https://app.flora.ai/api/v1/")
    urls.origin_of(header)
    http_date(header)
    find_run_id(retrieve_request(ORIGIN, "run_1"), 201, body)
    readers: tuple[Any, ...] = (
        partial(urls.media_url, ORIGIN),
        urls.parse_base_url,
        partial(check_id, "run_id", prefix="run_"),
    )
    readers[choice % 3](header)


def one_input(data: bytes) -> None:
    """Do one of the three with an input of the fuzzer's."""
    if len(data) < 3:
        return
    size = min(data[2], len(data) - 3)
    header, body = data[3 : 3 + size].decode("latin-1"), data[3 + size :]
    try:
        (read, verify, place)[data[0] % 3](body, header, data[1])
    except FloraError as error:
        assert str(error).isprintable()


def main() -> None:
    """Let atheris look for what breaks it."""
    atheris: Any = import_module("atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
