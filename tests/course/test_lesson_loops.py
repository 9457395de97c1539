"""What stands on a lesson's page trains as the package does: step by step, the same."""

from __future__ import annotations

import itertools
import math
import types
from pathlib import Path

import pytest
import torch
from course import load_course
from datasets import Dataset
from lesson_source import read_cells, tags
from tiny_models import TEXTS, byte_level_bpe
from torch.utils.data import SequentialSampler
from transformers import TrainingArguments

from distill_helpers.course import checks
from distill_helpers.data import add_teacher_prompts, align_tokenizers, join_row
from distill_helpers.losses import token_divergence
from distill_helpers.machine import progress_bar
from distill_helpers.models import (
    AdaptersOff,
    Loaded,
    adapters_off,
    add_adapters,
    build_student,
)
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import (
    CoDistillationTrainer,
    HardLabelTrainer,
    MixSchedule,
    OnPolicyTrainer,
    SoftLabelTrainer,
)

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

    student = beginner(prose.tokenizer)
    history = trainer_history(kind, student, prose, rows, folder, arguments, **options)
    return [one["loss"] for one in history]


def trainer_history(kind, models, prose, rows, folder, arguments=None, **options):
    """What a trainer of the package logs at every step."""

    class InOrder(kind):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    trainer = InOrder(
        models,
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
    return [one for one in trainer.state.log_history if "loss" in one]


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
    names = {
        "progress_bar": progress_bar,
        "torch": torch,
        "F": torch.nn.functional,
        "teacher": prose.model,
    }
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
    names = {"progress_bar": progress_bar, "torch": torch}
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
    names = {"progress_bar": progress_bar, "torch": torch, "F": losses, "end": end}
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
    names = {"progress_bar": progress_bar, "torch": torch, "F": losses}
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
    names = {"progress_bar": progress_bar, "torch": torch}
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
    names = {"progress_bar": progress_bar, "torch": torch}
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


def loop_of_lesson_07():
    """The page's loop with the page's loss."""
    names = {"progress_bar": progress_bar, "torch": torch, "F": torch.nn.functional}
    exec(cell_with("07", "def text_ce("), names)
    for words, last in (("def joint_loss(", "joint = "), ("def co_distil(", "train_")):
        solution = cell_with("07", words, tag="solution")
        exec(solution[solution.index("def ") : solution.index(f"\n{last}")], names)
    names["joint"] = names["joint_loss"]
    return names["co_distil"]


@pytest.mark.parametrize(
    "schedule",
    [MixSchedule(0.0), MixSchedule(1.0), MixSchedule(0.7, warm_up=0.25, ramp=0.5)],
    ids=["text", "teacher", "ramp"],
)
def test_the_loop_of_lesson_07_is_the_co_distillation_trainer(
    schedule, prose, text, tmp_path
):
    page_loop = loop_of_lesson_07()

    def pair():
        return {
            "teacher": build_student(prose.tokenizer, layers=2, width=48, seed=1),
            "student": beginner(prose.tokenizer),
        }

    history = trainer_history(
        CoDistillationTrainer,
        *(pair(), prose, whole(text), tmp_path),
        {"adam_beta2": 0.999},
        teacher="teacher",
        schedule=schedule,
    )
    # The lesson goes on with the second where the learner has none yet.
    for loop in (page_loop, checks.co_distil(None, fallback=True)):
        page = loop(*pair().values(), text.split(ROWS), schedule.weight, 8e-3)
        assert len(page) == STEPS
        for place, name in enumerate(("teacher", "student")):
            package = [entry[f"{name}_hard"] for entry in history]
            assert [one[place] for one in page] == pytest.approx(package, rel=1e-5)


def test_the_teacher_of_lesson_07_learns_as_if_alone(prose, text):
    lone = beginner(prose.tokenizer)
    optimizer = torch.optim.Adam(lone.parameters(), 8e-3)
    for ids in text.split(ROWS):
        logits, labels = lone(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    teacher = beginner(prose.tokenizer)
    student = build_student(prose.tokenizer, layers=1, width=16, seed=3)
    loop_of_lesson_07()(teacher, student, text.split(ROWS), lambda _: 0.8, 8e-3)
    for one, other in zip(lone.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_the_step_of_lesson_08_is_the_on_policy_trainer(
    divergence, prose, text, tmp_path
):
    """The page reads what the trainer's student wrote, and learns the same from it."""
    texts = []

    class Recorded(OnPolicyTrainer):
        def get_batch_samples(self, *given):
            batches, items = super().get_batch_samples(*given)
            (batch,) = batches
            texts.append((batch["input_ids"], batch["labels"] != -100))
            return batches, items

    prompts = [
        join_row(row[: 4 + place % 3].tolist(), []) for place, row in enumerate(text)
    ]
    history = trainer_history(
        Recorded,
        *(beginner(prose.tokenizer), prose, Dataset.from_list(prompts), tmp_path),
        {"adam_beta2": 0.999},
        teacher=prose.model,
        divergence=divergence,
        max_new_tokens=8,
    )
    names = {"progress_bar": progress_bar, "torch": torch}
    exec(cell_with("08", "def forward_kl("), names)
    solution = cell_with("08", "def on_policy_step(", tag="solution")
    exec(solution[: solution.index("\nstep = ")], names)
    assert len(texts) == STEPS
    # The lesson goes on with the second where the learner has none yet.
    for step in (names["on_policy_step"], checks.on_policy_step(None, fallback=True)):
        student = beginner(prose.tokenizer)
        optimizer = torch.optim.Adam(student.parameters(), 8e-3)
        page = [
            step(
                *(student, prose.model, [[1], [1, 2]], lambda *_, text=text: text),
                *(names[divergence], optimizer),
            )
            for text in texts
        ]
        assert page == pytest.approx([one["loss"] for one in history], rel=1e-5)
    assert page[-1] < page[0]


@pytest.mark.parametrize("soft", [True, False])
def test_the_loop_of_lesson_09_is_a_trainer_with_adapters_off(soft, prose, tmp_path):
    generator = torch.Generator().manual_seed(1)

    def draw(size):
        vocabulary = len(prose.tokenizer)
        return torch.randint(vocabulary, (size,), generator=generator).tolist()

    # Answers of one length, for the page takes a mean of each row.
    rows = [
        {"short": draw(3 + n % 4), "long": draw(9 + n % 3), "answer": draw(6)}
        for n in range(8)
    ]

    def student():
        return add_adapters(beginner(prose.tokenizer), rank=4, seed=0)

    names = {
        "progress_bar": progress_bar,
        "torch": torch,
        "itertools": itertools,
        "steps": STEPS,
        "batch_size": 4,
    }
    names["places"] = checks.answer_places(None, fallback=True)
    exec(cell_with("09", "def said("), names)
    exec(cell_with("09", "def loss_at("), names)
    exec(cell_with("09", "def learn("), names)
    page_student = student()
    with adapters_off(page_student):
        for row in rows:
            row["teacher"] = names["said"](page_student, row["long"], row["answer"])
    losses = page_losses(
        names, "loss_at", lambda: names["learn"](page_student, rows, soft=soft)
    )
    page = torch.tensor(losses).view(STEPS, 4).mean(1).tolist()

    order = [rows[place % 8] for place in range(4 * STEPS)]

    def joined(prompt):
        return Dataset.from_list(
            [join_row(row[prompt], row["answer"]) for row in order]
        )

    made = student()
    options = {"teacher": AdaptersOff(made)} if soft else {}
    history = trainer_history(
        SoftLabelTrainer if soft else HardLabelTrainer,
        *(made, prose, add_teacher_prompts(joined("short"), joined("long")), tmp_path),
        {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "adam_beta2": 0.999,
        },
        **options,
    )
    assert page == pytest.approx([one["loss"] for one in history], rel=1e-5)
    assert page[-1] < page[0]


def test_the_loop_of_lesson_10_is_the_trainer_across_tokenizers(prose, tmp_path):
    # The teacher's vocabulary is the larger one, as in the lesson.
    student = Loaded(beginner(byte_level_bpe()), byte_level_bpe())
    teacher = build_student(prose.tokenizer, layers=1, width=32, seed=5)
    pair = align_tokenizers(student.tokenizer, prose.tokenizer)
    length = 12
    rows = [student.tokenizer(text)["input_ids"][:length] for text in TEXTS]
    rows = [ids for ids in rows if len(ids) == length]
    assert len(rows) == 3
    names = {
        **{
            "progress_bar": progress_bar,
            "torch": torch,
            "math": math,
            "pair": pair,
            "size": len(student.tokenizer),
            "twins": torch.full((len(prose.tokenizer),), -1),
        },
        **{"steps": STEPS, "batch_size": 4},
        **{"first": pair.first_pieces, "tokenizer": student.tokenizer},
        "projected": checks.project(None, fallback=True),
        "log_p_of": checks.chunk_log_p(None, fallback=True),
        "build_student": lambda *_, **__: beginner(student.tokenizer),
    }
    cells = ("own", "move_to_longer", "keep", "inside", "train")
    for words in (f"def {name}(" for name in cells):
        exec(cell_with("10", words), names)
    with torch.no_grad():
        names["kept"] = [
            names["keep"](
                one, teacher(torch.tensor([one.teacher_ids])).logits[0].log_softmax(-1)
            )
            for one in map(pair.align, rows)
        ]
    losses = []

    def watched(log_q, row):
        loss = names["by_first_pieces"](log_q, row)
        losses.append(float(loss.detach()) / (length - 1))
        return loss

    names["train"](watched)
    page = torch.tensor(losses).view(STEPS, 4).mean(1).tolist()
    order = [rows[place % len(rows)] for place in range(4 * STEPS)]
    history = trainer_history(
        SoftLabelTrainer,
        *(beginner(student.tokenizer), student),
        *(Dataset.from_dict({"input_ids": order}), tmp_path),
        {
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "adam_beta2": 0.999,
        },
        teacher=teacher,
        teacher_tokenizer=prose.tokenizer,
        cross="pieces",
    )
    assert page == pytest.approx([one["loss"] for one in history], rel=1e-4)
    assert page[-1] < page[0]
