"""Declared inputs of techniques and actions: read once, and compared with orders before anything is sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import TypeGuard, TypeVar

from msgspec import Struct

from flora_async import errors
from flora_async._bounded_dict import BoundedDict
from flora_async._http.requests import Request, create_request, encode_any_order
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._resources.operations import Operation, Resource
from flora_async.models import (
    Action,
    ActionOrder,
    ActionParam,
    AnyOrder,
    FieldError,
    Technique,
    TechniqueInput,
    TechniqueOrder,
)

T = TypeVar("T", Technique, Action)

log = logging.getLogger("flora_async")

MAX_DECLARATIONS = 500
"""Maximum number of declarations that a client keeps. The oldest are dropped first."""
DECLARATION_LIFETIME = 600.0
"""Seconds for which a declaration is used without another read."""
RETRIEVE_TECHNIQUE = Operation("GET", "/techniques/{technique_id}", Technique)
RETRIEVE_ACTION = Operation("GET", "/actions/{action_id}", Action)
_NUMBER_PARAMS = ("number", "int", "float", "slider")


class _Entry(Struct):
    """A declaration, or the place where tasks wait for its only read."""

    lock: asyncio.Lock
    declared: Technique | Action | None = None
    read_at: float = 0.0


class Declarations(Resource):
    """The declarations of techniques and actions that one client has read."""

    def __init__(self, origin: BaseURL, transport: Transport) -> None:
        super().__init__(origin, transport)
        self._entries: BoundedDict[tuple[str, ...], _Entry] = BoundedDict(MAX_DECLARATIONS)

    async def create_request(self, order: AnyOrder, idempotency_key: str, *, check: bool = True) -> Request:
        """Build the create of an order. With *check*, compare its inputs with the declared ones first.

        Raises:
            ConfigurationError: the inputs do not match the declaration. Nothing was sent.
            APIError, APIConnectionError: the declaration cannot be read. Nothing was sent. An order whose declaration
                cannot be decoded is not checked, and sent: FLORA decides.
        """
        plain = encode_any_order(self._origin, order)
        if isinstance(plain, TechniqueOrder):
            technique: Technique | None = None
            if check or plain.callback_url is not None:
                try:
                    technique = await self._check_technique(plain, check=check)
                except errors.ResponseDecodeError as error:
                    if plain.callback_url is not None:  # its request needs the declared types
                        raise
                    _log_unchecked(plain.technique_id, error)
            types = {each.id: str(each.type) for each in technique.inputs} if technique else {}
            return create_request(self._origin, plain, idempotency_key, types)
        if isinstance(plain, ActionOrder) and check:
            await self._check_action(plain)
        return create_request(self._origin, plain, idempotency_key)

    async def _check_technique(self, order: TechniqueOrder, *, check: bool) -> Technique:
        read = partial(self._read, RETRIEVE_TECHNIQUE, technique_id=order.technique_id)
        technique, is_new = await read()
        faults = check_technique_inputs(technique, order.inputs) if check else []
        if faults and not is_new:  # the technique may have been changed since
            technique, _ = await read(again=True)
            faults = check_technique_inputs(technique, order.inputs)
        _raise_faults(order.technique_id, faults)
        return technique

    async def _check_action(self, order: ActionOrder) -> None:
        read = partial(self._read, RETRIEVE_ACTION, action_id=order.action_id)
        try:
            action, is_new = await read()
            faults = check_action(action, order)
            if faults and not is_new:
                action, _ = await read(again=True)
                faults = check_action(action, order)
        except errors.NotFoundError:
            return  # FLORA runs actions that it does not list any more, and refuses unknown ones
        except errors.ResponseDecodeError as error:
            _log_unchecked(order.action_id, error)
            return
        _raise_faults(order.action_id, faults)

    async def _read(self, operation: Operation[T], *, again: bool = False, **ids: str) -> tuple[T, bool]:
        """Return a declaration, and whether it was read by this call. Tasks that need the same one share a read."""
        place = operation.path, *ids.values()
        entry = self._entries.get(place)
        if entry is None:
            entry = self._entries[place] = _Entry(asyncio.Lock())
        asked = self._transport.time()
        async with entry.lock:
            known = entry.declared
            oldest = asked if again else asked - DECLARATION_LIFETIME
            if isinstance(known, operation.kind) and entry.read_at >= oldest:
                return known, entry.read_at >= asked
            began = self._transport.time()
            try:
                declared = await self._call(operation, query=None, body=None, timeout=None, **ids)
            except errors.FloraError as error:
                error.outcome_unknown = False  # no create was sent
                raise
            entry.declared, entry.read_at = declared, began
            return declared, True


def _log_unchecked(name: str, error: errors.ResponseDecodeError) -> None:
    text = "cannot decode the declaration of %s, at %s: its inputs are not checked"
    log.warning(text, name, error.field, extra={"field": error.field})


def check_technique_inputs(technique: Technique, inputs: Mapping[str, object]) -> list[FieldError]:
    """Return the errors in the inputs of a technique."""
    declared = {each.id: each for each in technique.inputs}
    found = [
        FieldError(field=name, message=f"is not declared; the inputs are {', '.join(declared) or 'none'}")
        for name in inputs
        if name not in declared
    ]
    for name, each in declared.items():
        if name in inputs:
            message = _check_technique_value(each, inputs[name])
        else:
            message = None if each.optional else f"is required ({each.name}, {each.type})"
        if message is not None:
            found.append(FieldError(field=name, message=message))
    return found


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _check_technique_value(declared: TechniqueInput, value: object) -> str | None:
    if _is_list(value):
        if not declared.allow_multiple:
            return "takes one value, not a list"
        if not value:
            return "must not be an empty list"
        return next((message for item in value if (message := _check_single_value(declared, item))), None)
    return _check_single_value(declared, value)


def _check_single_value(declared: TechniqueInput, value: object) -> str | None:
    if declared.type not in ("text", "imageUrl", "videoUrl", "audioUrl", "documentUrl"):
        return None
    if value is None:
        return "must not be None: leave an optional input out"
    if not isinstance(value, str):
        return f"must be a str of type {declared.type}, not {type(value).__name__}"
    if not value:
        return "must not be empty: leave an optional input out"
    if declared.type == "text" or declared.accepts_element or "://" in value:
        return None
    return f"must be a URL of type {declared.type}, not {value[:80]!r}"


def check_action(action: Action, order: ActionOrder) -> list[FieldError]:
    """Return the errors in the inputs and parameters of an action."""
    types = [str(each.get("type")) for each in order.inputs]
    declared = [str(slot.type) for slot in action.inputs]
    names = {slot.name for slot in action.inputs}
    found = [
        FieldError(field=f"inputs[{index}]", message=f"{kind} is not declared; the inputs are {', '.join(declared)}")
        for index, kind in enumerate(types)
        if kind not in declared
    ]
    found += [
        FieldError(field=f"inputs[{index}].name", message=f"must be one of {', '.join(sorted(names))}, not {name!r}")
        for index, each in enumerate(order.inputs)
        if (name := each.get("name")) is not None and name not in names
    ]
    for kind in dict.fromkeys(declared):
        found += _check_input_count(action, kind, types.count(kind))
    params = {param.key: param for param in action.params}
    for name, value in (order.params or {}).items():
        message = (
            _check_action_param(params[name], value)
            if name in params
            else f"is not a parameter of {action.action_id}, which takes {', '.join(params) or 'none'}"
        )
        if message is not None:
            found.append(FieldError(field=f"params.{name}", message=message))
    return found


def _check_input_count(action: Action, kind: str, count: int) -> list[FieldError]:
    slots = [slot for slot in action.inputs if slot.type == kind]
    least = sum(slot.count_range[0] for slot in slots if not slot.optional)
    most = sum(slot.count_range[1] for slot in slots)
    if least <= count <= most:
        return []
    wanted = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    return [FieldError(field="inputs", message=f"must have {wanted} of type {kind}, not {count}")]


def _check_action_param(param: ActionParam, value: object) -> str | None:
    if param.available_values:
        options = [option.value for option in param.available_values]
        return None if value in options else f"must be one of {', '.join(map(str, options))}, not {value!r}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if param.type in _NUMBER_PARAMS and not is_number:
        return f"must be a number, not {type(value).__name__}"
    if isinstance(value, int | float) and param.min_number_value is not None and value < param.min_number_value:
        return f"must be at least {param.min_number_value:g}, not {value}"
    if isinstance(value, int | float) and param.max_number_value is not None and value > param.max_number_value:
        return f"must be at most {param.max_number_value:g}, not {value}"
    return None


def _raise_faults(name: str, faults: list[FieldError]) -> None:
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
        raise errors.ConfigurationError(f"cannot run {name}: {listed}")
