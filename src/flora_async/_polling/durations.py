"""Expected duration of runs, by type and model."""

from __future__ import annotations

import math

from flora_async.models import GenerationType

USUAL_SECONDS: dict[GenerationType, float] = {"text": 3.0, "audio": 6.0, "image": 8.0, "video": 60.0}
"""What is assumed of a run for which FLORA gives no estimate."""
LEARNED_MODELS = 1000
"""For how many models what was learned is kept."""


class DurationEstimator:
    """How far FLORA's estimates are off, by type and model, learned from the runs that finish."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str | None], tuple[float, int]] = {}

    def expect(self, kind: GenerationType, model: str | None, estimate: float | None) -> float:
        """Say how many seconds a run should take, where FLORA says *estimate* or nothing."""
        bias, _ = self._seen.get((kind, model), (0.0, 0))
        return _usable(estimate, USUAL_SECONDS[kind]) * math.exp(bias)

    def learn(self, kind: GenerationType, model: str | None, estimate: float | None, took: float) -> None:
        """Count a run that *took* so many seconds."""
        key = kind, model
        bias, runs = self._seen.pop(key, (0.0, 0))
        error = math.log(min(max(took, 0.1), 1e5) / _usable(estimate, USUAL_SECONDS[kind]))
        weight = max(0.1, 1 / (runs + 2))
        self._seen[key] = (bias + weight * (error - bias), runs + 1)
        if len(self._seen) > LEARNED_MODELS:
            del self._seen[next(iter(self._seen))]


def _usable(estimate: float | None, usual: float) -> float:
    return estimate if estimate and 0 < estimate < 1e5 else usual
