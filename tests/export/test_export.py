"""Exports: files and frames with the same columns, and exports that resume after an interruption."""

import asyncio
import csv
import itertools
import json
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pandas
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import pytest
from scripted import Scripted, answer, error, generation, page, silence

from flora_async import (
    APITimeoutError,
    BadRequestError,
    ConfigurationError,
    ExportError,
    Flora,
    Generation,
    InternalServerError,
    Output,
    Run,
    export,
)
from flora_async.export import (
    ExportResult,
    _checkpoint,
    record_batches,
    rows,
    to_arrow,
    to_csv,
    to_jsonl,
    to_pandas,
    to_parquet,
    to_polars,
)
from flora_async.export._checkpoint import WriteRuns
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
COLUMNS = [
    *("run_id", "status", "progress", "created", "started", "completed", "charged_cost"),
    *("model_id", "project_id", "workspace_id", "error_code", "error_message", "outputs"),
]
MOMENT = datetime(2026, 9, 21, 14, 13, 20, 250000, tzinfo=UTC)
DONE = generation(
    "run_2",
    created_at=1790000000250,
    started_at=1790000001,
    completed_at=1790000012000,
    charged_cost=0.04,
    model={"model_id": "t2i-flux-2-pro"},
    outputs=[{"output_id": "output_1", "type": "text", "url": 'a "text",\nof =two lines é'}],
)
ODD = generation(
    "run_1",
    status="dreaming",
    created_at=-1e300,
    completed_at=1e300,
    outputs=None,
    model={"model_id": None},
    error_code="=cmd()",
    error_message="-1",
)
BROKEN = {"run_id": "run_0", "status": 7}
LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
WRITERS = {"jsonl": to_jsonl, "csv": to_csv, "parquet": to_parquet}


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Return a scripted FLORA server."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def flora(server: Scripted, fast_retries: None) -> AsyncIterator[Flora]:
    """Return a client of the scripted server."""
    async with Flora("sk_1", base_url=server.base_url) as client:
        yield client


