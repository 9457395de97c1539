"""Student's t-interval, of a mean or of one more draw: what a few seeds can say.

And Holm's correction, where several claims are judged together. Taught in notebook 03.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its t-interval.

    Attributes:
        mean: The mean.
        low: Lower end.
        high: Upper end.
        n: How many values it rests on.
        confidence: Its coverage.
    """

    mean: float
    low: float
    high: float
    n: int
    confidence: float = CONFIDENCE


def t_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, *, prediction: bool = False
) -> Interval:
    """Student's t-interval of a mean, or of one more draw.

    Args:
        values: At least two independent numbers. Where one was not measured, and is
            NaN, so are the mean and both ends.
        confidence: Coverage, in (0, 1).
        prediction: Where one further value should fall, instead of the mean.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values give no interval; run at least two seeds")
    if any(map(math.isnan, values)):  # stdev cannot read it
        return Interval(math.nan, math.nan, math.nan, n, confidence)
    mean = fmean(values)
    factor = math.sqrt(1 + 1 / n) if prediction else math.sqrt(1 / n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * stdev(values) * factor
    return Interval(mean, mean - half, mean + half, n, confidence)


def p_value(values: Sequence[float], distance: float) -> float:
    """How wide a t-interval may be without reaching a bound: the share left outside.

    The t-interval of confidence ``1 - p`` just touches a bound that lies ``distance``
    from the mean. Any interval of less confidence stays clear of it.

    Args:
        values: At least two independent numbers.
        distance: From their mean to the bound, in their unit.
    """
    from scipy.stats import t

    n = len(values)
    if any(map(math.isnan, values)):
        return 1.0  # decides nothing
    error = stdev(values) / math.sqrt(n)
    if not error:
        return 0.0 if distance else 1.0
    return 2 * float(t.sf(abs(distance) / error, n - 1))


def holm_confidences(
    p_values: Sequence[float], confidence: float = CONFIDENCE
) -> list[float]:
    """How confident the interval of each claim must be, where many are judged together.

    Twenty claims of nothing, each judged by its 95 % interval, make one discovery.
    Holm's procedure (1979, "A simple sequentially rejective multiple test procedure")
    keeps the chance of one or more among ``k`` claims below 5 %: the clearest claim is
    judged by its ``1 - 5 % / k`` interval, the next by ``1 - 5 % / (k - 1)``, and so on
    until one is left undecided; it and all that follow share its confidence.

    Args:
        p_values: From :func:`p_value`, one a claim.
        confidence: The coverage that all claims together shall have.

    Returns:
        One confidence for each, in the order of ``p_values``. An interval of that
        confidence reaches its bound exactly where Holm leaves the claim undecided.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found = [confidence] * len(p_values)
    level, undecided = 0.0, False
    for rank, place in enumerate(order):
        if not undecided:
            level = (1 - confidence) / (len(order) - rank)
            undecided = p_values[place] > level
        found[place] = 1 - level
    return found


def seeds_to_decide(
    gain: Interval, distance: float, *, power: float = 0.8, most: int = 1000
) -> int | None:
    """How many seeds would settle an undecided claim, if the gain is what it seems.

    That many make the interval, at its confidence, stay clear of the bound with the
    given power. The gain and its scatter are estimates: so is what comes out.

    Args:
        gain: The interval of the claim as it stands.
        distance: From its mean to the bound, in its unit.
        power: The chance that so many seeds decide it.
        most: Where to stop looking.

    Returns:
        The number of seeds, or ``None`` if even ``most`` are too few.
    """
    from scipy.stats import nct, t

    tail = (1 - gain.confidence) / 2
    half = (gain.high - gain.low) / 2
    spread = half * math.sqrt(gain.n) / float(t.isf(tail, gain.n - 1))

    def is_enough(n: int) -> bool:
        if not spread:
            return bool(distance)
        shift = abs(distance) / spread * math.sqrt(n)
        return float(nct.sf(t.isf(tail, n - 1), n - 1, shift)) >= power

    low, high = 2, most
    if not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low
