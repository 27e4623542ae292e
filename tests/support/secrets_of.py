"""Whether an error, or what was logged beside it, shows the API key."""

from __future__ import annotations

import pickle
import secrets
import traceback
from collections.abc import Iterator

KEY = f"sk_test_{secrets.token_hex(16)}"


def texts(error: BaseException) -> Iterator[str]:
    """Give everything that somebody may record of an error: with the locals of all frames, and its whole chain."""
    yield str(error)
    yield repr(error)
    yield repr(error.args)
    yield repr(vars(error))
    yield pickle.dumps(error).decode("latin-1")
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    yield "".join(told.format())


def assert_secret(error: BaseException) -> None:
    """No text of an error shows the key."""
    for text in texts(error):
        assert KEY not in text, text[:2000]
    chain = error
    while (cause := chain.__cause__ or chain.__context__) is not None:
        chain = cause
        assert not type(chain).__module__.startswith("aiohttp"), f"{type(chain).__name__} left the package"
