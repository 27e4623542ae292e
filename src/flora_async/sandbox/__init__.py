"""A FLORA of one's own: a real server on this machine that keeps FLORA's contract, without a bill or a network."""

from flora_async.sandbox._faults import Fault, FaultName
from flora_async.sandbox._server import Sandbox

__all__ = ["Fault", "FaultName", "Sandbox"]
