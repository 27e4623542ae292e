"""What FLORA says, as frozen msgspec Structs: the runs, outputs and pages of the public API.

Fields carry FLORA's own names and raw values. Money is USD, ``progress`` a percentage (0-100). Unknown fields are
ignored and open values stay ``str``, so a growing API never breaks a running service; a promised field that is missing
or of another type is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeAlias, TypeGuard, TypeVar

from msgspec import Struct, ValidationError, convert, field, to_builtins
from msgspec.structs import asdict, force_setattr
from msgspec.structs import fields as struct_fields

T = TypeVar("T")

GenerationType: TypeAlias = Literal["image", "video", "audio", "text"]
"""What a generation makes. Closed: FLORA refuses anything else."""

RunStatus: TypeAlias = Literal["pending", "running", "completed", "failed"] | str
"""Where a run stands. Open: an unknown status means "not finished yet"."""

RunType: TypeAlias = Literal["generation", "technique", "action"] | str
"""What kind of run was started. Open."""

OutputType: TypeAlias = Literal["imageUrl", "videoUrl", "audioUrl", "text", "documentUrl"] | str
"""What an output holds. Open. For ``"text"`` the output's ``url`` is the text itself."""

ActionId: TypeAlias = (
    Literal[
        "split-text",
        "find-and-replace-text",
        "concat-text",
        "ken-burns-video",
        "color-grade-image",
        "change-image-ar",
        "rotate-image",
        "flip-image",
        "color-filter-image",
        "color-tint-image",
        "filter-color-image",
        "blur-image",
        "duplicate-image",
        "side-by-side-composite",
        "add-shape-to-image",
        "generate-shape-image",
        "add-text-to-image",
        "generate-text-image",
        "qr-code-generator",
        "stitch-videos",
        "split-video",
        "extract-video-frames",
        "color-grade-video",
        "video-to-frame-grid",
        "boomerang-video",
        "reverse-video",
        "video-to-long-exposure",
        "video-effect",
        "color-filter-video",
        "speed-up-video",
        "slow-down-video",
        "duplicate-video",
        "greenscreen-video",
        "resize-video",
        "change-video-ar",
        "split-audio-from-video",
        "merge-audio-into-video",
    ]
    | str
)
"""The 37 actions that the reference lists. Open: FLORA exchanges them between releases."""

