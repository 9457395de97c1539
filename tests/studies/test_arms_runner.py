"""Which cell of the grid an arm gets: the one that was best on validation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill_helpers.studies import STUDIES, load_study, runner

GRID = tuple((("rate", rate),) for rate in (0.1, 0.2, 0.3))


def explored(scores, *, arm="labels", phase="explore"):
    return [
        {
            **{"phase": phase, "arm": arm, "setting": "800", "seed": 0},
            **{"rate": options[0][1], "validation_nll": score},
        }
        for options, score in zip(GRID, scores, strict=True)
    ]


@pytest.mark.parametrize(
    ("higher_is_better", "best"), [(False, 0.3), (True, 0.2)], ids=["lowest", "highest"]
)
def test_the_best_cell_is_the_one_in_the_metric_s_direction(higher_is_better, best):
    study = replace(
        load_study("soft_labels"), grid=GRID, higher_is_better=higher_is_better
    )
    rows = explored([2.0, 3.0, 1.0])
    # Neither another arm's cells count, nor what came out on confirming seeds.
    rows += explored([0.0, 9.0, 5.0], arm="soft T=1")
    rows += explored([0.5, 0.0, 9.5], phase="confirm")
    assert runner._best(study, rows, "labels", "800") == (("rate", best),)


def test_every_study_selects_by_what_is_better_when_lower():
    """Losses and shares of wrong answers; a score would need the other direction."""
    for name in STUDIES:
        study = load_study(name)
        assert not study.higher_is_better
        assert any(word in study.select for word in ("nll", "wrong"))
