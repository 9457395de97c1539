"""How the two tiny teachers in ``data/`` were made: ``distill pretrain-tiny``.

The teachers ship with the course, so nobody has to run this; anybody can.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    model = build_student(tokenizer, layers=4, width=192, heads=6, seed=seed)
    best = KeepBest(
        lambda network: held_out_nll(network, validation, tokenizer),
        every=max(1, steps // 10),
    )
    _train(model, tokenizer, rows, best, steps=steps, learning_rate=3e-3, seed=seed)
    best.restore(model)
    return Loaded(model, tokenizer)


def pretrain_sums(*, steps: int = SUMS_STEPS, seed: int = 0) -> Loaded:
    """Train the sums teacher, and stop while it is still wrong now and then."""
    tokenizer = three_sums.build_tokenizer()
    chosen = three_sums.problems(SUMS_PROBLEMS, seed=seed)
    rows = mask_prompts(
        [problem.prompt for problem in chosen],
        [problem.answer for problem in chosen],
        tokenizer,
    )
    model = build_student(tokenizer, layers=4, width=128, heads=4, seed=seed)
    _train(model, tokenizer, rows, None, steps=steps, learning_rate=2e-3, seed=seed)
    return Loaded(model, tokenizer)


def sums_accuracy(loaded: Loaded, count: int = three_sums.TEST_SIZE) -> float:
    """Exact match on the first ``count`` problems of the frozen test set."""
    test = three_sums.test_problems()[:count]
    share, _ = exact_match(
        loaded.model,
        loaded.tokenizer,
        three_sums.prompts(test),
        lambda index, text: three_sums.is_right(test[index], text),
        max_new_tokens=three_sums.MAX_ANSWER_TOKENS,
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
    best: KeepBest | None,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    options: dict[str, Any] = {"callbacks": [best]} if best else {}
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
        **options,
    )
    trainer.train()
