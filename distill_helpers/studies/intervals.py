"""Student's t-interval, of a mean or of one more draw: what a few seeds can say.

Taught in notebook 02.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its t-interval."""

    mean: float
    low: float
    high: float
    n: int


def t_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, *, prediction: bool = False
) -> Interval:
    """Student's t-interval of a mean, or of one more draw.

    Args:
        values: At least two independent numbers.
        confidence: Coverage, in (0, 1).
        prediction: Where one further value should fall, instead of the mean.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values give no interval; run at least two seeds")
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    factor = math.sqrt(1 + 1 / n) if prediction else math.sqrt(1 / n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation * factor
    return Interval(mean, mean - half, mean + half, n)
