"""How the two tiny teachers in ``data/`` were made: ``distill pretrain-tiny``.

The teachers ship with the course, so nobody has to run this; anybody can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from distill_helpers import three_sums
from distill_helpers.data import austen, mask_prompts, pack
from distill_helpers.evaluation import exact_match, held_out_nll
from distill_helpers.models import Loaded, build_student
from distill_helpers.profiles import get_profile
from distill_helpers.trainers import HardLabelTrainer, KeepBest, training_arguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY = 2048
LENGTH = 64
PROSE_STEPS = 4000
SUMS_STEPS = 1500
SUMS_PROBLEMS = 20_000
# The sums teacher has to be wrong now and then, so that filtering its answers and
# passing it mean something (notebook 05).
SUMS_TARGET = 0.8


def train_prose_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of 2,048 tokens, trained on the five novels' training part."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        austen("train")["text"],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>"
    )


def pretrain_prose(*, steps: int = PROSE_STEPS, seed: int = 0) -> Loaded:
    """Train the prose teacher: 4 layers, 192 wide, on rows of 64 tokens."""
    tokenizer = train_prose_tokenizer()
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
    """
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
    stop = StopAt(
        lambda network: _share_right(Loaded(network, tokenizer), judged),
        target=SUMS_TARGET,
        every=20,
    )
    _train(model, tokenizer, rows, stop, steps=steps, learning_rate=2e-3, seed=seed)
    return Loaded(model, tokenizer)


class StopAt(TrainerCallback):
    """Stop training when a score is reached.

    Args:
        score: Called with the model, returns a number that should grow.
        target: Stop at this score.
        every: Steps between two looks.
    """

    def __init__(
        self, score: Callable[[Any], float], *, target: float, every: int
    ) -> None:
        self.score = score
        self.target = target
        self.every = every

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Look, and stop if it is enough."""
        if state.global_step % self.every == 0 and self.score(model) >= self.target:
            control.should_training_stop = True


def sums_accuracy(loaded: Loaded) -> float:
    """Exact match on the frozen test set."""
    return _share_right(loaded, three_sums.test_problems())


def _share_right(loaded: Loaded, chosen: Sequence[three_sums.Problem]) -> float:
    share, _ = exact_match(
        loaded.model,
        loaded.tokenizer,
        three_sums.prompts(chosen),
        lambda index, text: three_sums.is_right(chosen[index], text),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
        batch_size=500,
    )
    return share


def save_tiny(loaded: Loaded, folder: str | Path) -> None:
    """Write a tiny teacher as safetensors in fp16, with its tokenizer."""
    loaded.model.half().save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    loaded.model.float()


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
