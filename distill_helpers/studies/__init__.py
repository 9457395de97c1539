"""Comparisons over seeds, with claims that are declared before they are confirmed.

A :class:`Study` lists its arms (what is compared), its settings (how much data) and a
grid of learning rates and weight decays that is the same for every arm. It runs in two
phases:

* *explore*: the whole grid on some of the seeds 0 to 2; the best cell of each arm, by
  the validation metric's mean, is kept. These seeds are for exploring, also by hand and
  in notebooks;
* *confirm* once, on five or more fresh seeds, with the cell that exploring chose.

Claims are judged on the confirming seeds alone, by the t-interval of the paired
difference, which is 95 % for all claims of a study together. A claim may hold, fail or
stay undecided; all three are results. Every row, exploring ones included, is published
in ``results/studies``.

Which file holds what:

* ``study``: what a study declares, and the list of all of them (``STUDIES``);
* ``results``: reading, tables, verdicts, checks of live runs, for notebooks;
* ``intervals``: Student's t-interval;
* ``records``: what was done, round by round;
* ``runner``: running, checking again, publishing, for maintainers;
* ``tiny``: one training of one tiny model, shared by the studies;
* one file or folder for each study.

In a clone, ``make studies-anew`` runs them all, which takes hours; ``make studies``
runs one published seed of each anew and compares. Read in notebook 03.
"""

from __future__ import annotations

from distill_helpers.studies.intervals import Interval, t_interval
from distill_helpers.studies.results import MIME, Results, judge, load_results
from distill_helpers.studies.runner import (
    publish,
    recheck_study,
    run_study,
    verdict_rows,
)
from distill_helpers.studies.study import STUDIES, UNITS, Claim, Run, Study, load_study
from distill_helpers.studies.tiny import tiny_arguments

__all__ = [
    "MIME",
    "STUDIES",
    "UNITS",
    "Claim",
    "Interval",
    "Results",
    "Run",
    "Study",
    "judge",
    "load_results",
    "load_study",
    "publish",
    "recheck_study",
    "run_study",
    "t_interval",
    "tiny_arguments",
    "verdict_rows",
]
