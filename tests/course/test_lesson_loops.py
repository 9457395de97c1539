"""What stands on a lesson's page trains as the package does: step by step, the same."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from course import load_course
from datasets import Dataset
from lesson_source import read_cells, tags
from torch.utils.data import SequentialSampler
from transformers import TrainingArguments

from distill_helpers.losses import token_divergence
from distill_helpers.models import build_student
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import HardLabelTrainer, SoftLabelTrainer

ROOT = Path(__file__).resolve().parents[2]
STEPS, ROWS, LENGTH = 20, 16, 24


def cell_with(number: str, words: str, *, tag: str | None = None) -> str:
    """The code of the one cell of a lesson that holds some words."""
    course = load_course(ROOT)
    (lesson,) = course.select([number])
    found = [
        cell.source
        for cell in read_cells(course, lesson)
        if cell.cell_type == "code"
        and words in cell.source
        and (tag is None or tag in tags(cell))
    ]
    (source,) = found
    return source


@pytest.fixture(scope="module")
def prose():
    return load_tiny_teacher("prose")


@pytest.fixture(scope="module")
def text(prose):
    generator = torch.Generator().manual_seed(0)
    size = (STEPS * ROWS, LENGTH)
    return torch.randint(len(prose.tokenizer), size, generator=generator)


def beginner(tokenizer):
    return build_student(tokenizer, layers=1, width=32, seed=0)


def trainer_losses(kind, prose, rows, folder, arguments=None, **options):
    """The package's losses on the same rows in the same order, at the same rate."""

    class InOrder(kind):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    student = beginner(prose.tokenizer)
    trainer = InOrder(
        student,
        tokenizer=prose.tokenizer,
        train_dataset=rows,
        args=TrainingArguments(
            **{
                "output_dir": str(folder),
                "max_steps": STEPS,
                "per_device_train_batch_size": ROWS,
                "learning_rate": 8e-3,
                "lr_scheduler_type": "constant",
                "weight_decay": 0.0,
                "max_grad_norm": 0.0,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "use_cpu": True,
                "disable_tqdm": True,
                "remove_unused_columns": False,
                **(arguments or {}),
            }
        ),
        **options,
    )
    trainer.train()
    return [one["loss"] for one in trainer.state.log_history if "loss" in one]


def whole(text):
    return Dataset.from_dict({"input_ids": text.tolist()})


def page_losses(names, loss_name, run):
    """The losses that a page's loop meets while it runs."""
    real, seen = names[loss_name], []

    def watched(*given):
        loss = real(*given)
        seen.append(float(loss.detach()))
        return loss

    names[loss_name] = watched
    run()
    return seen


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_the_loop_of_lesson_02_is_the_soft_label_trainer(
    alpha, temperature, prose, text, tmp_path
):
    names = {"torch": torch, "F": torch.nn.functional, "teacher": prose.model}
    loss = cell_with("02", "def my_loss(", tag="solution")
    exec(loss[: loss.index("loss_of = ")], names)
    names["loss_of"] = names["my_loss"]
    exec(cell_with("02", "def my_loop("), names)
    student = beginner(prose.tokenizer)
    options = {"alpha": alpha, "temperature": temperature}
    page = page_losses(
        names, "loss_of", lambda: names["my_loop"](student, text, **options)
    )
    package = trainer_losses(
        SoftLabelTrainer, prose, whole(text), tmp_path, teacher=prose.model, **options
    )
    assert len(page) == STEPS
    assert page == pytest.approx(package, rel=1e-5)
    assert page[-1] < page[0]


def test_the_text_loop_of_lesson_00_is_the_hard_label_trainer(prose, text, tmp_path):
    names = {"torch": torch}
    for words in ("def optimizer_of(", "def learn_text("):
        exec(cell_with("00", words), names)
    page = page_losses(
        names,
        "text_loss",
        lambda: names["learn_text"](beginner(prose.tokenizer), text),
    )
    package = trainer_losses(HardLabelTrainer, prose, whole(text), tmp_path / "text")
    assert page == pytest.approx(package, rel=1e-5)


