"""Files among the inputs of a durable batch: uploaded once, also across restarts and kills."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import backoff
import pytest

from flora_async import ConfigurationError, Flora, Order, UploadError
from flora_async.durable import Batches
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

PNG = b"\x89PNG\r\n\x1a\n"


@asynccontextmanager
async def opened(sandbox: Sandbox, folder: Path) -> AsyncIterator[Batches]:
    """Open the batches of a database, with a client of their own."""
    async with (
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
        Batches(
            flora, database=f"sqlite:///{folder}/batch.db", poll=lambda: backoff.expo(base=1, factor=0.5)
        ) as batches,
    ):
        yield batches


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Run a sandbox."""
    async with Sandbox(time_scale=0.01) as running:
        yield running


def orders(folder: Path, count: int, files: int) -> list[Order]:
    """Return orders that share some files."""
    for number in range(files):
        (folder / f"{number}.png").write_bytes(PNG + bytes([number]))
    place: dict[str, Any] = {"workspace_id": "ws_demo", "project_id": "prj_demo"}
    return [
        Order(type="text", prompt=f"mug {number}", params={"image_url": folder / f"{number % files}.png"}, **place)
        for number in range(count)
    ]


async def test_each_file_is_uploaded_once_for_a_database(sandbox: Sandbox, tmp_path: Path) -> None:
    """Twelve orders with three files, then the same batch again, then another batch: three uploads."""
    given = orders(tmp_path, 12, 3)
    for name in ("mugs", "mugs", "more"):
        async with opened(sandbox, tmp_path) as batches:
            status = await batches[name].run(given)
            assert status.completed == 12
            stored = [outcome.order async for outcome in batches[name].results()]
    assert sandbox.requests["POST /assets"] == 3
    assert sandbox.accepted == 24
    for order, outcome in zip(given, stored, strict=True):
        assert isinstance(outcome, Order)
        assert isinstance(order.params, dict)
        assert outcome.params is not None
        assert outcome.params["image_url"].startswith(sandbox.base_url.removesuffix("api/v1"))
        assert isinstance(order.params["image_url"], Path)


async def test_a_changed_file_is_another_batch(sandbox: Sandbox, tmp_path: Path) -> None:
    """The same name for other orders is refused, and the file is uploaded."""
    given = orders(tmp_path, 2, 1)
    async with opened(sandbox, tmp_path) as batches:
        await batches["mugs"].run(given)
        (tmp_path / "0.png").write_bytes(PNG + b"changed")
        with pytest.raises(ConfigurationError, match="has other orders"):
            await batches["mugs"].run(given)


async def test_an_upload_that_fails_stores_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """No order is stored or sent; the next call resumes with the files that were uploaded."""
    given = orders(tmp_path, 6, 3)
    (tmp_path / "[fail].png").write_bytes(PNG + bytes(5 * 2**20))
    broken = Order(
        type="text",
        prompt="mug",
        params={"image_url": tmp_path / "[fail].png"},
        workspace_id="ws_demo",
        project_id="prj_demo",
    )
    async with opened(sandbox, tmp_path) as batches:
        with pytest.raises(UploadError, match="cannot be processed"):
            await batches["mugs"].run([*given, broken])
        assert sandbox.accepted == 0
        with pytest.raises(ConfigurationError):
            await batches["mugs"].status()
        await batches["mugs"].run(given)
    assert sandbox.accepted == 6


async def test_an_invalid_order_uploads_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """All orders of a page are checked before the first file is sent."""
    given = orders(tmp_path, 3, 3)
    async with opened(sandbox, tmp_path) as batches:
        with pytest.raises(ConfigurationError, match="order 3"):
            await batches["mugs"].run([*given, Order(type="text", prompt="", workspace_id="ws_1", project_id="prj_1")])
    assert sandbox.requests["POST /assets"] == 0


async def test_a_stored_batch_whose_files_are_gone(sandbox: Sandbox, tmp_path: Path) -> None:
    """The error names the way on: the batch continues from the database, without its files."""
    given = orders(tmp_path, 2, 1)
    async with opened(sandbox, tmp_path) as batches:
        await batches["mugs"].run(given)
    (tmp_path / "0.png").unlink()
    async with opened(sandbox, tmp_path) as batches:
        with pytest.raises(ConfigurationError, match=r"No such file.*'mugs' is stored: resume\(\) continues it"):
            await batches["mugs"].run(given)
        assert (await batches["mugs"].resume()).completed == 2
    assert sandbox.accepted == 2
