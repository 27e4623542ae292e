"""Failures of requests, for tables of decisions."""

from flora_async import (
    APIConnectionError,
    APITimeoutError,
    BadRequestError,
    InternalServerError,
    ProtocolError,
    RateLimitError,
    ResponseDecodeError,
)

REFUSED = APIConnectionError("refused", sent="not_sent")
CUT = APIConnectionError("cut", sent="maybe_sent")
LATE = APITimeoutError("late", sent="maybe_sent")
BAD_CERTIFICATE = APIConnectionError("certificate", sent="not_sent", retryable=False)
GARBAGE = ProtocolError("garbage")
REDIRECT = ProtocolError("redirect", status=302, retryable=False)
HTML = ResponseDecodeError("no", field=None, url="u", status=200, request_id=None, excerpt=" <!DOCTYPE html>")
ACCEPTED_OTHERWISE = ProtocolError("answered 200", status=200)
UNDECODABLE = ResponseDecodeError("no", field=None, url="u", status=201, request_id=None, excerpt="")
BUSY = InternalServerError("busy", status=503)
BROKEN = InternalServerError("broken", status=500)
SLOW_DOWN = RateLimitError("slow down", status=429)
BAD = BadRequestError("bad", status=400)
