"""Workers of one batch under a rate limit, on PostgreSQL: one is killed, and together they send what one would."""

import pytest

from benchmarks.durable.workers import measure

pytestmark = pytest.mark.proof


def test_three_workers_share_a_limit_and_one_is_killed() -> None:
    """They use the limit, with few 429s, ask the database about ten times a second, and bill no order twice."""
    figures = measure(10, 3, 30, shared=True)
    assert figures["share"] > 0.9
    assert figures["refusals"] < 0.1
    assert 0 < figures["changes_per_second"] < 12
