"""A FLORA of one's own: a real server on this machine that keeps FLORA's contract, without a bill or a network."""

from flora_async.sandbox.faults import Fault, FaultName
from flora_async.sandbox.server import Sandbox

__all__ = ["Fault", "FaultName", "Sandbox"]
