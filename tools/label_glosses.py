"""Makes ``data/gloss_labels.jsonl`` again: a quarter of an hour on two cores.

SmolLM2 learns the gloss task from 600 labelled glosses, and then answers a pool of
thousands. The answers ship with the course, so nobody has to run this; anybody can, and
a run that is cut off goes on where it was. They are read in notebook 05.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from distill_helpers.cli.commands import exit_status, wait_asleep

if TYPE_CHECKING:
    from datasets import Dataset

    from distill_helpers.models import Loaded

STEPS = 60
LICENCE = "SmolLM2 is Apache-2.0 and sets no terms for its answers; glosses: WordNet"
# Tokens of a row that holds several examples.
LENGTH = 512


def train_teacher(*, steps: int = STEPS) -> Loaded:
    """Train SmolLM2 on the labelled glosses.

    Args:
        steps: Optimizer steps of 4 × 512 tokens, about 25 glosses each.
    """
    from distill_helpers.data import pack_examples
    from distill_helpers.machine import get_profile
    from distill_helpers.models import Loaded
    from distill_helpers.tasks.glosses import learned_rows, splits
    from distill_helpers.tasks.teachers import load_teacher
    from distill_helpers.trainers import HardLabelTrainer, training_arguments

    profile = get_profile("cpu")
    model, tokenizer = load_teacher(profile)
    rows = pack_examples(learned_rows(splits().labelled, tokenizer), LENGTH)
    model = model.float().requires_grad_(True)
    HardLabelTrainer(
        model,
        args=training_arguments(
            profile, steps=steps, learning_rate=1e-4, batch_size=4, seed=0
        ),
        train_dataset=rows,
        tokenizer=tokenizer,
    ).train()
    return Loaded(model.requires_grad_(False).eval(), tokenizer)


def label_pool(teacher: Loaded, path: Path, count: int) -> Dataset:
    """Let the teacher answer the first glosses of the pool, greedily.

    Args:
        teacher: The trained teacher.
        path: The file of answers, which a further call goes on with.
        count: How many glosses.
    """
    from distill_helpers.labels import LocalTeacher, write_labels
    from distill_helpers.tasks.glosses import MAX_ANSWER_TOKENS, splits

    local = LocalTeacher(teacher.model, teacher.tokenizer, licence=LICENCE)
    prompts = [gloss.prompt for gloss in splits().pool[:count]]
    return write_labels(
        local, prompts, path, max_new_tokens=MAX_ANSWER_TOKENS, concurrency=64
    )


def make(
    output: Path, *, steps: int | None, count: int | None, judged: int | None
) -> int:
    """Train the teacher, let it answer, and report how many answers are right.

    Args:
        output: The file of answers; the report goes beside it, and to the screen.
        steps: Optimizer steps; ``None`` takes the teacher's own number.
        count: Glosses of the pool; ``None`` takes those of the shipped file.
        judged: Glosses of the test; ``None`` takes all.
    """
    from distill_helpers.tasks.glosses import POOL, judge, judge_answers, splits

    teacher = train_teacher(steps=steps or STEPS)
    test = judge(*teacher, splits().test[:judged])
    labels = label_pool(teacher, output, count or POOL)
    pool = judge_answers(labels["answer"], splits().pool[: len(labels)])
    report = json.dumps({"test": asdict(test), "pool": asdict(pool)}, indent=1)
    output.with_suffix(".report.json").write_text(report + "\n", encoding="utf-8")
    print(report)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    wait_asleep()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/gloss_labels.jsonl"),
        help="file to write to (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, help="instead of the teacher's own number")
    parser.add_argument("--count", type=int, help="glosses of the pool, likewise")
    parser.add_argument("--judged", type=int, help="glosses of the test, likewise")
    chosen = parser.parse_args(arguments)
    return exit_status(
        parser.prog,
        lambda: make(
            chosen.output,
            steps=chosen.steps,
            count=chosen.count,
            judged=chosen.judged,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
