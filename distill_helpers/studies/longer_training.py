"""Where does the gain of soft labels end? The tiny pair, trained for longer.

The study ``soft_labels`` stops after 300 steps. Here the same student reads the whole
corpus, for 1,000 and for 3,000 steps of 16 rows: at the end each row came three times.
A step with soft labels also costs the teacher's pass, which is more than the student's
own work; so soft labels are compared with labels at equal steps, and also with labels
that were trained three times as long. Taught in notebook 02.
"""

from __future__ import annotations

from distill_helpers.models import build_student
from distill_helpers.studies import Claim, Run, Study, count_tflops
from distill_helpers.studies.soft_labels import (
    BATCH_SIZE,
    LENGTH,
    Pair,
    load_pair,
    train_arm,
)

ARMS = ("labels", "soft T=1")


def count_flops(pair: Pair, arm: str, steps: int) -> tuple[float, float]:
    """TFLOPs of a training run: the student's, and the teacher's on top."""
    student = build_student(pair.tokenizer, layers=2, width=96)
    ids = student.dummy_inputs["input_ids"].new_zeros(BATCH_SIZE, LENGTH)
    calls = steps if arm != "labels" else 0
    return (
        steps * count_tflops(student, {"input_ids": ids}, backward=True),
        calls * count_tflops(pair.teacher.teacher, {"input_ids": ids}, backward=False),
    )


def _run(run: Run) -> dict[str, float]:
    pair = load_pair()
    steps = int(run.setting)
    trained = train_arm(
        pair,
        pair.train.shuffle(seed=run.seed),
        run.arm,
        seed=run.seed,
        learning_rate=run.option("learning_rate"),
        weight_decay=run.option("weight_decay"),
        steps=steps,
    )
    student_tflops, teacher_tflops = count_flops(pair, run.arm, steps)
    assert trained.test.kl_to_teacher is not None
    return {
        "validation_nll": trained.validation_nll,
        "nll": trained.test.nll,
        "bits_per_byte": trained.test.bits_per_byte,
        "kl_to_teacher": trained.test.kl_to_teacher,
        "nll_calibrated": trained.calibrated_nll,
        "student_tflops": student_tflops,
        "teacher_tflops": teacher_tflops,
        "test_tokens": trained.test.tokens,
    }


STUDY = Study(
    name="longer_training",
    question="Where does the gain of soft labels end?",
    arms=ARMS,
    settings=("1000", "3000"),
    grid=tuple(
        (("learning_rate", rate), ("weight_decay", 0.1)) for rate in (8e-3, 1.6e-2)
    ),
    run=_run,
    select="validation_nll",
    claims=(
        Claim(
            name="long_run",
            text="After 3,000 steps, soft labels (T=1) still beat labels alone",
            metric="nll",
            arm="soft T=1",
            baseline="labels",
            setting="3000",
            margin=0.05,
        ),
        Claim(
            name="labels_for_longer",
            text="1,000 steps with soft labels beat 3,000 steps with labels alone",
            metric="nll",
            arm="soft T=1",
            baseline="labels",
            setting="1000",
            baseline_setting="3000",
        ),
    ),
)
