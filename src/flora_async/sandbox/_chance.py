"""Choices that are always the same for the same words."""

from __future__ import annotations

from hashlib import sha256
from random import Random


def chance(*words: object) -> Random:
    """Give a source of choices for these *words*."""
    return Random(sha256("\0".join(map(str, words)).encode(errors="replace")).digest())
