"""Where the chunks of two models' rows begin, and which positions are compared.

For losses between tokenizers, taught in notebook 10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distill_helpers.losses.arguments import (
    IGNORE_INDEX,
    check_student,
    counted,
    item_count,
)
from distill_helpers.losses.blocks import Rows, by_blocks, token_log_probs
from distill_helpers.losses.targets import Hidden


def count_items(
    student: torch.Tensor | Hidden,
    labels: torch.Tensor,
    num_items: torch.Tensor | int | float | None,
) -> torch.Tensor | int | float:
    """What sums are divided by: ``num_items``, or the labels that count here."""
    check_student(student, labels)
    width = student.vocabulary if isinstance(student, Hidden) else student.shape[-1]
    return item_count(num_items, counted(labels, width, shift=True)[1])


def begins_of(chunks: torch.Tensor) -> torch.Tensor:
    """Where a chunk begins."""
    return (chunks >= 0) & (chunks != F.pad(chunks[:, :-1], (1, 0), value=-1))


def groups_of(chunks: torch.Tensor) -> torch.Tensor:
    """The number of each token's chunk among those of all rows; -1 for none."""
    numbers = begins_of(chunks).flatten().cumsum(0).view(chunks.shape) - 1
    return numbers.where(chunks >= 0, -1)


def pairs_of(
    labels: torch.Tensor,
    teacher: torch.Tensor | Hidden,
    teacher_ids: torch.Tensor | None,
    chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each chunk begins, in the student's rows and in the teacher's."""
    states = teacher.states if isinstance(teacher, Hidden) else teacher
    shapes = {"chunks": (chunks, labels.shape)}
    shapes["teacher_chunks"] = (teacher_chunks, states.shape[:-1])
    if teacher_ids is not None:
        shapes["teacher_ids"] = (teacher_ids, states.shape[:-1])
    for name, (given, wanted) in shapes.items():
        if given.shape != wanted:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, and there are "
                f"{tuple(wanted)} tokens; one number for each is needed"
            )
    ours, theirs = begins_of(chunks), begins_of(teacher_chunks)
    if not torch.equal(ours.sum(1), theirs.sum(1)):
        row = int((ours.sum(1) != theirs.sum(1)).nonzero()[0])
        raise ValueError(
            f"row {row} has {int(ours[row].sum())} chunks for the student and "
            f"{int(theirs[row].sum())} for the teacher; take both from one alignment "
            "(data.align_rows)"
        )
    return (
        ours.flatten().nonzero().squeeze(-1),
        theirs.flatten().nonzero().squeeze(-1),
    )


def compared_of(
    labels: torch.Tensor,
    teacher: torch.Tensor | Hidden,
    teacher_ids: torch.Tensor | None,
    chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's and the teacher's positions that predict a chunk's first token."""
    ours, theirs = pairs_of(labels, teacher, teacher_ids, chunks, teacher_chunks)
    counts = (labels.flatten()[ours] != IGNORE_INDEX) & (ours % labels.shape[1] > 0)
    counts &= theirs % teacher_chunks.shape[1] > 0
    return ours[counts] - 1, theirs[counts] - 1


def chunk_probabilities(
    teacher: torch.Tensor | Hidden,
    teacher_ids: torch.Tensor,
    teacher_chunks: torch.Tensor,
    begins: torch.Tensor,
) -> torch.Tensor:
    """The teacher's probability of each of the chunks that begin at some places."""
    group = groups_of(teacher_chunks).flatten()
    # Which of these a token belongs to; the last place is that of number -1.
    which = group.new_full((len(group) + 1,), -1)
    which[group[begins]] = torch.arange(len(begins), device=group.device)
    which = which[group]
    places = (which >= 0).nonzero().squeeze(-1)
    found = by_blocks(
        token_log_probs,
        [Rows.of(teacher, places - 1)],
        teacher_ids.flatten()[places],
    )
    return found.new_zeros(len(begins)).index_add(0, which[places], found).exp()
