"""Ports for servers of other processes, which bind them only some seconds later."""

import random
import socket

PORTS = range(20_000, 32_000)
"""Below the ports that systems hand out by themselves, so that no other server of a test gets one meanwhile."""


def free_port() -> int:
    """Return a port on which nothing listens."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
