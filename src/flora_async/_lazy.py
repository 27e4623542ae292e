"""Modules that only annotations name: imported when ``typing.get_type_hints`` resolves them, not before."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """Placeholder of the module *name*. Its attributes are ``Any`` if it is not installed.

    Dependency injection resolves the annotations of public callables at run time. These name aiohttp, which takes most
    of this package's import time, and libraries of extras.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        try:
            module = import_module(self._name)
        except ImportError:
            return Any
        found: object = getattr(module, attribute)
        return found
