"""The shared task once more, from models that have begun to add.

From scratch, a student learns to carry all of a sudden, one seed early and the next one
late: five seeds scatter by twenty points, and neither ``shared_task`` nor
``codistilled_sums`` could decide its claims. Here every model starts from a *base* that
adds numbers up to 39 already; the task goes up to 99. There are three bases of each
size, and a seed draws the problems, the order, and which of them it begins with. Beside
exact match, which leaps, stands the NLL of the right answers, which does not.

"labels" learns worked answers. "soft labels" learns on them what the teacher that is
right four times in five would write next. The others are those of ``codistillation``: a
larger partner that learns along, one that learns first, a peer from another base. In
the setting of equal operations, labels may spend what the co-distilled pair spends.
What comes out holds for these three bases of each size. Taught in notebooks 06 and 07.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from distill_helpers.evaluation import evaluate
from distill_helpers.studies.codistillation import (
    AFTER,
    ALONE,
    MIX,
    PEERS,
    Cost,
    Grown,
    Task,
    count_cost,
    grow,
    train_on,
)
from distill_helpers.studies.codistilled_sums import sums_task
from distill_helpers.studies.shared_task import load_task, score, worked
from distill_helpers.studies.side_by_side.models import pretrained
from distill_helpers.studies.study import (
    EXPLORE_SEEDS,
    Claim,
    Run,
    Study,
    all_but,
    cells,
)
from distill_helpers.tasks import three_sums
from distill_helpers.trainers import SoftLabelTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 600
BASES = 3
LABELS, SOFT = "labels", "soft labels"
TOGETHER = (MIX, PEERS, AFTER)
ARMS = (LABELS, SOFT, *TOGETHER)
SOME, MANY, EQUAL = "2000", "8000", "2000, equal operations"
# Not every arm is run in every setting: time.
CHOSEN = {SOME: ARMS, MANY: (LABELS, SOFT), EQUAL: (LABELS,)}


@lru_cache
def _base(shape: tuple[int, int], seed: int) -> PreTrainedModel:
    return pretrained(shape, seed)


@dataclass(frozen=True)
class BegunTask(Task):
    """A task whose models begin as copies of the bases."""

    def student(self, seed: int) -> PreTrainedModel:
        """2 layers, 96 wide; the seed says which base."""
        return copy.deepcopy(_base((2, 96), seed % BASES))

    def teacher(self, seed: int) -> PreTrainedModel:
        """A larger model; the seed says which base."""
        return copy.deepcopy(_base(self.teacher_shape, 1000 + seed % BASES))


def begun_task(setting: str, seed: int, steps: int = STEPS) -> BegunTask:
    """The task of ``codistilled_sums``, whose models begin otherwise."""
    return BegunTask(**vars(sums_task(setting, seed, steps)))


@lru_cache
def _cost() -> Cost:
    return count_cost(begun_task(SOME, 0))


def _run(run: Run) -> dict[str, float]:
    task = begun_task(run.setting, run.seed)
    cost, steps = _cost(), STEPS
    if run.setting == EQUAL:
        steps = cost.steps(ALONE, cost.of(MIX, STEPS, 0))
    tflops = cost.of(ALONE if run.arm in (LABELS, SOFT) else run.arm, steps, 0)
    if run.arm == SOFT:
        # The packaged teacher has the partner's shape.
        tflops += steps * cost.labelling
        trainer = partial(SoftLabelTrainer, teacher=load_task().remembering)
        trained = train_on(
            task, task.student(run.seed), trainer=trainer, steps=steps, **run.recipe
        )
        grown = Grown(trained.model, None, None, trained.validation, trained.log)
    else:
        arm = ALONE if run.arm == LABELS else run.arm
        grown = grow(task, arm, steps=steps, **run.recipe)
    partner = float("nan")
    if grown.partner is not None:
        partner = score(grown.partner, task.tokenizer)
    test = worked(list(three_sums.test_problems()), task.tokenizer)
    found = evaluate(grown.student, test, task.tokenizer, batch_size=250)
    return {
        "validation_nll": grown.validation_loss,
        "nll": found.nll,
        "exact_match": score(grown.student, task.tokenizer),
        "partner_exact_match": partner,
        "steps": steps,
        "tflops": tflops,
        "test_problems": three_sums.TEST_SIZE,
    }


_claim = partial(
    Claim,
    metric="exact_match",
    baseline=LABELS,
    setting=SOME,
    margin=1.0,
    higher_is_better=True,
)
_WHICH = "the teacher is wrong once in five times, the labels never: who is ahead?"
STUDY = Study(
    name="sums_from_bases",
    question="What do soft labels and co-distillation do for students that have begun?",
    arms=ARMS,
    settings=(SOME, MANY, EQUAL),
    grid=cells(2e-3, 4e-3, 8e-3),
    run=_run,
    select="validation_nll",
    explore_seeds=EXPLORE_SEEDS,
    confirm_seeds=tuple(range(800, 812)),
    left_out=all_but(CHOSEN, ARMS),
    # Declared after looking at labels and soft labels with 2,000 sums on seeds 0 and 1:
    # at 600 steps, labels were ahead by both metrics.
    claims=(
        _claim(
            "soft_some",
            "On 2,000 worked sums, soft labels beat the right answers alone",
            arm=SOFT,
            margin=0.0,
            why_zero=_WHICH,
        ),
        _claim(
            "soft_many",
            "On 8,000 worked sums, they do",
            arm=SOFT,
            setting=MANY,
            margin=0.0,
            why_zero=_WHICH,
        ),
        _claim(
            "labels_predict",
            "On 2,000 worked sums, a student of the right answers predicts right "
            "answers better than one of soft labels",
            metric="nll",
            arm=LABELS,
            baseline=SOFT,
            margin=0.005,
            higher_is_better=False,
        ),
        _claim("begun_pays", "A co-distilled student beats one alone", arm=MIX),
        _claim("begun_peers", "A peer of its own size helps a student, too", arm=PEERS),
        _claim(
            "begun_after",
            "Distilling from the partner when it is finished is better still",
            arm=AFTER,
            baseline=MIX,
        ),
        _claim(
            "begun_operations",
            "For the operations of the pair, a student alone comes further",
            arm=LABELS,
            setting=EQUAL,
            baseline=MIX,
            baseline_setting=SOME,
            margin=5.0,
        ),
    ),
)
