"""Trainers that distil, on transformers' ``Trainer``.

* ``base``: the one base trainer, its arguments, and what an objective is;
* ``soft_hard``: one student, from hard labels or from soft labels, live or stored;
* ``cross``: soft labels of a teacher with another tokenizer;
* ``co_distillation``: models that learn from the labels and from one another;
* ``on_policy``: the student writes, the teacher judges every token;
* ``routes``: several teachers, of which each row names its own;
* ``alignment``: a teacher whose rows have a prompt of their own;
* ``checkpoints``: checkpoints that are either complete or not used at all;
* ``callbacks``: a progress bar, and the best weights kept.

Taught in notebooks 02 to 10.
"""

from distill_helpers.trainers.base import (
    DistillationTrainer,
    Objective,
    check_student,
    end_processes,
    training_arguments,
)
from distill_helpers.trainers.callbacks import KeepBest, ProgressBar
from distill_helpers.trainers.checkpoints import (
    SealCheckpoints,
    is_complete,
    last_complete_checkpoint,
    load_adapters,
    refuse_shared,
    refuse_unsaved,
)
from distill_helpers.trainers.co_distillation import (
    CoDistillationTrainer,
    MixSchedule,
    Partners,
    mutual_losses,
)
from distill_helpers.trainers.cross import CROSS, CrossLabels
from distill_helpers.trainers.on_policy import OnPolicyTrainer
from distill_helpers.trainers.soft_hard import (
    HardLabels,
    HardLabelTrainer,
    LiveTeacher,
    SoftLabels,
    SoftLabelTrainer,
    StoredLabels,
    StoredTeacher,
)

__all__ = [
    "CROSS",
    "CoDistillationTrainer",
    "CrossLabels",
    "DistillationTrainer",
    "HardLabelTrainer",
    "HardLabels",
    "KeepBest",
    "LiveTeacher",
    "MixSchedule",
    "Objective",
    "OnPolicyTrainer",
    "Partners",
    "ProgressBar",
    "SealCheckpoints",
    "SoftLabelTrainer",
    "SoftLabels",
    "StoredLabels",
    "StoredTeacher",
    "check_student",
    "end_processes",
    "is_complete",
    "last_complete_checkpoint",
    "load_adapters",
    "mutual_losses",
    "refuse_shared",
    "refuse_unsaved",
    "training_arguments",
]
