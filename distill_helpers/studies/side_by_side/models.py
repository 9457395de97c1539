"""The models beside the students: where they begin, and what is used as it is."""

from __future__ import annotations

import copy
import random
from functools import lru_cache
from typing import TYPE_CHECKING

from distill_helpers.evaluation import evaluate
from distill_helpers.models import build_student, parameter_count, prune_layers
from distill_helpers.studies.shared_task import BATCH_SIZE, share_right, worked
from distill_helpers.studies.side_by_side import ways
from distill_helpers.studies.tiny import columns, train_tiny
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.tasks.three_sums import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@lru_cache
def base_student(steps: int = ways.BASE_STEPS) -> PreTrainedModel:
    """A student that has learned to add numbers up to 39; where every arm begins."""
    return pretrained((2, 96), ways.BASE_SEED, steps)


@lru_cache
def base_partner(steps: int = ways.BASE_STEPS) -> PreTrainedModel:
    """The same of the teacher's size; nobody has taught it the task either."""
    return pretrained((4, 128), ways.BASE_SEED + 1000, steps)


def pretrained(
    shape: tuple[int, int], seed: int, steps: int = ways.BASE_STEPS
) -> PreTrainedModel:
    """A model from scratch that has learned to add numbers up to 39.

    Args:
        shape: Layers and width.
        seed: Decides weights, problems and order.
        steps: How long it is trained.
    """
    tokenizer = load_tiny_teacher("sums").tokenizer
    layers, width = shape
    trained = train_tiny(
        build_student(tokenizer, layers=layers, width=width, seed=seed),
        worked(easy_problems(ways.BASE_PROBLEMS, seed), tokenizer),
        tokenizer,
        None,
        steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=ways.RATE,
        adam_beta2=ways.ADAM_BETA2,
        seed=seed,
    )
    model: PreTrainedModel = trained.model
    return model


def easy_problems(count: int, seed: int) -> list[Problem]:
    """Sums of three numbers up to 39, none of the frozen test."""
    taken = frozenset(three_sums.test_problems())
    draw = random.Random(seed)
    found: list[Problem] = []
    while len(found) < count:
        problem = Problem(
            *(draw.randint(three_sums.SMALLEST, ways.EASY) for _ in range(3))
        )
        if problem not in taken:
            found.append(problem)
    return found


def in_few_bits(
    model: PreTrainedModel, bits: int = 4, group: int = 32
) -> PreTrainedModel:
    """A copy whose matrices are rounded: to 2^bits levels in every group of a row.

    The rounded weights are held in fp32: this shows what rounding does to the
    answers, not to the speed.

    Args:
        model: The model to round; left untouched.
        bits: Bits of a weight.
        group: Neighbours that share a smallest value and a step.
    """
    rounded = copy.deepcopy(model)
    for weight in rounded.parameters():
        if weight.dim() != 2:
            continue
        grouped = weight.data.view(-1, group)
        low, high = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
        weight.data.copy_(
            (((grouped - low) / step).round() * step + low).view_as(weight)
        )
    return rounded


def finished_model(arm: str) -> PreTrainedModel:
    """A model that is used as it is."""
    teacher = load_tiny_teacher("sums").model
    if arm == ways.FOUR_BITS:
        return in_few_bits(teacher)
    if arm == ways.HALF:
        return prune_layers(teacher, ways.KEPT)
    return base_student() if arm == ways.BASE else teacher


def model_bytes(arm: str, model: PreTrainedModel) -> float:
    """Weights at 16 bits; in 4 bits, a group of 32 shares two numbers of 16 bits."""
    return parameter_count(model) * (
        (4 + 2 * 16 / 32) / 8 if arm == ways.FOUR_BITS else 2
    )


def quality(model: PreTrainedModel, count: int | None = None) -> dict[str, float]:
    """On the frozen test: right results, and how the worked answers are predicted.

    Args:
        model: Any model that reads the sums' tokens.
        count: How many problems, the first ones; default: all.
    """
    teacher, tokenizer = load_tiny_teacher("sums")
    test = three_sums.test_problems()[:count]
    found = evaluate(
        model, worked(list(test), tokenizer), tokenizer, teacher=teacher, batch_size=250
    )
    return {
        "exact_match": 100 * share_right(model, tokenizer, test),
        **columns(found, "nll", "ece", "kl_to_teacher", "agreement"),
    }
