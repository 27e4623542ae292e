"""Batches that survive crashes and restarts: orders in a SQLite file, or in PostgreSQL for several machines."""

from importlib.util import find_spec

from flora_async.errors import ConfigurationError

if find_spec("sqlalchemy") is None:
    raise ConfigurationError("durable batches need SQLAlchemy: pip install 'flora-async[durable]'")

from flora_async.durable._batch import Batch, BatchOutcome, BatchOutcomes
from flora_async.durable._batches import Batches, adopt, reassign
from flora_async.durable._store.batches import BatchSettings, BatchStatus

__all__ = ["Batch", "BatchOutcome", "BatchOutcomes", "BatchSettings", "BatchStatus", "Batches", "adopt", "reassign"]
