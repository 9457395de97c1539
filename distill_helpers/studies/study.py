"""What a study declares: arms, settings, a grid, one run, and claims.

Taught in notebook 03.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

EXPLORE_SEEDS = (0, 1, 2)
CONFIRM_SEEDS = (100, 101, 102, 103, 104)
STUDIES = (
    "soft_labels",
    "longer_training",
    "stored_labels",
    "reused_draws",
    "teacher_domain",
    "shared_task",
    "real_pair",
    "hard_labels",
    "reasoning_traces",
    "codistillation",
    "codistilled_few",
    "codistilled_sums",
    "on_policy",
    "side_by_side",
)
# Declared, and not yet confirmed: rows of theirs are in ``results/unfinished``.
DECLARED: tuple[str, ...] = (
    "codistilled_late",
    "sums_from_bases",
    "own_text",
    "other_tokenizers",
    "self_distillation",
)

# What a gain is measured in, by metric.
UNITS = {
    "nll": "nats",
    "nll_calibrated": "nats",
    "bits_per_byte": "bits",
    "bits_calibrated": "bits",
    "kl_to_teacher": "nats",
    "agreement": "points",
    "accuracy": "of 1",
    "exact_match": "points",
    "excess_kl": "nats",
    "gap": "nats",
    "form": "points",
    "kl_left": "points",
    "gradient_cosine": "of 1",
    "ece": "of 1",
}

Options = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Claim:
    """A statement that can turn out false, declared in the study's source.

    Attributes:
        name: A short name, unique in the study.
        text: What is claimed, in words.
        metric: The column that it is judged by.
        arm: What should be better.
        baseline: What it is compared with, seed by seed.
        setting: The setting of both arms.
        margin: The gain must exceed this, in the metric's units.
        why_zero: Why ``margin`` is zero, so that a trifle would do; a later round than
            the first has a reason, or a margin.
        higher_is_better: The direction of the metric.
        baseline_setting: The baseline's setting, where it is another one.
        reference: Another arm, if the claim is that ``arm`` keeps a ``share`` of the
            gain that the reference has over the baseline.
        share: How much of the reference's gain must be kept.
        within: If given, the claim is that arm and baseline are equal but for this
            much, in the metric's units; ``margin`` says nothing then.
    """

    name: str
    text: str
    metric: str = field(kw_only=True)
    arm: str
    baseline: str
    _: KW_ONLY
    setting: str
    margin: float = 0.0
    why_zero: str = ""
    higher_is_better: bool = False
    baseline_setting: str | None = None
    reference: str | None = None
    share: float = 1.0
    within: float | None = None

    def __post_init__(self) -> None:
        if self.within is not None and not self.within > 0:
            raise ValueError(
                f"within={self.within} must be positive: two means are never equal to "
                "the last digit"
            )


def claimed(margin: float, within: float | None) -> str:
    """What the gain must be, in words: ``"more than 0.3"`` or ``"within ±0.02"``.

    Args:
        margin: Same as in :class:`Claim`, and so is the other.
        within: Same as there.
    """
    return f"more than {margin:g}" if within is None else f"within ±{within:g}"


@dataclass(frozen=True)
class Run:
    """One run of one arm; a study's function turns it into metrics."""

    arm: str
    setting: str
    seed: int
    options: Options

    def option(self, name: str) -> float:
        """The value of one grid option."""
        return dict(self.options)[name]

    @property
    def recipe(self) -> dict[str, Any]:
        """The seed and the grid's options, as keywords of a training function."""
        return {"seed": self.seed, **dict(self.options)}


def cells(*rates: float, weight_decay: float = 0.1) -> tuple[Options, ...]:
    """A grid of learning rates with one weight decay."""
    return tuple(
        (("learning_rate", rate), ("weight_decay", weight_decay)) for rate in rates
    )


def all_but(
    chosen: Mapping[str, Collection[str]], arms: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """What a study leaves out, given what it runs.

    Args:
        chosen: Setting to the arms that are run in it.
        arms: Every arm of the study.
    """
    return tuple(
        (arm, setting)
        for setting, some in chosen.items()
        for arm in arms
        if arm not in some
    )


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Attributes:
        name: The name of the module in ``distill_helpers.studies``, and of its results.
        question: What the study is to answer.
        arms: What is compared.
        settings: Amounts of data, or the like.
        grid: The cells that are tried for every arm alike.
        run: A function that turns a :class:`Run` into metrics.
        select: The validation metric that chooses the cell.
        claims: What is judged on the confirming seeds.
        higher_is_better: The direction of ``select``.
        threads: Threads of one run; as many runs go on at once as fit the cores.
        explore_seeds: Those of 0 to 2 that the grid is tried on; the cell is chosen by
            its mean over them. The first edition tried one, which is a matter of luck
            where scores leap.
        confirm_seeds: At least five that no exploring has seen.
        left_out: Pairs of arm and setting that are not run, say because an arm has
            no use for what the setting varies.
    """

    name: str
    question: str
    arms: tuple[str, ...]
    settings: tuple[str, ...]
    grid: tuple[Options, ...]
    run: Callable[[Run], dict[str, float]]
    select: str
    claims: tuple[Claim, ...]
    higher_is_better: bool = False
    threads: int = 1
    explore_seeds: tuple[int, ...] = EXPLORE_SEEDS[:1]
    confirm_seeds: tuple[int, ...] = CONFIRM_SEEDS
    left_out: tuple[tuple[str, str], ...] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """Arms with settings; setting first: neighbouring runs share their data."""
        every = [(arm, setting) for setting in self.settings for arm in self.arms]
        return [pair for pair in every if pair not in self.left_out]


def load_study(name: str) -> Study:
    """A study by name, such as ``"soft_labels"``; a declared one, too."""
    known = (*STUDIES, *DECLARED)
    if name not in known:
        raise ValueError(f"name={name!r} is not a study; there are: {known}")
    study: Study = importlib.import_module(f"distill_helpers.studies.{name}").STUDY
    return study
