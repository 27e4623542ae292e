"""API data types as frozen msgspec Structs: runs, outputs and pages.

Fields have FLORA's names and raw values. Money is USD, ``progress`` is a percentage (0-100). Unknown fields are ignored
and open types accept any ``str``, so additions to the API break no running service. A documented field that is missing
or has another type raises an error that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeAlias, TypeGuard, TypeVar

from msgspec import Struct, ValidationError, convert, field, to_builtins
from msgspec.structs import asdict, force_setattr
from msgspec.structs import fields as struct_fields

from flora_async._failures import Advice, advise

T = TypeVar("T")

GenerationType: TypeAlias = Literal["image", "video", "audio", "text"]
"""Type of a generation's output. Closed: FLORA refuses other values."""

RunStatus: TypeAlias = Literal["pending", "running", "completed", "failed"] | str
"""Status of a run. Open: an unknown status means "not finished yet"."""

RunType: TypeAlias = Literal["generation", "technique", "action"] | str
"""Kind of a started run. Open."""

OrderKind: TypeAlias = GenerationType | Literal["technique", "action"]
"""Kind of an order: the type of a generation, or the kind of run that the order starts."""

OutputType: TypeAlias = Literal["imageUrl", "videoUrl", "audioUrl", "text", "documentUrl"] | str
"""Content of an output. Open. For ``"text"`` the output's ``url`` is the text itself."""

ActionId: TypeAlias = (
    Literal[
        "add-shape-to-image",
        "add-shape-to-image-browser",
        "add-text-to-image",
        "add-text-to-image-browser",
        "blur-image",
        "blur-image-browser",
        "boomerang-video",
        "change-image-ar",
        "change-image-ar-browser",
        "change-video-ar",
        "color-filter-image",
        "color-filter-image-browser",
        "color-filter-video",
        "color-grade-image",
        "color-grade-image-browser",
        "color-grade-video",
        "color-tint-image",
        "color-tint-image-browser",
        "concat-text",
        "concat-text-browser",
        "crop-image-browser",
        "draw-image-browser",
        "duplicate-image",
        "duplicate-image-browser",
        "duplicate-video",
        "extract-video-frames",
        "filter-color-image",
        "filter-color-image-browser",
        "find-and-replace-text",
        "find-and-replace-text-browser",
        "flip-image",
        "generate-shape-image",
        "generate-text-image",
        "greenscreen-video",
        "ken-burns-video",
        "merge-audio-into-video",
        "overlay-image-browser",
        "qr-code-generator",
        "qr-code-generator-browser",
        "resize-image-browser",
        "resize-video",
        "reverse-video",
        "rotate-image",
        "rotate-image-browser",
        "scene-3d-image-browser",
        "shader-effect-browser",
        "side-by-side-composite",
        "side-by-side-composite-browser",
        "slow-down-video",
        "speed-up-video",
        "split-audio-from-video",
        "split-text",
        "split-text-browser",
        "split-video",
        "stitch-videos",
        "video-effect",
        "video-to-frame-grid",
        "video-to-long-exposure",
    ]
    | str
)
"""The 58 actions of the reference and of FLORA's npm client 0.11.0. Open: FLORA replaces actions between releases."""