@pytest.fixture(params=list(WRITERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of each format."""
    return str(request.param)


def items(*rows: object, cursor: str | None = None) -> Any:
    """Return a response with one page of these items."""
    return answer({"generations": list(rows), "meta": {"next_cursor": cursor}})


def ids(path: Path) -> list[str]:
    """Return the run ids in an exported file."""
    if path.suffix == ".parquet":
        return [str(run_id) for run_id in pyarrow.parquet.read_table(path)["run_id"].to_pylist()]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [row["run_id"] for row in csv.DictReader(file)]
    return [json.loads(line)["run_id"] for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def cursors(server: Scripted) -> list[str | None]:
    """Return the cursors of the requested pages."""
    return [asked.query.get("cursor") for asked in server.asked]


# -- what is in the files


async def test_json_lines(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """JSON Lines have all columns. Times are in UTC, limited to the range of datetime, and texts are unchanged."""
    server.on("GET", "/generations", items(DONE, ODD))
    exported = await to_jsonl(flora.generations.list(), tmp_path / "h.jsonl")
    assert exported == ExportResult(path=tmp_path / "h.jsonl", rows=2, broken=0)
    done, odd = (json.loads(line) for line in exported.path.read_text(encoding="utf-8").splitlines())
    assert list(done) == list(odd) == COLUMNS
    assert done == {
        "run_id": "run_2",
        "status": "completed",
        "progress": 100,
        "created": "2026-09-21T14:13:20.250000Z",
        "started": "2026-09-21T14:13:21Z",
        "completed": "2026-09-21T14:13:32Z",
        "charged_cost": 0.04,
        "model_id": "t2i-flux-2-pro",
        "project_id": "prj_1",
        "workspace_id": "ws_1",
        "error_code": None,
        "error_message": None,
        "outputs": DONE["outputs"],
    }
    assert (odd["status"], odd["created"], odd["started"]) == ("dreaming", "0001-01-01T00:00:00Z", None)
    assert (odd["completed"], odd["model_id"], odd["outputs"]) == ("9999-12-31T23:59:59Z", None, [])


async def test_csv(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """In CSV, outputs are JSON, missing values are empty, and formulas are escaped with an apostrophe."""
    server.on("GET", "/generations", items(DONE, ODD))
    exported = await to_csv(flora.generations.list(), tmp_path / "h.csv")
    with exported.path.open(encoding="utf-8", newline="") as file:
        header, done, odd = csv.reader(file)
    assert header == COLUMNS
    said = dict(zip(COLUMNS, done, strict=True))
    assert json.loads(said["outputs"]) == DONE["outputs"]
    assert (said["created"], said["progress"], said["error_code"]) == ("2026-09-21T14:13:20.250000Z", "100.0", "")
    said = dict(zip(COLUMNS, odd, strict=True))
    assert (said["error_code"], said["error_message"], said["outputs"]) == ("'=cmd()", "'-1", "[]")
    frame = pandas.read_csv(exported.path, parse_dates=["started"])
    assert frame["started"][0] == pandas.Timestamp("2026-09-21T14:13:21Z")


async def test_parquet_is_read_by_all(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """Parquet files are readable by pyarrow and pandas, with times in UTC."""
    server.on("GET", "/generations", items(DONE, ODD))
    path = (await to_parquet(flora.generations.list(), tmp_path / "h.parquet")).path
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == COLUMNS
    for name in ("created", "started", "completed"):
        assert table.schema.field(name).type == pyarrow.timestamp("us", tz="UTC")
        assert str(pandas.read_parquet(path)[name].dtype) == "datetime64[us, UTC]"
    done, odd = table.to_pylist()
    assert (done["created"], done["outputs"], done["charged_cost"]) == (MOMENT, DONE["outputs"], 0.04)
    assert (odd["completed"], odd["started"], odd["model_id"], odd["error_message"]) == (LAST, None, None, "-1")
    assert pandas.read_parquet(path)["created"][0] == pandas.Timestamp(MOMENT)


RUNS = [
    Generation(
        run_id="run_2",
        generation_id="run_2",
        project_id="prj_1",
        workspace_id="ws_1",
        status="completed",
        progress=100,
        created_at=1790000000250,
        outputs=(Output(output_id="output_1", type="text", url="a text"),),
    ),
    Run(run_id="run_1", status="pending", progress=0, created_at=1e300),
]


def test_runs_in_memory_as_a_frame() -> None:
    """Runs of each record type become a frame with all columns. ``DataFrame(runs)`` has one column of objects."""
    assert pandas.DataFrame(RUNS).shape[1] != len(COLUMNS)
    for frame in (to_pandas(RUNS), pandas.DataFrame(rows(RUNS))):
        assert list(frame.columns) == COLUMNS
        assert frame["created"][0] == pandas.Timestamp(MOMENT)
        assert frame["workspace_id"][0] == "ws_1"
    wide = to_arrow(RUNS)
    assert wide.column_names == COLUMNS
    assert wide["created"].to_pylist() == [MOMENT, LAST]
    assert wide["outputs"].to_pylist() == [[{"output_id": "output_1", "type": "text", "url": "a text"}], []]
    assert wide.to_pylist() == rows(RUNS)


DAYS = {
    "usual": [
        Run(
            run_id="run_3",
            status="completed",
            progress=100,
            created_at=1,
            outputs=(Output(output_id="o", type="text", url="x"),),
        )
    ],
    "failed": [
        Run(run_id="run_4", status="failed", progress=100, created_at=1, error_code="x", error_message="it is late")
    ],
    "mixed": RUNS,
    "empty": [],
}


@pytest.mark.parametrize("day", DAYS)
def test_columns_have_one_type_whatever_the_day_holds(day: str) -> None:
    """Frames of any runs, and of none, have the same columns with the same types."""
    frame, usual = to_pandas(DAYS[day]), to_pandas(DAYS["usual"])
    assert list(frame.columns) == COLUMNS
    assert list(frame.dtypes) == list(usual.dtypes)
    texts = ["run_id", "status", "model_id", "project_id", "workspace_id", "error_code", "error_message"]
    assert {str(frame[name].dtype) for name in texts} == {"str"}
    assert to_arrow(DAYS[day]).schema == to_arrow(DAYS["usual"]).schema


@pytest.mark.parametrize("days", list(itertools.permutations(DAYS, 2)))
def test_parquet_files_of_two_days_can_be_read_as_one(days: tuple[str, str], tmp_path: Path) -> None:
    """Pandas reads Parquet files of two days as one table."""
    number = sum(len(DAYS[day]) for day in days)
    frames, tables = tmp_path / "frames", tmp_path / "tables"
    frames.mkdir()
    tables.mkdir()
    for name, day in enumerate(days):
        to_pandas(DAYS[day]).drop(columns="outputs").to_parquet(frames / f"{name}.parquet")
        pyarrow.parquet.write_table(to_arrow(DAYS[day]), tables / f"{name}.parquet")
    together = pandas.read_parquet(frames)
    assert len(together) == number
    assert list(together.dtypes) == list(to_pandas([]).drop(columns="outputs").dtypes)
    assert len(pandas.read_parquet(tables)) == number


@pytest.mark.proof
async def test_polars_has_the_same_frames(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """Polars reads one exported file or many, and ``to_polars`` has the same columns."""
    import polars  # here, for it is large, and not installed with what the other tests need

    server.on("GET", "/generations", items(DONE, ODD))
    path = (await to_parquet(flora.generations.list(), tmp_path / "h.parquet")).path
    read = polars.read_parquet(path)
    assert [read[name].dtype for name in ("created", "started", "completed")] == 3 * [polars.Datetime("us", "UTC")]
    assert read.to_dicts() == pyarrow.parquet.read_table(path).to_pylist()
    wide = to_polars(RUNS)
    assert wide.columns == COLUMNS
    assert wide["created"].to_list() == [MOMENT, LAST]
    assert wide.to_dicts() == rows(RUNS)
    tables = tmp_path / "tables"
    tables.mkdir()
    for day, runs in DAYS.items():
        assert to_polars(runs).schema == wide.schema
        pyarrow.parquet.write_table(to_arrow(runs), tables / f"{day}.parquet")
    assert len(polars.read_parquet(tables)) == sum(map(len, DAYS.values()))


async def test_an_empty_history(flora: Flora, server: Scripted, tmp_path: Path, kind: str) -> None:
    """An empty history becomes an empty file of its format."""
    server.on("GET", "/generations", items())
    exported = await WRITERS[kind](flora.generations.list(), tmp_path / f"h.{kind}")
    assert (exported.rows, ids(exported.path)) == (0, [])


async def test_broken_items_are_counted(
    flora: Flora, server: Scripted, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Items that cannot be parsed are counted and logged. The other items are written."""
    server.on("GET", "/generations", items(DONE, BROKEN, cursor="a"), items(BROKEN, ODD))
    exported = await WRITERS[kind](flora.generations.list(), tmp_path / f"h.{kind}")
    assert (exported.rows, exported.broken, ids(exported.path)) == (2, 2, ["run_2", "run_1"])
    assert caplog.text.count("cannot decode an item") == 2


async def test_a_run_that_pages_shift_to_is_written_once(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A run that moves to the next page while it is read is written once."""
    server.on("GET", "/generations", page("run_3", "run_2", cursor="a"), page("run_2", "run_1"))
    exported = await to_jsonl(flora.generations.list(), tmp_path / "h.jsonl")
    assert ids(exported.path) == ["run_3", "run_2", "run_1"]


async def test_only_what_is_newer(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """``since`` skips older runs, and reading stops at the first page that has only older runs."""
    rows = [generation(f"run_{age}", created_at=1790000000 - 3600 * age) for age in range(6)]
    server.on("GET", "/generations", items(*rows[:2], cursor="a"), items(*rows[2:4], cursor="b"), silence)
    since = datetime.fromtimestamp(1790000000, UTC) - timedelta(hours=1)
    exported = await to_jsonl(flora.generations.list(), tmp_path / "h.jsonl", since=since)
    assert ids(exported.path) == ["run_0", "run_1"]


# -- interrupted


PROGRAM = """
import asyncio, sys
from flora_async import Flora, export

async def main():
    async with Flora("sk_1", base_url=sys.argv[1]) as flora:
        await getattr(export, "to_" + sys.argv[2])(flora.generations.list(limit=2), sys.argv[3])

asyncio.run(main())
"""


async def test_an_export_that_was_killed_goes_on(server: Scripted, flora: Flora, tmp_path: Path, kind: str) -> None:
    """A killed export resumes with its first missing page. A run that moved between pages is written once."""
    path = tmp_path / f"h.{kind}"
    server.on("GET", "/generations", page("run_6", "run_5", cursor="a"), page("run_4", "run_3", cursor="b"), silence)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, server.base_url, kind, str(path))
    pages = path.with_name(f"{path.name}.pages")
    with anyio.fail_after(60):  # until two are kept, and the third is asked for
        while cursors(server) != [None, "a", "b"] or pages.read_bytes().count(b"\n") < 3:
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert not path.exists()
    server.on("GET", "/generations", page("run_3", "run_2", cursor="c"), page("run_1"))
    exported = await WRITERS[kind](flora.generations.list(limit=2), path)
    assert cursors(server) == [None, "a", "b", "b", "c"]
    assert ids(path) == [f"run_{number}" for number in range(6, 0, -1)]
    assert exported.rows == 6
    assert names(tmp_path) == [path.name]


async def test_an_export_that_failed_goes_on(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """After an error of the listing, the same call resumes. The old file stays until the new one is complete."""
    path = tmp_path / "h.jsonl"
    path.write_text("old")
    server.on("GET", "/generations", page("run_2", cursor="a"), *[error(500)] * 3, page("run_1"))
    with pytest.raises(InternalServerError):
        await to_jsonl(flora.generations.list(), path)
    assert path.read_text() == "old"
    await to_jsonl(flora.generations.list(), path)
    assert ids(path) == ["run_2", "run_1"]
    assert cursors(server) == [None, "a", "a", "a", "a"]


async def test_killed_while_the_file_was_written(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """An export that fails after its last page sends no request again."""
    server.on("GET", "/generations", page("run_2", cursor="a"), page("run_1"))
    path = tmp_path / "h.jsonl"
    part = tmp_path / "h.jsonl.part"
    part.mkdir()  # in the way of the file before it has its name
    with pytest.raises(ExportError, match=r"cannot write .*h\.jsonl: "):
        await to_jsonl(flora.generations.list(), path)
    assert names(tmp_path) == ["h.jsonl.pages", "h.jsonl.part"]
    part.rmdir()
    await to_jsonl(flora.generations.list(), path)
    assert ids(path) == ["run_2", "run_1"]
    assert cursors(server) == [None, "a"]


@pytest.mark.parametrize("there", ["folder", "pipe"])
async def test_only_a_regular_file_is_replaced(flora: Flora, server: Scripted, tmp_path: Path, there: str) -> None:
    """A target that is a folder or a pipe is refused before a request is sent."""
    path = tmp_path / "h.jsonl"
    path.mkdir() if there == "folder" else os.mkfifo(path)
    with pytest.raises(ExportError, match="not replaced"):
        await to_jsonl(flora.generations.list(), path)
    assert names(tmp_path) == ["h.jsonl"]
    assert not server.asked


async def test_a_timeout_of_the_history_is_that_timeout(server: Scripted, tmp_path: Path) -> None:
    """A timeout of a page raises the listing's APITimeoutError, not ExportError."""
    server.on("GET", "/generations", page("run_2", cursor="a"), silence)
    async with Flora("sk_1", base_url=server.base_url, timeout=0.1, max_retries=0) as flora:
        with pytest.raises(APITimeoutError):
            await to_jsonl(flora.generations.list(), tmp_path / "h.jsonl")
    server.on("GET", "/generations", page("run_1"))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        await to_jsonl(flora.generations.list(), tmp_path / "h.jsonl")
    assert ids(tmp_path / "h.jsonl") == ["run_2", "run_1"]


@pytest.mark.parametrize("moment", ["opening", "writing", "closing"])
async def test_no_file_is_closed_under_its_thread(
    flora: Flora, server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A cancelled export waits for the thread that opens, writes or closes its file, then deletes the partial file."""
    server.on("GET", "/generations", page("run_1"))
    path = tmp_path / "h.jsonl"
    inside, release = threading.Event(), threading.Event()
    steps: list[str] = []

    def step(name: str) -> None:
        steps.append(name)
        if name == moment:
            inside.set()
            release.wait(10)
        steps.append(f"{name} ended")

    @contextmanager
    def slow(part: Path) -> Iterator[WriteRuns]:
        with part.open("wb"):
            step("opening")
            try:
                yield lambda _generations: step("writing")
            finally:
                step("closing")

    monkeypatch.setattr(export, "_open_json_lines", slow)
    task = asyncio.create_task(to_jsonl(flora.generations.list(), path))
    while not inside.is_set():
        await asyncio.sleep(0.001)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    release.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert steps[::2] == [name.removesuffix(" ended") for name in steps[1::2]]  # one after another
    assert steps[-1] == "closing ended"
    assert names(tmp_path) == ["h.jsonl.pages"]


@pytest.mark.parametrize("kept", range(3))
async def test_a_page_that_was_cut_while_it_was_written(
    flora: Flora, server: Scripted, tmp_path: Path, kept: int
) -> None:
    """An incomplete page, or an incomplete header, in the page file is requested again."""
    path, pages = tmp_path / "h.jsonl", tmp_path / "h.jsonl.pages"
    server.on("GET", "/generations", page("run_3", cursor="a"), page("run_2", cursor="b"), *[error(500)] * 3)
    with pytest.raises(InternalServerError):
        await to_jsonl(flora.generations.list(), path)
    lines = pages.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    pages.write_bytes(b"".join(lines[:kept]) + lines[kept][:-9])
    rest = [page("run_3", cursor="a"), page("run_2", cursor="b"), page("run_1")]
    server.on("GET", "/generations", *rest[max(0, kept - 1) :])
    await to_jsonl(flora.generations.list(), path)
    assert ids(path) == ["run_3", "run_2", "run_1"]
    assert cursors(server)[5:] == [None, "a", "b"][max(0, kept - 1) :]


async def test_a_cursor_that_flora_has_forgotten(
    flora: Flora, server: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If FLORA rejects the stored cursor, the export starts again and logs it. Other 400 responses are raised."""
    path = tmp_path / "h.jsonl"
    server.on("GET", "/generations", page("run_2", cursor="a"), *[error(500)] * 3, error(400), page("run_9"))
    with pytest.raises(InternalServerError):
        await to_jsonl(flora.generations.list(), path)
    await to_jsonl(flora.generations.list(), path)
    assert ids(path) == ["run_9"]
    assert "starts again" in caplog.text
    server.on("GET", "/generations", error(400))
    with pytest.raises(BadRequestError):
        await to_jsonl(flora.generations.list(), path)


async def test_an_export_goes_on_with_its_own_listing_only(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """Other filters or times at the same path are refused, and so is a damaged page file."""
    path, pages = tmp_path / "h.jsonl", tmp_path / "h.jsonl.pages"
    server.on("GET", "/generations", page("run_2", cursor="a"), error(401))
    with pytest.raises(Exception, match="some_code"):
        await to_jsonl(flora.generations.list(status="failed"), path)
    with pytest.raises(ExportError, match="belongs to another listing"):
        await to_jsonl(flora.generations.list(), path)
    with pytest.raises(ExportError, match="belongs to another listing"):
        await to_jsonl(flora.generations.list(status="failed"), path, since=MOMENT)
    pages.write_bytes(pages.read_bytes() + b"{}\n")
    with pytest.raises(ExportError, match="damaged"):
        await to_jsonl(flora.generations.list(status="failed"), path)


async def test_cancelling_leaves_no_half_file(
    flora: Flora, server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that is cancelled during the write leaves no partial file and keeps its pages."""
    monkeypatch.setattr(_checkpoint, "MAX_BATCH_RUNS", 1)
    server.on("GET", "/generations", *[page(f"run_{number}", cursor=str(number)) for number in range(9)], page("run_9"))
    path = tmp_path / "h.csv"
    async with asyncio.TaskGroup() as group:
        export_ = group.create_task(to_csv(flora.generations.list(), path))
        with anyio.fail_after(30):
            while not (tmp_path / "h.csv.part").exists():
                await asyncio.sleep(0)
        export_.cancel()
    assert names(tmp_path) == ["h.csv.pages"]


# -- Arrow, batch by batch


async def test_record_batches(flora: Flora, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record batches end at page limits, each with the cursor of the next page."""
    monkeypatch.setattr(export, "MAX_BATCH_RUNS", 3)
    server.on(
        "GET",
        "/generations",
        page("run_6", "run_5", cursor="a"),
        items(generation("run_5"), generation("run_4"), BROKEN, cursor="b"),
        page("run_3", cursor="c"),
        page(cursor="d"),
        page("run_2"),
        page(),
    )
    async with record_batches(flora.generations.list()) as batches:
        seen = [(batch["run_id"].to_pylist(), batches.next_cursor, batches.broken) async for batch in batches]
    assert seen == [(["run_6", "run_5", "run_4"], "b", 1), (["run_3", "run_2"], None, 1)]


async def test_record_batches_after_an_error(flora: Flora, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that were read before an error are in the next batch."""
    monkeypatch.setattr(export, "MAX_BATCH_RUNS", 2)
    server.on("GET", "/generations", page("run_2", cursor="a"), *[error(500)] * 3, page("run_1"))
    batches = record_batches(flora.generations.list())
    with pytest.raises(InternalServerError):
        await anext(batches)
    assert (await anext(batches))["run_id"].to_pylist() == ["run_2", "run_1"]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


# -- what cannot be


async def test_bad_arguments(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """Bad arguments are refused before a request is sent."""
    listing: Any = flora.generations.list()
    with pytest.raises(ConfigurationError, match="time zone"):
        await to_csv(listing, tmp_path / "h.csv", since=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ExportError, match=r"cannot write .*: No such file or directory"):
        await to_csv(listing, tmp_path / "nowhere" / "h.csv")
    listing = RUNS
    with pytest.raises(ConfigurationError, match=r"pass a listing, flora.generations.list\(...\), not list"):
        await to_csv(listing, tmp_path / "h.csv")
    with pytest.raises(ConfigurationError, match="pass a listing"):
        record_batches(listing)
    assert server.asked == []


@pytest.mark.parametrize(
    ("module", "mend"),
    [("pandas", "pip install pandas"), ("polars", "pip install polars"), ("pyarrow", "'flora-async[export]'")],
)
async def test_what_is_not_installed_is_named(
    flora: Flora, module: str, mend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing library raises ConfigurationError with the command that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=re.escape(mend)):
        {"pandas": to_pandas, "polars": to_polars, "pyarrow": to_arrow}[module](RUNS)
    if module == "pyarrow":
        with pytest.raises(ConfigurationError, match=re.escape(mend)):
            await to_parquet(flora.generations.list(), tmp_path / "h.parquet")
        with pytest.raises(ConfigurationError, match=re.escape(mend)):
            record_batches(flora.generations.list())


def test_importing_it_loads_no_extra() -> None:
    """Importing the module loads no optional library."""
    loaded = "import sys, flora_async.export; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert not {"aiohttp", "pyarrow", "pandas", "polars", "numpy"} & set(output.split())


# -- at length


LONG = """
import asyncio, re, resource, sys
from pathlib import Path
from flora_async import Flora, export

def peak():
    status = Path("/proc/self/status")
    if status.exists():  # getrusage tells what the parent had, where that is more
        return 2**10 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def main():
    async with Flora("sk_1", base_url=sys.argv[1]) as flora:
        exported = await export.to_parquet(flora.generations.list(limit=100), sys.argv[2])
    print(exported.rows, exported.broken, peak())

asyncio.run(main())
"""


@pytest.fixture
def long_history(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Serve a long history in a separate process; return its URL and its number of items."""
    command = [sys.executable, "-m", "benchmarks.calls.server", "--pages", str(request.param // 100)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}", request.param
        finally:
            server.terminate()


@pytest.mark.parametrize("long_history", [2_000, pytest.param(1_000_000, marks=pytest.mark.proof)], indirect=True)
def test_memory_does_not_grow_with_the_history(long_history: tuple[str, int], tmp_path: Path) -> None:
    """For two thousand or a million items, the process needs at most 300 MB, and every library reads the file."""
    url, count = long_history
    path = tmp_path / "h.parquet"
    told = subprocess.run([sys.executable, "-c", LONG, url, str(path)], capture_output=True, text=True, check=True)
    written, broken, peak = told.stdout.split()
    assert (int(written), int(broken)) == (count, 0)
    assert int(peak) <= 300e6
    table = pyarrow.parquet.read_table(path, columns=["run_id", "created"])
    assert pyarrow.compute.count_distinct(table["run_id"]).as_py() == count
    assert pyarrow.compute.min(table["created"]).as_py() == datetime.fromtimestamp(1790000000, UTC)
    assert pyarrow.parquet.read_metadata(path).num_rows == count
    frame = pandas.read_parquet(path, columns=["run_id", "created"])
    assert (len(frame), str(frame["created"].dtype)) == (count, "datetime64[us, UTC]")


# -- the example


@pytest.mark.proof
async def test_the_nightly_example(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The second night adds the new runs and the final records of runs that were unfinished."""
    caplog.set_level(logging.ERROR)
    example = ROOT / "examples" / "nightly_parquet.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path)])

    async def night(*rows: object) -> None:
        async with Scripted() as server:
            server.on("GET", "/generations", items(*rows))
            monkeypatch.setenv("FLORA_API_KEY", "sk_1")
            monkeypatch.setenv("FLORA_BASE_URL", server.base_url)
            await asyncio.to_thread(runpy.run_path, str(example), run_name="__main__")

    old = generation("run_0", created_at=1780000000, charged_cost=1)
    running = generation("run_1", status="running", created_at=1790000000, charged_cost=0.5)
    done = generation("run_1", created_at=1790000000, charged_cost=0.5)
    new = generation("run_2", created_at=1790009000, charged_cost=0.25)
    await night(running, old)
    await night(new, done, old)
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [["run_1", "run_0"], ["run_2", "run_1"]]
    history = runpy.run_path(str(example))["history"](tmp_path).collect()
    assert history["run_id"].to_list() == ["run_2", "run_1", "run_0"]
    assert history["status"].to_list() == ["completed"] * 3
    assert "1.75" in capsys.readouterr().out


@pytest.mark.virtual_time
async def test_the_history_of_a_sandbox(tmp_path: Path) -> None:
    """The history of a sandbox exports with runs of several types."""
    async with Sandbox(time_scale=0.01) as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        for prompt in ("a haiku", "a poem [fail:safety_blocked]"):
            await flora.generations.create(type="text", prompt=prompt, workspace_id="ws_demo", project_id="prj_demo")
        started = [generation.run_id async for generation in flora.generations.list()]
        async for _ in flora.as_completed(started):
            pass
        exported = await to_parquet(flora.generations.list(), tmp_path / "h.parquet")
    failed, done = pyarrow.parquet.read_table(exported.path).to_pylist()
    assert (failed["status"], failed["error_code"]) == ("failed", "safety_blocked")
    assert done["outputs"][0]["type"] == "text"
    assert done["created"] <= done["started"] <= done["completed"] <= datetime.now(UTC)
