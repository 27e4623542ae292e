"""Modules that only annotations name: imported when ``typing.get_type_hints`` asks for them, and not before."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """Stand in for the module *name*; its attributes are ``Any`` where it is not installed.

    Dependency injection resolves the annotations of public callables at run time. They name aiohttp, whose import is
    most of this package's, and libraries of extras.
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
