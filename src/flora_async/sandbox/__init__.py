"""A local FLORA server for tests and demos: it keeps FLORA's contract, bills nothing and needs no network."""

from flora_async.sandbox._faults import Fault, FaultName
from flora_async.sandbox._server import Sandbox

__all__ = ["Fault", "FaultName", "Sandbox"]
