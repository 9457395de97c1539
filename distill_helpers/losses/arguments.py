"""What the losses refuse, and how they count: one place for every check.

Taught in notebook 02 (masks, shift, what the sum is divided by).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from distill_helpers.losses.targets import Hidden, SparseTargets

IGNORE_INDEX = -100
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


def counted(
    labels: torch.Tensor, vocabulary: int, *, shift: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Say which positions count, and which token each of them has to predict.

    Args:
        labels: ``[..., positions]`` token ids, of any whole-number dtype (NumPy on
            Windows gives int32); ``-100`` does not count.
        vocabulary: Number of outputs of the head.
        shift: Whether a position predicts the next label, rather than its own.

    Returns:
        The index of each position that counts in the flattened input ``[items]``, and
        the token that it has to predict ``[items]``.

    Raises:
        ValueError: For labels that are no whole numbers, or that no output stands for.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels has the dtype {labels.dtype}; it must hold token ids (torch.long)"
        )
    if shift:
        labels = F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)
    flat = labels.flatten()
    rows = (flat != IGNORE_INDEX).nonzero().squeeze(-1)
    targets = flat.index_select(0, rows).long()
    if targets.numel():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"labels holds the id {low if low < 0 else high}, outside the "
                f"vocabulary of {vocabulary}; mask positions with "
                f"{IGNORE_INDEX} and check that tokenizer and model belong together"
            )
    return rows, targets


def item_count(
    num_items: torch.Tensor | int | float | None, targets: torch.Tensor
) -> torch.Tensor | int | float:
    """Return what the sums over ``targets`` are divided by.

    Raises:
        ValueError: For a number that is not positive.
    """
    if num_items is None:
        # No item at all: 0 / 1 is a zero that keeps the graph.
        return max(targets.numel(), 1)
    if torch.is_tensor(num_items):
        return num_items.clamp(min=1)  # none counts in the whole step: 0 / 1
    if num_items <= 0:
        raise ValueError(
            f"num_items={num_items} must be positive: pass the number of positions "
            "that count in the whole batch, or None"
        )
    return num_items


def check_options(
    temperature: float, alpha: float, divergence: str, beta: float
) -> None:
    """Refuse options of a soft-label loss that are out of range."""
    check_temperature(temperature)
    _check_unit_interval("alpha", alpha)
    check_divergence("divergence", divergence, beta)


def check_divergence(name: str, kind: str, beta: float) -> None:
    """Refuse a divergence that does not exist, or a beta outside [0, 1]."""
    if kind not in DIVERGENCES:
        raise ValueError(
            f"{name}={kind!r} is not a divergence; choose one of "
            f"{', '.join(DIVERGENCES)}"
        )
    _check_unit_interval("beta", beta)


def without_ends(kind: str, beta: float) -> str:
    """Return the divergence by its own name: a JSD at either end of beta is a KL."""
    if kind == "jsd" and beta in (0, 1):
        return "reverse_kl" if beta else "forward_kl"
    return kind


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is no positive number."""
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} must be a positive number; 1 leaves the "
            "distributions as they are, 2 to 4 is usual for soft labels"
        )


def _check_unit_interval(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1")


def check_student(student: torch.Tensor | Hidden, labels: torch.Tensor) -> None:
    """Refuse a student that has not one label for each position."""
    if isinstance(student, Hidden):
        _check_hidden("student", student, labels)
    elif labels.shape != student.shape[:-1]:
        raise ValueError(
            f"student has shape {tuple(student.shape)} and labels "
            f"{tuple(labels.shape)}: labels needs one id per position of the logits, "
            f"{tuple(student.shape[:-1])}"
        )


def check_teacher(
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden | SparseTargets,
    labels: torch.Tensor,
    *,
    temperature: float,
    divergence: str,
) -> None:
    """Refuse a teacher that does not fit the student, the labels or the options."""
    if isinstance(teacher, SparseTargets):
        _check_sparse(teacher, labels, temperature, divergence)
    elif isinstance(teacher, Hidden):
        _check_hidden("teacher", teacher, labels)
    elif isinstance(student, torch.Tensor):
        check_logits(student, teacher)
    elif teacher.shape[:-1] != labels.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)} and labels "
            f"{tuple(labels.shape)}: a tensor must hold the teacher's logits for each "
            "of the labels; pass hidden states as Hidden(states, head)"
        )


def check_logits(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Refuse two tensors of logits that differ in shape."""
    if student.dim() < 1 or student.shape != teacher.shape:
        hint = ""
        if student.shape[:-1] == teacher.shape[:-1]:
            hint = (
                "; vocabularies differ: if the tokenizers are equal and only the "
                "heads are padded, cut both to the shared tokens "
                "(models.shared_vocabulary)"
            )
        raise ValueError(
            f"student has shape {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}: logits must have the same shape{hint}"
        )


def _check_hidden(who: str, model: Hidden, labels: torch.Tensor) -> None:
    states, weight = model.states, model.head.weight
    if states.dim() < 2 or states.shape[:-1] != labels.shape:
        raise ValueError(
            f"{who}.states has shape {tuple(states.shape)} and labels "
            f"{tuple(labels.shape)}: there must be one hidden state per label"
        )
    if weight.dim() != 2 or weight.shape[1] != states.shape[-1]:
        raise ValueError(
            f"{who}.head has shape {tuple(weight.shape)} and {who}.states "
            f"{tuple(states.shape)}: the head must be [vocabulary, "
            f"{states.shape[-1]}]"
        )


def _check_sparse(
    targets: SparseTargets, labels: torch.Tensor, temperature: float, divergence: str
) -> None:
    if len(targets.ids) != labels.numel():
        raise ValueError(
            f"teacher holds targets for {len(targets.ids)} positions, and labels has "
            f"shape {tuple(labels.shape)}: there must be one target per label"
        )
    if divergence != "forward_kl":
        raise ValueError(
            f"divergence={divergence!r} needs the teacher's whole distribution; from "
            "a cache only 'forward_kl' can be had"
        )
    if temperature != targets.temperature:
        raise ValueError(
            f"temperature={temperature}, but the cached soft labels were taken at "
            f"{targets.temperature}; use that, or write the cache again"
        )


def refuse_bad_value(
    loss: torch.Tensor,
    rows: torch.Tensor,
    student: torch.Tensor | Hidden,
    teacher: torch.Tensor | Hidden | SparseTargets | None = None,
) -> None:
    """Refuse a loss that is no number, and name the likely cause.

    Args:
        loss: The scalar.
        rows: Positions that count, in the flattened input.
        student: What the loss was computed from.
        teacher: What it was compared with; ``None`` if there was none.

    Raises:
        ValueError: If the loss is NaN or infinite.
    """
    if math.isfinite(loss.item()):
        return
    for name, given in (("student", student), ("teacher", teacher)):
        values = given.states if isinstance(given, Hidden) else given
        if not isinstance(values, torch.Tensor):
            continue
        if bool(values.flatten(0, -2).index_select(0, rows).isnan().any()):
            where = ".states" if isinstance(given, Hidden) else ""
            raise ValueError(
                f"{name}{where} holds NaN at positions that count; look for a "
                "diverged model, an fp16 overflow, or a row whose every logit is -inf"
            )
    raise ValueError(
        f"the loss is {loss.item()}: one model gives probability zero (a logit of "
        "-inf or an fp16 overflow) to a token that the other, or the labels, need, or "
        "a head holds NaN; rule tokens out in both models or in neither"
    )
