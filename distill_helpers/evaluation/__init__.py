"""Yardsticks: how good a student is, and how like its teacher.

* ``scores``: NLL, accuracy, KL to the teacher, calibration: :func:`evaluate`;
* ``answers``: answers of a model, and how many are exactly right;
* ``exposure``: how a student fares behind its own words;
* ``together``: models compared with each other, and two runs of one.

Taught in notebook 03, which shows that the yardsticks can disagree.
"""

from distill_helpers.evaluation.answers import exact_match, generate
from distill_helpers.evaluation.exposure import ExposureBias, measure_exposure
from distill_helpers.evaluation.scores import (
    Evaluation,
    evaluate,
    fit_temperature,
    held_out_nll,
)
from distill_helpers.evaluation.together import (
    Ensemble,
    PartnerComparison,
    churn,
    compare,
)

__all__ = [
    "Ensemble",
    "Evaluation",
    "ExposureBias",
    "PartnerComparison",
    "churn",
    "compare",
    "evaluate",
    "exact_match",
    "fit_temperature",
    "generate",
    "held_out_nll",
    "measure_exposure",
]
