"""``flora-async models check`` and ``models stubs``; order files compared with the list of models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from flora_async import AnyOrder, Catalog, CheckParams, Flora, Order, errors
from flora_async._aio import run_in_thread
from flora_async.cli import arguments, output
from flora_async.cli.order_files import OrderFile, open_orders

MAX_WARNINGS = 20
"""Different warnings that are printed."""
PLACE = {"workspace_id": "ws_any", "project_id": "prj_any", "prompt": "any"}
"""Fields of an order that the list of models does not concern."""


def comparing(
    catalog: Catalog, validate: Callable[[AnyOrder], AnyOrder], warn: Callable[[str], object] | None = None
) -> Callable[[AnyOrder], AnyOrder]:
    """Return a function that validates an order, and compares it with its model: it raises, or calls *warn*."""

    def check(order: AnyOrder) -> AnyOrder:
        valid = validate(order)
        faults = "; ".join(fault.message for fault in catalog.check(valid))
        if faults and warn is None:
            raise errors.ConfigurationError(faults)
        if faults and warn is not None:
            warn(faults)
        return valid

    return check


async def checked_by(flora: Flora, mode: CheckParams | None) -> Callable[[AnyOrder], AnyOrder]:
    """Return the check of an order file's lines: a list that cannot be read, and faults to warn of, are reported."""
    validate, chosen = flora.generations.validate, mode or flora.check_params
    if chosen == "off":
        return validate
    try:
        catalog = await flora.models.catalog()
    except errors.ConfigurationError:
        raise
    except errors.FloraError as error:
        output.print_status(f"orders are not compared with their models, the list cannot be read: {error}")
        return validate
    reported: set[str] = set()

    def warn(faults: str) -> None:
        if faults not in reported and len(reported) < MAX_WARNINGS:
            reported.add(faults)
            output.print_status(faults)

    return comparing(catalog, validate, warn if chosen == "warn" else None)


async def check(options: argparse.Namespace, flora: Flora) -> int:
    """Print the errors of the orders in a file, or of parameters for a model. Nothing is ordered."""
    if (options.orders is None) == (options.model is None):
        raise arguments.UsageError("models check: name a file of orders, or --model with its --params")
    params = arguments.parse_params(options.params)
    catalog = await flora.models.catalog()
    if options.orders is None:
        faults = _check_one(catalog, options, params)
    else:
        with open_orders(options.orders) as source:
            faults = await run_in_thread(_check_lines, source, comparing(catalog, flora.generations.validate), options)
    output.print_json({"faults": faults})
    return 1 if faults else 0


def _check_one(catalog: Catalog, options: argparse.Namespace, params: dict[str, Any] | None) -> list[dict[str, Any]]:
    model = catalog.models.get(options.model)
    if model is None:
        raise errors.ConfigurationError(f"FLORA lists no model {options.model!r}: `flora-async models` lists them")
    kind: Any = options.type or model.type
    order = Order(type=kind, model=options.model, params=params, **PLACE)
    return [fault.to_dict() for fault in catalog.check(order)]


def _check_lines(
    source: OrderFile, validate: Callable[[AnyOrder], AnyOrder], options: argparse.Namespace
) -> list[dict[str, Any]]:
    defaults = PLACE if options.type is None else {**PLACE, "type": options.type}
    lines, faults = 0, list[dict[str, Any]]()
    for line in source.read(validate, defaults):
        lines += 1
        if line.order is None:
            faults.append({"line": line.number, "message": line.fault})
    if not lines:  # as in an empty file, or in JSON Lines under the name of a CSV file
        raise arguments.UsageError(f"{options.orders}: there are no orders")
    return faults


async def write_stubs(flora: Flora) -> int:
    """Print the types of all models' parameters."""
    output.write(await flora.models.stubs(), flush=True)
    return 0
