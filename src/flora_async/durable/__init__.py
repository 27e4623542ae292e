"""Batches that outlive their process: on DBOS, in a SQLite file or in PostgreSQL for many machines."""

# The rooms: _orders reads files of orders, _tables and _ledger keep what is known of each order, _storing the batches,
# _presence which processes live; _deciding and _plain are pure, _fulfilling sees to one order, _workflows is DBOS.

from importlib.util import find_spec

from flora_async.errors import ConfigurationError

if find_spec("dbos") is None:
    raise ConfigurationError("durable batches need DBOS: pip install 'flora-async[durable]'")

from flora_async.durable._batch import Batch, BatchOutcome, BatchOutcomes
from flora_async.durable._batches import Batches, adopt
from flora_async.durable._storing import BatchSettings, BatchStatus

__all__ = ["Batch", "BatchOutcome", "BatchOutcomes", "BatchSettings", "BatchStatus", "Batches", "adopt"]
