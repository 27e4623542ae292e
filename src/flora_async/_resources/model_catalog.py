"""The list of models of one client: read once, kept, refreshed within bounds. Its orders are compared with it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import get_args

from flora_async import errors
from flora_async._aio import require_loop
from flora_async._resources.param_checks import Catalog, CheckParams, Fault, find_faults
from flora_async.models import FieldError, Model, Order

log = logging.getLogger("flora_async")

MODES: tuple[CheckParams, ...] = get_args(CheckParams)
MAX_AGE = 3600.0
"""Seconds after which the list is read again."""
MIN_AGE = 300.0
"""Seconds before which the list is not read again, also for a model that it lacks."""
FAILURE_PAUSE = 60.0
"""Seconds without another read after one that failed. Meanwhile orders are checked by the old list, if there is one."""
READ_TIMEOUT = 10.0
"""Seconds for which an order waits for the list, with all retries of the read."""
MAX_WARNINGS = 1000
"""Number of different warnings that a client logs."""


class ModelCatalog:
    """Keeps the list of models, and refuses orders that it rules out. One read at a time, shared by all orders."""

    def __init__(
        self,
        read_models: Callable[[], Awaitable[tuple[Model, ...]]],
        read_gateway: Callable[[], Awaitable[frozenset[str]]],
        now: Callable[[], float],
    ) -> None:
        self._read_models = read_models
        self._read_gateway = read_gateway
        self._now = now
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._models: Catalog | None = None
        self._gateway: frozenset[str] = frozenset()
        self._models_at = self._gateway_at = self._failed_at = -math.inf
        self._warnings: set[str] = set()

    def store(self, models: tuple[Model, ...]) -> Catalog:
        """Store the list of all models, as just read."""
        self._models = Catalog({model.model_id: model for model in models}, self._gateway)
        self._models_at = self._now()
        return self._models

    async def find_faults(self, model_id: str, find: Callable[[Catalog], list[Fault]]) -> list[Fault]:
        """Return the faults that *find* finds by the list of models. The list that shows a fault for certain is new.

        Raises:
            FloraError: the list cannot be read, and there is no older one.
        """
        catalog = await self.get(model_id)
        faults = find(catalog)
        if any(fault.certain for fault in faults):  # FLORA may have changed the model since the list was read
            current = await self.get(model_id, max_age=MIN_AGE)
            return faults if current is catalog else find(current)
        return faults

    async def get(self, model_id: str | None = None, *, max_age: float = MAX_AGE) -> Catalog:
        """Return the list of models. Read it if it is old, or if it lacks *model_id* and is not new.

        Raises:
            FloraError: it cannot be read, and there is no older one.
        """
        catalog = self._models
        if catalog is None or self._is_due(model_id, max_age):
            self._loop = require_loop(self._loop)
            async with self._lock:
                catalog = await self._refresh(model_id, max_age)
        return catalog

    def _is_due(self, model_id: str | None, max_age: float) -> bool:
        now, catalog = self._now(), self._models
        if now - self._failed_at < FAILURE_PAUSE and catalog is not None:
            return False
        if catalog is None or now - self._models_at > max_age:
            return True
        if model_id is None or model_id in catalog.models:
            return False
        return now - self._models_at > MIN_AGE or self._is_gateway_due(model_id)

    def _is_gateway_due(self, model_id: str) -> bool:
        # Ids of the gateway have the form org/model.
        return "/" in model_id and self._now() - self._gateway_at > MAX_AGE

    async def _refresh(self, model_id: str | None, max_age: float) -> Catalog:
        """Read the list unless another order just did."""
        catalog = self._models
        if catalog is not None and not self._is_due(model_id, max_age):
            return catalog
        if catalog is None and self._now() - self._failed_at < FAILURE_PAUSE:
            raise errors.APIConnectionError("the list of models could not be read a moment ago", sent="not_sent")
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                if catalog is None or self._now() - self._models_at > MIN_AGE:
                    catalog = self.store(await self._read_models())
                if model_id is not None and model_id not in catalog.models and self._is_gateway_due(model_id):
                    catalog = await self._add_gateway(catalog)
        except (errors.FloraError, TimeoutError) as error:
            self._failed_at = self._now()
            if catalog is None and isinstance(error, errors.FloraError):
                raise
            if catalog is None:
                reason = f"the list of models was not read within {READ_TIMEOUT:g} s"
                raise errors.APITimeoutError(reason, sent="maybe_sent") from None
            extra = {"error": type(error).__name__}
            log.warning("cannot refresh the list of models: %s", type(error).__name__, extra=extra)
        return catalog

    async def _add_gateway(self, catalog: Catalog) -> Catalog:
        try:
            self._gateway = await self._read_gateway()
        except errors.APIError:
            self._gateway = frozenset()  # the gateway need not be live
        self._gateway_at = self._now()
        self._models = Catalog(catalog.models, self._gateway)
        return self._models

    async def check(self, order: Order, mode: CheckParams) -> None:
        """Compare an order with its model, before it is sent.

        Raises:
            ConfigurationError: *mode* is "refuse" and the order is certainly wrong; ``fields`` has the errors.
        """
        try:
            faults = await self.find_faults(str(order.model), partial(find_faults, order))
        except (errors.ConfigurationError, errors.ClientClosedError):
            raise
        except errors.FloraError as error:
            label = type(error).__name__
            self._warn(f"orders are not checked: the list of models cannot be read: {label}", order.model, "model")
            return
        refused = [fault for fault in faults if fault.certain and mode == "refuse"]
        for fault in faults:
            if fault not in refused:
                self._warn(fault.message, order.model, fault.field)
        if refused:
            raise refusal(refused)

    def _warn(self, message: str, model: str | None, field: str) -> None:
        """Log a warning once."""
        if message not in self._warnings and len(self._warnings) < MAX_WARNINGS:
            self._warnings.add(message)
            log.warning("%s", message, extra={"model": model, "field": field})


def require_mode(value: object) -> CheckParams:
    """Return a value of ``check_params``."""
    if value not in MODES:
        raise errors.ConfigurationError(f"check_params must be 'off', 'warn' or 'refuse', not {value!r}")
    return MODES[MODES.index(value)]


def refusal(faults: list[Fault]) -> errors.ConfigurationError:
    """Build the error of an order that its model does not accept."""
    error = errors.ConfigurationError("; ".join(fault.message for fault in faults))
    error.fields = tuple(FieldError(field=fault.field, message=fault.message) for fault in faults)
    return error
