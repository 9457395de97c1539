"""The ward of the bug clinic: rows, an exam, short trainings, and how they are drawn.

Every run starts from the same weights and reads the same rows, so that two runs differ
in their loss alone. Used in notebook 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from datasets import Dataset

from distill_helpers.course.bugs import plain_loss
from distill_helpers.course.mutants import LossFunction
from distill_helpers.course.plots import STUDENT, TEACHER
from distill_helpers.data import collator_for
from distill_helpers.losses import IGNORE_INDEX
from distill_helpers.models import build_student
from distill_helpers.studies.shared_task import worked
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tensor = torch.Tensor
Batch = Mapping[str, Tensor]

ROWS = 16  # in a batch
LENGTH = 36  # of a padded row, in tokens
EXAM = 48  # problems
LOOKS: dict[str, dict[str, Any]] = {
    # Wide and pale, so that a curve on top of it leaves it to be seen.
    "healthy": {"color": TEACHER, "marker": "o", "lw": 4, "alpha": 0.5},
    "patient": {"color": STUDENT, "marker": "s", "ls": "--"},
    "other": {"color": "0.45", "marker": "D", "ls": ":"},
}


@dataclass(frozen=True)
class Checkup:
    """One short training.

    Attributes:
        student: The student afterwards.
        reported: ``(step, loss)`` of every step, as its own loss says.
        real: ``(step, KL)``: KL(teacher ‖ student) on the exam in nats per token, which
            no loss can touch.
    """

    student: PreTrainedModel
    reported: tuple[tuple[int, float], ...]
    real: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Ward:
    """What all runs have in common.

    Attributes:
        teacher: Adds three numbers, in steps that are written out.
        tokenizer: The one of teacher and student.
        rows: Worked sums, cut off after 2 to 25 tokens of their answer.
        lessons: Batches of these rows, each with the teacher's logits.
        exam: The same of whole sums that no run learns from.
    """

    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    lessons: tuple[tuple[Batch, Tensor], ...]
    exam: tuple[tuple[Batch, Tensor], ...]

    def fresh_student(self) -> PreTrainedModel:
        """Two layers, 64 wide; the same weights every time."""
        return build_student(self.tokenizer, layers=2, width=64, seed=0)

    def ask(self, rows: Dataset) -> tuple[tuple[Batch, Tensor], ...]:
        """Batches of sixteen rows, and the teacher's logits for each."""
        return _ask(self.teacher, self.tokenizer, rows)

    @torch.no_grad()
    def distance(self, student: PreTrainedModel) -> float:
        """KL(teacher ‖ student) on the exam, nats per token."""
        total = count = 0.0
        for batch, theirs in self.exam:
            labels = batch["labels"]
            here = int((labels[:, 1:] != IGNORE_INDEX).sum())
            loss = plain_loss(read(student, batch), theirs, labels, 1.0, 1.0)
            total, count = total + here * float(loss), count + here
        return total / count

    def train(
        self,
        loss: LossFunction,
        *,
        T: float = 1.0,
        alpha: float = 1.0,
        on: Iterable[tuple[Batch, Tensor]] | None = None,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        lr: float = 1e-2,
    ) -> Checkup:
        """Train a fresh student with a loss: the loop of notebook 02.

        Args:
            loss: ``fn(student_logits, teacher_logits, labels, temperature, alpha)``.
            T: Temperature.
            alpha: Weight of the soft term.
            on: Batches with the teacher's logits; default: ``lessons``.
            optimizer: A class of ``torch.optim``.
            lr: Learning rate.
        """
        student = self.fresh_student()
        update = optimizer(student.parameters(), lr=lr)  # type: ignore[call-arg]
        lessons = list(self.lessons if on is None else on)
        looks = max(1, len(lessons) // 4)
        reported, real = [], []
        for step, (batch, theirs) in enumerate(lessons):
            if step % looks == 0:
                real.append((step, self.distance(student)))
            value = loss(read(student, batch), theirs, batch["labels"], T, alpha)
            update.zero_grad()
            value.backward()
            update.step()
            reported.append((step, value.item()))
        real.append((len(lessons), self.distance(student)))
        return Checkup(student, tuple(reported), tuple(real))


def open_ward(steps: int) -> Ward:
    """Prepare rows for so many steps, and the exam.

    Args:
        steps: How many batches a run reads, each once.
    """
    teacher, tokenizer = load_tiny_teacher("sums")
    whole = worked(three_sums.problems(steps * ROWS, seed=0), tokenizer)
    rows = Dataset.from_list([_cut_off(row, i) for i, row in enumerate(whole)])
    exam = worked(three_sums.problems(EXAM, seed=777), tokenizer)
    return Ward(
        teacher,
        tokenizer,
        rows,
        lessons=_ask(teacher, tokenizer, rows),
        exam=_ask(teacher, tokenizer, exam),
    )


def read(model: Any, batch: Batch) -> Tensor:
    """A model's logits for a batch, ``[rows, positions, vocabulary]``."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits


def pad_to(batch: Batch, length: int, pad_token_id: int) -> dict[str, Tensor]:
    """The batch with more padding on the right.

    Args:
        batch: Token ids, attention mask and labels ``[rows, positions]``.
        length: Positions afterwards.
        pad_token_id: What token ids are filled with.
    """
    fill = {"labels": IGNORE_INDEX, "attention_mask": 0}
    extra = (0, length - batch["labels"].shape[1])
    return {
        name: F.pad(column, extra, value=fill.get(name, pad_token_id))
        for name, column in batch.items()
    }


def draw(
    ax: Axes, points: Iterable[tuple[int, float]], label: str, look: str = "patient"
) -> None:
    """Draw a curve in the ward's colours.

    Args:
        ax: The axes to draw into.
        points: ``(step, value)``, as in a :class:`Checkup`.
        label: Its name in the legend.
        look: ``"healthy"``, ``"patient"`` or ``"other"``.
    """
    x, y = zip(*points, strict=True)
    every = max(1, len(x) // 6)
    ax.plot(x, y, label=label, ms=4, markevery=every, **LOOKS[look])
    ax.set_xlabel("step")


def chart(runs: Mapping[str, tuple[Checkup, str]]) -> None:
    """Show what runs report on the left, and what is real on the right.

    Args:
        runs: Label to a run and its look, as in :func:`draw`.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, 2, figsize=(8, 3))
    for label, (run, look) in runs.items():
        draw(axes[0], run.reported, label, look)
        draw(axes[1], run.real, label, look)
    axes[0].set_title("reported: the run's own loss")
    axes[1].set_title("real: KL to the teacher, new problems")
    axes[0].set_ylabel("nats per token")
    axes[1].legend()
    plt.show()


def _cut_off(row: dict[str, list[int]], index: int) -> dict[str, list[int]]:
    """The row up to a place in its answer; each row has its own."""
    prompt = row["labels"].count(IGNORE_INDEX)
    end = prompt + 2 + 7 * index % 24
    return {name: ids[:end] for name, ids in row.items()}


def _ask(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset
) -> tuple[tuple[Batch, Tensor], ...]:
    collate, listed = collator_for(tokenizer), rows.to_list()
    pad: Any = tokenizer.pad_token_id
    batches = [
        pad_to(collate(listed[start : start + ROWS]), LENGTH, pad)
        for start in range(0, len(listed), ROWS)
    ]
    with torch.no_grad():
        return tuple((batch, read(teacher, batch)) for batch in batches)
