"""Outcomes of orders and runs: a run that has completed, or the error in its place."""

from __future__ import annotations

from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from msgspec import Struct

from flora_async import errors
from flora_async.models import AnyOrder, Run

OrderT = TypeVar("OrderT", bound=AnyOrder)
_OrderT_co = TypeVar("_OrderT_co", bound="AnyOrder | None", covariant=True)
_RunIdT_co = TypeVar("_RunIdT_co", bound="str | None", covariant=True)


class CompletedOutcome(Struct, Generic[_OrderT_co], frozen=True, kw_only=True):
    """An order, or a started run, that completed."""

    order: _OrderT_co
    """The caller's own object; ``None`` in ``as_completed``, which knows runs only."""
    run: Run
    """The completed run, with its outputs."""
    error: None = None
    attempts: tuple[errors.RunFailedError, ...] = ()
    """The failed attempts before this run, oldest first: each was ordered again under a new key (``retry_failed``)."""

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.run.run_id

    def result(self) -> Run:
        """Return the run."""
        return self.run

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: ``order``, ``run_id``, ``run``, ``error``, which is ``None``, and ``attempts``."""
        order = None if self.order is None else self.order.to_dict()
        record = {"order": order, "run_id": self.run_id, "run": self.run.to_dict(), "error": None}
        return record | {"attempts": [attempt.to_dict() for attempt in self.attempts]}


class FailedOutcome(Struct, Generic[_OrderT_co, _RunIdT_co], frozen=True, kw_only=True):
    """An order, or a started run, that did not complete."""

    order: _OrderT_co
    """The caller's own object; ``None`` in ``as_completed``, which knows runs only."""
    error: errors.FloraError
    """A :class:`RunFailedError` if the run failed; else the error that ended the create or the wait."""
    run_id: _RunIdT_co
    """The id of the run; ``None`` if no run was started or its id is unknown."""
    run: None = None
    attempts: tuple[errors.RunFailedError, ...] = ()
    """The failed attempts before this one, oldest first: each was ordered again under a new key (``retry_failed``)."""

    def result(self) -> NoReturn:
        """Raise the error."""
        raise self.error

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: ``order``, ``run_id``, ``run``, which is ``None``, ``error`` and ``attempts``."""
        order = None if self.order is None else self.order.to_dict()
        record = {"order": order, "run_id": self.run_id, "run": None, "error": self.error.to_dict()}
        return record | {"attempts": [attempt.to_dict() for attempt in self.attempts]}


Outcome: TypeAlias = CompletedOutcome[_OrderT_co] | FailedOutcome[_OrderT_co, "str | None"]
"""The end of an order: ``run`` if it has completed, else ``error``. ``outcome.error is None`` narrows ``run``."""