IDEMPOTENCY_KEY_TTL = 7200.0
"""Seconds for which FLORA remembers an idempotency key. Reference: "Start a generation"."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def _moment(raw: float) -> datetime:
    # No source states the unit. FLORA's webhooks use milliseconds, and 1e11 seconds would be the year 5138.
    seconds = raw / 1000 if raw > 1e11 else raw
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return _LAST if raw > 0 else _FIRST


class Record(Struct, frozen=True):
    """Base class of all records that FLORA returns and accepts."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types: all fields by name, nested records as dicts.

        ``json.dumps(run.to_dict())``, Django's ``JsonResponse(run.to_dict())`` and a FastAPI route that returns it need
        no further conversion.
        """
        return {name: _to_plain(getattr(self, name)) for name in self.__struct_fields__ if not name.startswith("_")}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Callable[[Any], Any]) -> object:
        """Build the pydantic schema, with which FastAPI accepts the record as a response model and as a ``Body()``."""
        from pydantic_core import core_schema

        schema = core_schema.typed_dict_schema(
            {
                known.name: core_schema.typed_dict_field(handler(known.type), required=known.required)
                for known in struct_fields(cls)
            }
        )
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            json_schema_input_schema=schema,
            serialization=core_schema.plain_serializer_function_ser_schema(asdict, return_schema=schema),
        )

    @classmethod
    def _validate(cls, value: object) -> Self:
        try:
            return value if isinstance(value, cls) else convert(value, cls)
        except ValidationError as error:
            raise ValueError(str(error)) from None


def _is_tuple(value: object) -> TypeGuard[tuple[object, ...]]:
    return isinstance(value, tuple)


def _is_mapping(value: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(value, Mapping)


def _to_plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_dict()
    if _is_tuple(value):
        return [_to_plain(item) for item in value]
    return to_builtins(value, str_keys=True, enc_hook=_unwrap)


def _unwrap(value: object) -> object:
    """Return the JSON type for *value*: a caller's order can contain subclasses and numpy scalars."""
    if isinstance(value, str):
        return str.__str__(value)
    if _is_mapping(value):
        return dict(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    item = getattr(value, "item", None)  # a scalar of numpy
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else str(value)


class Output(Record, frozen=True, gc=False, kw_only=True):
    """One output of a run."""

    output_id: str
    type: OutputType
    url: str
    """Download URL, without a key, valid for a long but limited time. For ``"text"`` outputs it is the text itself."""


if TYPE_CHECKING:
    Outputs: TypeAlias = tuple[Output, ...]
else:  # FLORA may send null. Run.__post_init__ converts it to a tuple.
    Outputs = tuple[Output, ...] | None


class ModelRef(Record, frozen=True, gc=False, kw_only=True):
    """The model endpoint behind a run."""

    model_id: str | None = None


class ActionRef(Record, frozen=True, gc=False, kw_only=True):
    """The action behind a run."""

    action_id: ActionId


class TechniqueRef(Record, frozen=True, gc=False, kw_only=True):
    """The technique behind a run."""

    technique_id: str
    name: str


class Order(Record, frozen=True, omit_defaults=True, kw_only=True):
    """An order of one generation: the body of ``POST /generate``."""

    type: GenerationType
    prompt: str
    workspace_id: str
    project_id: str
    model: str | None = None
    params: Mapping[str, Any] | None = None
    callback_url: str | None = None

    @property
    def kind(self) -> OrderKind:
        """The type of the generation."""
        return self.type

    @property
    def endpoint(self) -> str | None:
        """The model; ``None``: FLORA's default for the type."""
        return self.model


class TechniqueOrder(Record, frozen=True, omit_defaults=True, kw_only=True):
    """An order of one run of a technique, a saved workflow. OpenAPI: ``POST /runs/technique``."""

    technique_id: str
    inputs: Mapping[str, Any]
    """Values by input id. ``flora.techniques.retrieve(technique_id).inputs`` declares the inputs."""
    workspace_id: str
    """The workspace that pays. With a *callback_url* FLORA takes no workspace, and the key's default workspace pays:
    pass that one, because the run of a lost response is searched in this workspace."""
    callback_url: str | None = None
    """With it, the run starts by ``POST /techniques/{id}/runs``, the only operation that takes one."""

    @property
    def kind(self) -> OrderKind:
        """``"technique"``."""
        return "technique"

    @property
    def endpoint(self) -> str | None:
        """The technique."""
        return self.technique_id

    @property
    def project_id(self) -> None:
        """``None``: a technique belongs to no project of the caller."""


class ActionOrder(Record, frozen=True, omit_defaults=True, kw_only=True):
    """An order of one run of an action, a fixed transformation. OpenAPI: ``POST /runs/action``."""

    action_id: ActionId
    inputs: Sequence[Mapping[str, Any]]
    """At least one, each with its ``type`` (``image``, ``video``, ``audio`` or ``text``), a ``url`` or ``text``, and
    optionally the ``name`` of a declared input, like ``{"type": "image", "url": "https://..."}``."""
    workspace_id: str
    project_id: str
    params: Mapping[str, Any] | None = None

    @property
    def kind(self) -> OrderKind:
        """``"action"``."""
        return "action"

    @property
    def endpoint(self) -> str | None:
        """The action."""
        return self.action_id

    @property
    def callback_url(self) -> None:
        """``None``: actions send no webhook."""


AnyOrder: TypeAlias = Order | TechniqueOrder | ActionOrder
"""An order of any kind of run: ``generate``, ``generate_many`` and durable batches take all of them, also mixed."""


def convert_order(fields: Mapping[str, Any]) -> AnyOrder:
    """Return the order of a JSON object. A ``technique_id`` or an ``action_id`` decides on its kind.

    Raises:
        msgspec.ValidationError: a field is missing or has another type.
    """
    if "technique_id" in fields:
        return convert(fields, TechniqueOrder)
    return convert(fields, ActionOrder) if "action_id" in fields else convert(fields, Order)


class RunOrigin(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Facts about a run that this client created. With them, it can be polled well without the order itself."""

    created_at: float
    """Time of the response to the create, in Unix seconds by FLORA's clock."""
    type: OrderKind
    model: str | None = None
    """The model, technique or action."""
    workspace_id: str
    project_id: str | None = None
    has_callback: bool = False
    """Whether the order had a ``callback_url``."""


class StartedRun(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A run that FLORA accepted and billed. A run that fails later is refunded.

    Reference: "Start a generation", Returns.
    """

    run_id: str
    type: RunType
    charged_cost: float
    """USD. It is a quote: see :attr:`quoted_cost`."""
    estimated_seconds: float | None = None
    """Expected duration of the run in seconds; ``None`` if FLORA reports none."""
    poll_url: str | None = None
    project_id: str | None = None
    model: ModelRef | None = None
    action: ActionRef | None = None
    technique: TechniqueRef | None = None
    recovered: bool = field(default=False, name="recovered_by_client")
    """Whether the response to the create was lost and the run was found in the history (``Flora(recover=...)``)."""
    origin: RunOrigin | None = field(default=None, name="origin_by_client")
    """Set by the client that created the run, never by FLORA; ``None`` for a recovered run."""

    @property
    def quoted_cost(self) -> float:
        """USD: FLORA's quote, the same number as ``charged_cost`` of this record.

        FLORA can charge another amount: 0.873 was charged for a quote of 0.253. The final charge is the
        ``charged_cost`` of the completed :class:`Run`, up to a minute after its end.
        """
        return self.charged_cost


class Run(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The current state of a run. Reference: "Get a run", Returns."""

    run_id: str
    status: RunStatus
    progress: float
    """0 to 100."""
    created_at: float
    """Raw number from FLORA, of unstated unit; :attr:`created` is the decoded time."""
    started_at: float | None = None
    completed_at: float | None = None
    charged_cost: float | None = None
    """USD, final. ``None`` for up to a minute after the run has completed: ``wait_for_run(run, settle=True)``."""
    outputs: Outputs = ()
    """The outputs of the run, each an :class:`Output`; empty until it has completed."""
    error_code: str | None = None
    error_message: str | None = None
    poll_url: str | None = None
    recovered: bool = field(default=False, name="recovered_by_client")
    """Whether the response to the create was lost and this client found the run in the history."""

    def __post_init__(self) -> None:
        if not self.outputs:
            force_setattr(self, "outputs", ())

    @property
    def finished(self) -> bool:
        """Whether the run has completed or failed. An unknown status counts as finished with a ``completed_at``."""
        if self.status in ("completed", "failed"):
            return True
        return self.completed_at is not None and self.status not in ("pending", "running")

    @property
    def succeeded(self) -> bool:
        """Whether the run has completed."""
        return self.status == "completed"

    @property
    def advice(self) -> Advice | None:
        """Reaction to a failed run; ``None`` for other runs, and for a code that FLORA sorts nowhere.

        ``"retry"``: order again now. ``"retry_later"``: order again after a pause. ``"change_input"``: the same order
        fails again. ``"stop"``: every order fails until the account is changed. Source: FLORA's notes on its codes.
        """
        return None if self.succeeded else advise(self.error_code, self.error_message)

    @property
    def created(self) -> datetime:
        """Time of the create, in UTC, limited to the range of datetime."""
        return _moment(self.created_at)

    @property
    def started(self) -> datetime | None:
        """Time at which FLORA began to process the run, in UTC."""
        return None if self.started_at is None else _moment(self.started_at)

    @property
    def completed(self) -> datetime | None:
        """Time at which the run finished, in UTC."""
        return None if self.completed_at is None else _moment(self.completed_at)

    def _repr_html_(self) -> str:
        return _as_table([self], "")


def lacks_outputs(run: Run) -> bool:
    """Return whether a finished record has neither outputs nor an error: an item of the history can be incomplete."""
    return run.finished and not run.outputs and (run.succeeded or not run.error_code)


def lacks_charge(run: Run) -> bool:
    """Return whether a completed run shows no charge: FLORA adds it up to a minute after the end of the run."""
    return run.succeeded and run.charged_cost is None


def _as_table(runs: Iterable[Run], caption: str) -> str:
    from flora_async._html import cards  # Only notebooks need it.

    return cards.table([{**to_builtins(run), "created": run.created} for run in runs], caption)


class Generation(Run, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A run in the history: the fields of a :class:`Run`, with its project and workspace.

    Reference: "List generation history", Returns.
    """

    generation_id: str
    """The same value as ``run_id``."""
    project_id: str
    workspace_id: str
    model: ModelRef | None = None


class TechniqueRun(Run, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A run of a technique in its history. OpenAPI: ``GET /technique-runs``."""

    technique_run_id: str
    """The same value as ``run_id``."""
    technique: TechniqueRef
    workspace_id: str
    project_id: str | None = None


RunLike: TypeAlias = StartedRun | Run | str
"""A run, as one of its records (a :class:`Generation` is a :class:`Run`) or as its id."""


class BrokenItem(Record, frozen=True, kw_only=True):
    """An item of a page that cannot be decoded. The other items of the page are returned."""

    field: str | None
    """Path of the faulty field, like ``$.generations[3].status``."""
    reason: str
    url: str
    request_id: str | None
    excerpt: str
    """The beginning of the item."""


class PageMeta(Record, frozen=True, gc=False, kw_only=True):
    """Metadata of a page."""

    next_cursor: str | None = None
    total_estimate: float | None = None


class GenerationPage(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One page of the history, newest generations first."""

    generations: tuple[Generation, ...]
    meta: PageMeta
    broken: tuple[BrokenItem, ...] = field(default=(), name="broken_for_client")
    """The items that could not be decoded."""

    @property
    def next_cursor(self) -> str | None:
        """Cursor of the next page; ``None`` on the last. Save it to continue with ``list(cursor=...)``."""
        return self.meta.next_cursor

    @property
    def total_estimate(self) -> float | None:
        """Approximate number of matching generations; ``None`` if FLORA reports none."""
        return self.meta.total_estimate

    def _repr_html_(self) -> str:
        more = "older ones follow" if self.next_cursor else "the last page"
        return _as_table(self.generations, f"{len(self.generations)} generations, newest first; {more}")


class TechniqueRunPage(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One page of the history of techniques, newest runs first. OpenAPI: ``GET /technique-runs``."""

    technique_runs: tuple[TechniqueRun, ...]
    meta: PageMeta
    broken: tuple[BrokenItem, ...] = field(default=(), name="broken_for_client")
    """The items that could not be decoded."""

    @property
    def next_cursor(self) -> str | None:
        """Cursor of the next page; ``None`` on the last."""
        return self.meta.next_cursor


class Response(Record, Generic[T], frozen=True, kw_only=True):
    """A decoded response to ``Flora.request``."""

    data: T
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    request_id: str | None
    """FLORA's id of the request, for its support."""


class Workspace(Record, frozen=True, gc=False, kw_only=True):
    """A workspace that the key can use. OpenAPI: ``GET /workspaces``."""

    workspace_id: str
    name: str
    role: str | None = None
    created_at: float | None = None
    """Raw number from FLORA, of unstated unit."""


class Project(Record, frozen=True, gc=False, kw_only=True):
    """A project of a workspace. OpenAPI: ``GET /projects``."""

    project_id: str
    workspace_id: str
    name: str
    created_at: float | None = None
    """Raw number from FLORA, of unstated unit."""
    last_modified: float | None = None
    """Raw number from FLORA, of unstated unit."""
    origin: str | None = None


class ModelOption(Record, frozen=True, kw_only=True):
    """An allowed value of a parameter."""

    value: Any
    label: str | None = None


class ModelProperty(Record, frozen=True, kw_only=True):
    """A number within a parameter of type ``dict``."""

    min: float | None = None
    max: float | None = None
    default: Any = None


class ModelParam(Record, frozen=True, kw_only=True):
    """A parameter of a model."""

    name: str
    type: str
    """``string``, ``string[]``, ``bool``, ``int``, ``int?``, ``seed``, ``float`` or ``dict``. Open."""
    required: bool = False
    default: Any = None
    min: float | None = None
    max: float | None = None
    options: tuple[ModelOption, ...] | None = None
    properties: Mapping[str, ModelProperty] | None = None
    """The numbers in a parameter of type ``dict``."""
    label: str | None = None
    description: str | None = None


class Model(Record, frozen=True, kw_only=True):
    """A model that orders can name. OpenAPI: ``GET /models``."""

    model_id: str
    """Value for the ``model`` of an order."""
    name: str
    type: str
    """Type of its outputs: a :data:`GenerationType`, or a type that FLORA added later."""
    provider: str | None = None
    estimated_seconds: float | None = None
    estimated_credits: float | None = None
    capabilities: tuple[str, ...] = ()
    params: tuple[ModelParam, ...] = ()


class TechniqueInput(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An input or output of a technique. OpenAPI: ``GET /techniques``."""

    id: str
    name: str
    type: OutputType
    description: str | None = None
    optional: bool | None = None
    allow_multiple: bool | None = None
    """Whether a list of values is accepted: FLORA starts one run for each."""
    accepts_element: bool | None = None
    """Whether the value is the id of an element, not a URL."""
    specified_aspect_ratio: str | None = None
    specified_duration: float | str | None = None


class Technique(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A technique, a saved workflow. OpenAPI: ``GET /techniques``."""

    technique_id: str
    name: str
    run_cost: float | None = None
    """USD for a run, however many outputs it has."""
    inputs: tuple[TechniqueInput, ...] = ()
    outputs: tuple[TechniqueInput, ...] = ()
    description: str | None = None
    slug: str | None = None


class ActionCount(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """How many values an input of an action takes."""

    min: float | None = None
    max: float | None = None


class ActionInput(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An input or output of an action. OpenAPI: ``GET /actions``."""

    name: str
    type: str
    """``image``, ``video``, ``text`` or ``audio``. Open."""
    multiple: bool | ActionCount | None = None
    optional: bool | None = None

    @property
    def count_range(self) -> tuple[float, float]:
        """Least and highest number of values."""
        if isinstance(self.multiple, ActionCount):
            least, most = self.multiple.min, self.multiple.max
            return (1 if least is None else least), (inf if most is None else most)
        return 1, inf if self.multiple else 1


class ActionParam(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A parameter of an action. OpenAPI: ``GET /actions``."""

    key: str
    type: str
    label: str | None = None
    default_value: Any = None
    available_values: tuple[ModelOption, ...] | None = None
    min_number_value: float | None = None
    max_number_value: float | None = None
    number_step: float | None = None
    info_tooltip: str | None = None


class Action(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An action, a fixed transformation. OpenAPI: ``GET /actions``."""

    action_id: ActionId
    name: str
    description: str | None = None
    charged_cost: float | None = None
    """USD for a run; 0 as a rule."""
    language: str | None = None
    """``javascript`` or ``python``. Open."""
    inputs: tuple[ActionInput, ...] = ()
    outputs: tuple[ActionInput, ...] = ()
    params: tuple[ActionParam, ...] = ()


AssetStatus: TypeAlias = Literal["pending_upload", "ready", "failed"] | str
"""Status of an asset. Open: an unknown status means "not ready yet"."""


class UploadForm(Record, frozen=True, kw_only=True):
    """The form that carries the bytes of a reserved asset to its store: the fields first, the file last."""

    url: str | None = None
    method: str | None = None
    content_type: str | None = None
    file_field: str | None = None
    form_fields: dict[str, object] | None = None

    def __repr__(self) -> str:  # The fields are credentials.
        return f"UploadForm(file_field={self.file_field!r}, {len(self.form_fields or ())} fields)"


class _AssetFields(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The fields that records of an asset share. FLORA sends some of them in each response."""

    status: AssetStatus = ""
    url: str | None = None
    """The URL for the ``params`` of an order."""
    content_type: str | None = None
    name: str | None = None
    size_bytes: int | float | None = None
    width: int | float | None = None
    height: int | float | None = None
    description: str | None = None
    workspace_id: str | None = None
    project_id: str | None = None
    uploaded_via: str | None = None
    """``direct``, ``signed_url`` or ``url``. Open."""
    created_at: str | int | float | None = None
    """Raw value from FLORA: text in a record, a number in a list. :attr:`created` is the decoded time."""

    @property
    def created(self) -> datetime | None:
        """Time of the create, in UTC; ``None`` if FLORA reports none."""
        if not isinstance(self.created_at, str):
            return None if self.created_at is None else _moment(self.created_at)
        try:
            moment = datetime.fromisoformat(self.created_at)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):  # the second for the first and last day of all, in some zones
            return None

    @property
    def ready(self) -> bool:
        """Whether its URL can be used."""
        return self.status == "ready" and bool(self.url)


class Asset(_AssetFields, frozen=True, kw_only=True, omit_defaults=True):
    """A file at FLORA. As a value in the ``params`` of an order it stands for its URL. OpenAPI: ``/assets``."""

    asset_id: str
    visibility: str | None = None
    failure_message: str | None = None
    upload_content_type: str | None = None
    expires_at: str | float | None = None
    """End of the reservation, as FLORA sends it."""
    upload: UploadForm | None = None
    """The form that carries the bytes, for a reserved asset."""
    upload_url: str | None = None
    """Another description of the same form, or an address for a PUT."""


class ListedAsset(_AssetFields, frozen=True, kw_only=True, omit_defaults=True):
    """An item of the list of assets. In the ``params`` of an order it stands for its URL. OpenAPI: ``GET /assets``."""

    asset_id: str | None = None
    """``None`` for media that lie on a canvas only."""
    node_id: str | None = None


class AssetPage(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One page of the list of assets. OpenAPI: ``GET /assets``."""

    assets: tuple[ListedAsset, ...]
    meta: PageMeta = PageMeta()
    broken: tuple[BrokenItem, ...] = field(default=(), name="broken_for_client")
    """The items that could not be decoded."""

    @property
    def next_cursor(self) -> str | None:
        """Cursor of the next page; ``None`` on the last."""
        return self.meta.next_cursor


class CostRow(Record, frozen=True, gc=False, kw_only=True):
    """The costs of one model, project or day in the history."""

    key: str | None
    """Model id, project id, or date in UTC like ``2026-11-25``; ``None`` for runs without a model id."""
    runs: int = 0
    completed: int = 0
    failed: int = 0
    charged: float = 0.0
    """USD that FLORA has charged."""
    unsettled: int = 0
    """Runs without a final charge: unfinished, or completed without a charge so far."""


class CostTable(Record, frozen=True, kw_only=True):
    """The costs of the history, summed up by model, project or day."""

    by: str
    rows: tuple[CostRow, ...]
    """Highest costs first; days in order."""
    broken: int = 0
    """Items of the history that could not be decoded, and are in no row."""

    @property
    def total(self) -> CostRow:
        """The sum of all rows; its ``key`` is ``None``."""
        rows = self.rows
        return CostRow(
            key=None,
            runs=sum(row.runs for row in rows),
            completed=sum(row.completed for row in rows),
            failed=sum(row.failed for row in rows),
            charged=math.fsum(row.charged for row in rows),
            unsettled=sum(row.unsettled for row in rows),
        )


class PriceHistory(Record, frozen=True, gc=False, kw_only=True):
    """Charges and durations of completed runs of one kind and model."""

    runs: int
    mean: float
    """USD."""
    low: float
    """Lowest charge in USD."""
    high: float
    """Highest charge in USD."""
    seconds: float | None = None
    """Mean duration in seconds; ``None`` if unknown."""


EstimateBasis: TypeAlias = Literal["charges", "quote", "catalogue", "unknown"]
"""Source of an estimate: charges of earlier runs, FLORA's quote for the first order, FLORA's catalogue, or none."""


class KindEstimate(Record, frozen=True, gc=False, kw_only=True):
    """The expected cost of the orders of one kind and model, technique or action."""

    kind: OrderKind
    endpoint: str | None
    """The model, technique or action."""
    orders: int
    usd: float | None
    """Expected USD of all of them; ``None`` if unknown."""
    low: float | None
    """Lower end of the range in USD."""
    high: float | None
    """Upper end of the range in USD."""
    seconds: float
    """Expected duration of one run in seconds."""
    basis: EstimateBasis
    runs: int = 0
    """Number of earlier runs behind it."""


class Estimate(Record, frozen=True, kw_only=True):
    """The expected cost of orders. It is no offer: only the charge of a completed run is final."""

    kinds: tuple[KindEstimate, ...]

    @property
    def orders(self) -> int:
        """Number of orders."""
        return sum(each.orders for each in self.kinds)

    @property
    def usd(self) -> float | None:
        """Expected USD of all orders; ``None`` if the cost of a kind is unknown."""
        return _sum_known(each.usd for each in self.kinds)

    @property
    def low(self) -> float | None:
        """Lower end of the range in USD; ``None`` if unknown."""
        return _sum_known(each.low for each in self.kinds)

    @property
    def high(self) -> float | None:
        """Upper end of the range in USD; ``None`` if unknown."""
        return _sum_known(each.high for each in self.kinds)

    @property
    def seconds(self) -> float:
        """Expected duration in seconds of the slowest run. Runs that start together need no longer."""
        return max((each.seconds for each in self.kinds), default=0.0)

    @property
    def basis(self) -> EstimateBasis:
        """The weakest source among the kinds."""
        found = {each.basis for each in self.kinds}
        for basis in _WEAKEST_FIRST:
            if basis in found:
                return basis
        return "unknown"


_WEAKEST_FIRST: tuple[EstimateBasis, ...] = ("unknown", "catalogue", "quote", "charges")


def _sum_known(amounts: Iterable[float | None]) -> float | None:
    known = list(amounts)
    return None if None in known else math.fsum(amount or 0.0 for amount in known)


class FieldError(Record, frozen=True, gc=False, kw_only=True):
    """An error in one field of a request."""

    field: str
    message: str = ""
