"""Expected duration of runs, by kind and model, technique or action."""

from __future__ import annotations

import math

from flora_async._bounded_dict import BoundedDict
from flora_async.models import OrderKind

DEFAULT_SECONDS: dict[OrderKind, float] = {
    "text": 3.0,
    "audio": 6.0,
    "image": 8.0,
    "video": 60.0,
    "technique": 30.0,
    "action": 5.0,
}
"""Expected seconds of a run without an estimate from FLORA."""
MAX_MODELS = 1000
"""Maximum number of (type, model) pairs with a stored correction."""


class DurationEstimator:
    """Corrects FLORA's estimates by type and model, from the durations of finished runs."""

    def __init__(self) -> None:
        self._seen: BoundedDict[tuple[str, str | None], tuple[float, int]] = BoundedDict(MAX_MODELS)

    def predict(self, run_type: OrderKind, model: str | None, estimate: float | None) -> float:
        """Return the expected duration in seconds; *estimate* is FLORA's, or ``None``."""
        bias, _ = self._seen.get((run_type, model), (0.0, 0))
        return _valid_estimate(estimate, DEFAULT_SECONDS[run_type]) * math.exp(bias)

    def update(self, run_type: OrderKind, model: str | None, estimate: float | None, seconds: float) -> None:
        """Update the correction with a run that took *seconds*."""
        key = run_type, model
        bias, runs = self._seen.pop(key, (0.0, 0))
        error = math.log(min(max(seconds, 0.1), 1e5) / _valid_estimate(estimate, DEFAULT_SECONDS[run_type]))
        weight = max(0.1, 1 / (runs + 2))
        self._seen[key] = (bias + weight * (error - bias), runs + 1)


def _valid_estimate(estimate: float | None, default: float) -> float:
    return estimate if estimate and 0 < estimate < 1e5 else default