# Rows of different lengths whose prompts are masked, as lessons 05 and 06 make them.
@pytest.fixture(scope="module")
def answered(text):
    rows = []
    for place, ids in enumerate(text):
        ids = ids[: LENGTH - place % 7]
        labels = ids.clone()
        labels[: 3 + place % 5] = -100
        rows.append((ids, labels))
    return rows


def as_dataset(rows):
    return Dataset.from_list(
        [{"input_ids": i.tolist(), "labels": y.tolist()} for i, y in rows]
    )


COSINE = {"lr_scheduler_type": "cosine", "warmup_steps": STEPS // 20 + 1}


def test_the_loop_of_lesson_05_is_the_hard_label_trainer(prose, answered, tmp_path):
    losses = types.SimpleNamespace(cross_entropy=torch.nn.functional.cross_entropy)
    end = prose.tokenizer.eos_token_id
    names = {"torch": torch, "F": losses, "end": end}
    exec(cell_with("05", "def fine_tune("), names)
    page = page_losses(
        vars(losses),
        "cross_entropy",
        lambda: names["fine_tune"](
            beginner(prose.tokenizer), answered, STEPS, 8e-3, ROWS
        ),
    )
    options = {**COSINE, "adam_beta2": 0.95}
    package = trainer_losses(
        *(HardLabelTrainer, prose, as_dataset(answered), tmp_path, options)
    )
    assert len(page) == STEPS
    assert page == pytest.approx(package, rel=1e-5)
    assert page[-1] < page[0]


def test_the_loop_of_lesson_06_is_the_hard_label_trainer(prose, answered, tmp_path):
    losses = types.SimpleNamespace(cross_entropy=torch.nn.functional.cross_entropy)
    names = {"torch": torch, "F": losses}
    exec(cell_with("06", "def learn_traces("), names)
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([i for i, _ in answered], batch_first=True)
    labels = pad([y for _, y in answered], batch_first=True, padding_value=-100)
    page = page_losses(
        vars(losses),
        "cross_entropy",
        lambda: names["learn_traces"](
            beginner(prose.tokenizer), ids, labels, STEPS, 8e-3, ROWS
        ),
    )
    options = {**COSINE, "adam_beta2": 0.99}
    package = trainer_losses(
        *(HardLabelTrainer, prose, as_dataset(answered), tmp_path, options)
    )
    assert page == pytest.approx(package, rel=1e-5)


def test_the_soft_loss_of_lesson_00_is_forward_kl_but_for_the_teacher_s_entropy():
    names = {"torch": torch}
    exec(cell_with("00", "def learn_soft("), names)
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    student.requires_grad_()
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    loss = names["soft_loss"](student, teacher) - entropy
    kl = token_divergence(student, teacher).mean()
    assert torch.isclose(loss, kl)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(kl, student)
    torch.testing.assert_close(ours, theirs)
    assert torch.isclose(names["soft_loss"](teacher, teacher), entropy)


def test_the_teacher_of_lesson_00_s_co_distillation_learns_as_if_alone(prose, text):
    """Nothing flows back from the student, who does get the teacher's word."""
    names = {"torch": torch}
    for words in ("def optimizer_of(", "def learn_text(", "def learn_soft("):
        exec(cell_with("00", words), names)
    exec(cell_with("00", "def co_distil("), names)
    some = text[: 4 * ROWS]

    def grown(seed):
        return build_student(prose.tokenizer, layers=1, width=32, seed=seed)

    alone, student, teacher = grown(1), grown(0), grown(1)
    names["learn_text"](alone, some)
    names["co_distil"](student, teacher, some)
    for one, other in zip(alone.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    without = names["learn_text"](grown(0), some)
    pairs = zip(student.parameters(), without.parameters(), strict=True)
    assert not all(torch.allclose(one, other) for one, other in pairs)
