"""Trains the two tiny teachers in ``data/`` again: half an hour on two cores.

The teachers ship with the course, so nobody has to run this; anybody can. Both are
written to ``build/tiny/``, and a report of their quality to the screen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_helpers.cli.commands import exit_status, wait_asleep

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from distill_helpers.models import Loaded

VOCABULARY = 2048
LENGTH = 64
PROSE_STEPS = 4000
SUMS_STEPS = 1500
SUMS_PROBLEMS = 20_000
# The sums teacher has to be wrong now and then, so that filtering its answers and
# passing it mean something (notebook 06).
SUMS_TARGET = 0.8


def pretrain_prose(*, steps: int = PROSE_STEPS, seed: int = 0) -> Loaded:
    """Train the prose teacher: 4 layers, 192 wide, on rows of 64 tokens.

    Args:
        steps: Optimizer steps; the best of ten checkpoints is kept.
        seed: Draws the weights and the order of the rows.
    """
    from distill_helpers.data import pack
    from distill_helpers.evaluation import held_out_nll
    from distill_helpers.models import Loaded, build_student
    from distill_helpers.tasks.prose import austen, train_tokenizer
    from distill_helpers.trainers import KeepBest

    tokenizer = train_tokenizer(VOCABULARY)
    rows = pack(austen("train"), tokenizer, LENGTH)
    validation = pack(austen("validation"), tokenizer, LENGTH)
    model = build_student(
        tokenizer, layers=4, width=192, heads=6, initializer_range=0.02, seed=seed
    )
    best = KeepBest(
        lambda network: held_out_nll(network, validation, tokenizer),
        every=max(1, steps // 10),
    )
    _train(model, tokenizer, rows, best, steps=steps, learning_rate=3e-3, seed=seed)
    best.restore(model)
    return Loaded(model, tokenizer)


def pretrain_sums(*, steps: int = SUMS_STEPS, seed: int = 0) -> Loaded:
    """Train the sums teacher, and stop as soon as it is right four times in five.

    Learning to carry comes suddenly, so the number of steps alone would not do.

    Args:
        steps: Optimizer steps at the most.
        seed: Draws the problems, the weights and the order of the rows.
    """
    from distill_helpers.data import mask_prompts
    from distill_helpers.models import Loaded, build_student
    from distill_helpers.tasks import three_sums

    tokenizer = three_sums.build_tokenizer()
    chosen = three_sums.problems(SUMS_PROBLEMS, seed=seed)
    rows = mask_prompts(
        [problem.prompt for problem in chosen],
        [problem.answer for problem in chosen],
        tokenizer,
    )
    model = build_student(
        tokenizer, layers=4, width=128, heads=4, initializer_range=0.02, seed=seed
    )
    judged = three_sums.problems(500, seed=seed + 1)
    stop = _stop_at(
        lambda network: three_sums.share_right(Loaded(network, tokenizer), judged),
        target=SUMS_TARGET,
        every=20,
    )
    _train(model, tokenizer, rows, stop, steps=steps, learning_rate=2e-3, seed=seed)
    return Loaded(model, tokenizer)


def _stop_at(
    score: Callable[[Any], float], *, target: float, every: int
) -> TrainerCallback:
    """Make a callback that stops the training when a score is reached.

    Args:
        score: Called with the model, returns a number that should grow.
        target: Stop at this score.
        every: Steps between two looks.
    """
    from transformers import TrainerCallback

    class StopAt(TrainerCallback):
        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if state.global_step % every == 0 and score(model) >= target:
                control.should_training_stop = True

    return StopAt()


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    callback: TrainerCallback,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    from distill_helpers.machine import get_profile
    from distill_helpers.trainers import HardLabelTrainer, training_arguments

    trainer = HardLabelTrainer(
        model,
        args=training_arguments(
            get_profile("cpu"),
            steps=steps,
            learning_rate=learning_rate,
            batch_size=32,
            mixed_precision=False,
            seed=seed,
        ),
        train_dataset=rows,
        tokenizer=tokenizer,
        callbacks=[callback],
    )
    trainer.train()


def save_tiny(loaded: Loaded, folder: Path) -> None:
    """Write a tiny teacher as safetensors in fp16, with its tokenizer."""
    loaded.model.half().save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    loaded.model.float()


def make(output: Path, *, only: str | None, steps: int | None) -> int:
    """Train one of the teachers or both, write them, and print how good they are.

    Args:
        output: The folder to write to.
        only: ``"prose"`` or ``"sums"``; ``None`` makes both.
        steps: Optimizer steps; ``None`` takes as many as the shipped ones had.
    """
    from distill_helpers.data import pack
    from distill_helpers.evaluation import evaluate
    from distill_helpers.tasks.prose import austen
    from distill_helpers.tasks.three_sums import share_right

    report: dict[str, Any] = {}
    if only in (None, "prose"):
        prose = pretrain_prose(steps=PROSE_STEPS if steps is None else steps)
        save_tiny(prose, output / "tiny_prose")
        test = pack(austen("test"), prose.tokenizer, LENGTH)
        found = evaluate(prose.model, test, prose.tokenizer)
        report["prose"] = {
            "nll": round(found.nll, 4),
            "bits_per_byte": round(found.bits_per_byte, 4),
            "tokens": found.tokens,
        }
    if only in (None, "sums"):
        sums = pretrain_sums(steps=SUMS_STEPS if steps is None else steps)
        save_tiny(sums, output / "tiny_sums")
        report["sums"] = {"exact_match": share_right(sums)}
    print(json.dumps(report, indent=2))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    wait_asleep()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=("prose", "sums"), help="one of the two; default: both"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/tiny"),
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, help="instead of the number the shipped ones had"
    )
    chosen = parser.parse_args(arguments)
    return exit_status(
        parser.prog, lambda: make(chosen.output, only=chosen.only, steps=chosen.steps)
    )


if __name__ == "__main__":
    sys.exit(main())