IDEMPOTENCY_KEY_TTL = 7200.0
"""Seconds for which FLORA remembers an idempotency key. Reference: "Start a generation"."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def _moment(raw: float) -> datetime:
    # No source states the unit; FLORA's webhooks use milliseconds, and 1e11 seconds would be the year 5138.
    seconds = raw / 1000 if raw > 1e11 else raw
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return _LAST if raw > 0 else _FIRST


class Record(Struct, frozen=True):
    """Base class of what FLORA returns and takes."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types: all of its fields by name, records within it as dicts, too.

        ``json.dumps(run.to_dict())``, Django's ``JsonResponse(run.to_dict())`` and a FastAPI route that returns it work
        as they stand.
        """
        return {name: _to_plain(getattr(self, name)) for name in self.__struct_fields__ if not name.startswith("_")}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Callable[[Any], Any]) -> object:
        """Describe the record to pydantic, so that FastAPI takes it as a response model and as a ``Body()``."""
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
    """Return what *value* means in JSON: a caller's order can hold any text, number and mapping that is taken."""
    if isinstance(value, str):
        return str.__str__(value)
    if _is_mapping(value):
        return dict(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    item = getattr(value, "item", None)  # a scalar of numpy
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else str(value)


class Output(Record, frozen=True, gc=False, kw_only=True):
    """One thing that a run has made."""

    output_id: str
    type: OutputType
    url: str
    """Where it can be fetched, without a key, for a long but limited time; for ``"text"`` outputs the text itself."""


if TYPE_CHECKING:
    Outputs: TypeAlias = tuple[Output, ...]
else:  # FLORA may send a null; readers always find a tuple (Run.__post_init__).
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
    """A generation as it is ordered: the body of ``POST /generate``."""

    type: GenerationType
    prompt: str
    workspace_id: str
    project_id: str
    model: str | None = None
    params: Mapping[str, Any] | None = None
    callback_url: str | None = None


class RunOrigin(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What a client knows of a run that it has created: enough to poll it well, without the order itself."""

    created_at: float
    """When FLORA answered the create, in Unix seconds by FLORA's clock."""
    type: GenerationType
    model: str | None = None
    workspace_id: str
    project_id: str
    has_callback: bool = False
    """Whether the order had a ``callback_url``."""


class StartedRun(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A run that FLORA has accepted, and billed; a run that fails later is not charged.

    Reference: "Start a generation", Returns.
    """

    run_id: str
    type: RunType
    charged_cost: float
    """USD."""
    estimated_seconds: float | None = None
    """How long FLORA expects the run to take, in seconds, where it says so."""
    poll_url: str | None = None
    project_id: str | None = None
    model: ModelRef | None = None
    action: ActionRef | None = None
    technique: TechniqueRef | None = None
    recovered: bool = field(default=False, name="recovered_by_client")
    """Whether the answer to the create was lost, and the run was found in the history (``Flora(recover=...)``)."""
    origin: RunOrigin | None = field(default=None, name="origin_by_client")
    """Set by the client that has created the run, never by FLORA; ``None`` for a recovered run."""


class Run(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A run as it stands. Reference: "Get a run", Returns."""

    run_id: str
    status: RunStatus
    progress: float
    """0 to 100."""
    created_at: float
    """FLORA's own number, whose unit it does not state; :attr:`created` is the time it means."""
    started_at: float | None = None
    completed_at: float | None = None
    charged_cost: float | None = None
    """USD."""
    outputs: Outputs = ()
    """What it has made, each an :class:`Output`; empty until it has completed."""
    error_code: str | None = None
    error_message: str | None = None
    poll_url: str | None = None
    recovered: bool = field(default=False, name="recovered_by_client")
    """Whether this client did not see it start, but found it in the history after the create's answer was lost."""

    def __post_init__(self) -> None:
        if not self.outputs:
            force_setattr(self, "outputs", ())

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, good or bad. A status that is not known yet ends it with a time."""
        if self.status in ("completed", "failed"):
            return True
        return self.completed_at is not None and self.status not in ("pending", "running")

    @property
    def succeeded(self) -> bool:
        """Whether the run has completed."""
        return self.status == "completed"

    @property
    def created(self) -> datetime:
        """When the run was ordered, in UTC. Times outside what a datetime can hold become its nearest end."""
        return _moment(self.created_at)

    @property
    def started(self) -> datetime | None:
        """When work on the run began, in UTC."""
        return None if self.started_at is None else _moment(self.started_at)

    @property
    def completed(self) -> datetime | None:
        """When the run came to its end, in UTC."""
        return None if self.completed_at is None else _moment(self.completed_at)

    def _repr_html_(self) -> str:
        return _as_table([self], "")


def lacks_outputs(run: Run) -> bool:
    """Return whether a finished record tells neither outputs nor an error: an item of the history can be incomplete."""
    return run.finished and not run.outputs and (run.succeeded or not run.error_code)


def _as_table(runs: Iterable[Run], caption: str) -> str:
    from flora_async._html import cards  # which only notebooks need

    return cards.table([{**to_builtins(run), "created": run.created} for run in runs], caption)


class Generation(Run, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A run as the history tells it: all that a :class:`Run` says, and where it belongs.

    Reference: "List generation history", Returns.
    """

    generation_id: str
    """The same value as ``run_id``."""
    project_id: str
    workspace_id: str
    model: ModelRef | None = None


RunLike: TypeAlias = StartedRun | Run | str
"""A run, by any of its records (a :class:`Generation` is a :class:`Run`) or by its bare id."""


class BrokenItem(Record, frozen=True, kw_only=True):
    """An item of a page that is not what the reference promises; the others on its page are handed out."""

    field: str | None
    """Where, like ``$.generations[3].status``."""
    reason: str
    url: str
    request_id: str | None
    excerpt: str
    """The beginning of the item."""


class PageMeta(Record, frozen=True, gc=False, kw_only=True):
    """What stands beside the items of a page."""

    next_cursor: str | None = None
    total_estimate: float | None = None


class GenerationPage(Record, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One page of the history, newest generations first."""

    generations: tuple[Generation, ...]
    meta: PageMeta
    broken: tuple[BrokenItem, ...] = field(default=(), name="broken_for_client")
    """The items that could not be read."""

    @property
    def next_cursor(self) -> str | None:
        """Where the next page begins; ``None`` on the last. Save it, and ``list(cursor=...)`` goes on from there."""
        return self.meta.next_cursor

    @property
    def total_estimate(self) -> float | None:
        """About how many generations match, where FLORA says so."""
        return self.meta.total_estimate

    def _repr_html_(self) -> str:
        more = "older ones follow" if self.next_cursor else "the last page"
        return _as_table(self.generations, f"{len(self.generations)} generations, newest first; {more}")


class Response(Record, Generic[T], frozen=True, kw_only=True):
    """An answer to ``Flora.request``, decoded."""

    data: T
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    request_id: str | None
    """What FLORA's support asks for."""


class Workspace(Record, frozen=True, gc=False, kw_only=True):
    """Where a key may work. OpenAPI: ``GET /workspaces``."""

    workspace_id: str
    name: str
    role: str | None = None
    created_at: float | None = None
    """FLORA's own number."""


class Project(Record, frozen=True, gc=False, kw_only=True):
    """What a workspace is divided into. OpenAPI: ``GET /projects``."""

    project_id: str
    workspace_id: str
    name: str
    created_at: float | None = None
    """FLORA's own number."""


class ModelOption(Record, frozen=True, kw_only=True):
    """A value that a parameter can have."""

    value: Any
    label: str | None = None


class ModelParam(Record, frozen=True, kw_only=True):
    """A parameter that a model takes."""

    name: str
    type: str
    """``string``, ``string[]``, ``bool``, ``int``, ``int?``, ``seed``, ``float`` or ``dict``. Open."""
    required: bool = False
    default: Any = None
    min: float | None = None
    max: float | None = None
    options: tuple[ModelOption, ...] | None = None
    label: str | None = None
    description: str | None = None


class Model(Record, frozen=True, kw_only=True):
    """What can be ordered. OpenAPI: ``GET /models``."""

    model_id: str
    """What an order's ``model`` wants."""
    name: str
    type: str
    """What it makes: a :data:`GenerationType`, or what FLORA has learned since."""
    provider: str | None = None
    estimated_seconds: float | None = None
    estimated_credits: float | None = None
    capabilities: tuple[str, ...] = ()
    params: tuple[ModelParam, ...] = ()


class FieldError(Record, frozen=True, gc=False, kw_only=True):
    """What FLORA has against one field of a request."""

    field: str
    message: str = ""
