"""From prompts and answers to rows that learn the answers alone.

Taught in notebook 05.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_helpers.data.base import DataError, dataset_of, whole_characters
from distill_helpers.data.prompts import join_row

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def mask_prompts(
    prompts: Sequence[str],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    """Rows of prompt + answer + end-of-text in which only the answer is learned.

    Args:
        prompts: What the model is given; labelled ``-100``.
        answers: What it learns to write, in the tokens of :func:`encode_answers`; the
            end-of-text token is appended and learned too, or the student would never
            stop. Of an empty answer it is all that is learned.
        tokenizer: The student's tokenizer.

    Returns:
        A ``datasets.Dataset`` with ``input_ids`` and ``labels`` (unshifted).

    Raises:
        ValueError: If there is no answer for a prompt, or no end-of-text token; and
            see :func:`encode_answers`.
    """
    if len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: one answer per prompt"
        )
    if not prompts:
        raise DataError("there are no prompts to learn from")
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(
            "the tokenizer has no end-of-text token: the student could not learn to "
            "stop; set tokenizer.eos_token"
        )
    pairs = encode_answers(prompts, answers, tokenizer)
    return dataset_of([join_row(prompt, [*answer, end]) for prompt, answer in pairs])


# Texts behind which an answer is encoded to learn its tokens in mid-text. Which of them
# a tokenizer keeps apart from an answer depends on its merges and its vocabulary.
_ANCHORS = ("\n", ".", ":", "=", "a", "0")


def encode_answers(
    prompts: Sequence[str],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[tuple[list[int], list[int]]]:
    """The token ids of each prompt, and of the answer as it goes on from there.

    A prompt's ids are those that a model is given at inference, without an answer,
    even where a tokenizer would merge the two across the border: nothing that is
    learned may stand in tokens that the model never begins from. What looks like a
    special token in an answer is text.

    Where the whole text's ids begin with the prompt's, the answer's are the rest of
    them. Where a merge crosses the border, the answer is encoded by itself. Some
    tokenizers put a space before whatever they encode (SentencePiece's ``▁``,
    ``add_prefix_space``) or tell the beginning of a word from its middle (WordPiece);
    if the two sequences then do not read as the whole text does, the answer is encoded
    behind a short text in whose place it reads the same. A tokenizer of whole words
    that forgets spaces cannot join a word to a prompt's last; nor does it add one.

    Args:
        prompts: What a model is given; lone surrogates (half an emoji) become U+FFFD.
        answers: One for each, treated alike.
        tokenizer: The model's tokenizer.

    Raises:
        ValueError: For a prompt without a token, for what is no string, and for an
            answer that the tokenizer cannot begin where the prompt ends; the message
            names the row.
    """
    for name, texts in (("prompts", prompts), ("answers", answers)):
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"{name}[{number}] is {text!r}, no string; leave the row out"
                )
    prompts = [whole_characters(text) for text in prompts]
    answers = [whole_characters(text) for text in answers]
    if not prompts:
        return []  # a tokenizer refuses an empty list
    given = _encode(prompts, tokenizer)
    apart = _encode(answers, tokenizer, split_special_tokens=True)
    together = _encode(
        [p + a for p, a in zip(prompts, answers, strict=True)], tokenizer
    )
    added = tokenizer.added_tokens_decoder.items()
    special = {token: mark.content for token, mark in added if mark.special}
    names = map(str, tokenizer.all_special_tokens)
    special |= dict(zip(tokenizer.all_special_ids, names, strict=True))
    special.pop(tokenizer.unk_token_id, None)  # which stands for any text
    found = []
    for number, ids in enumerate(given):
        if not ids:
            raise DataError(
                f"row {number}: the prompt {prompts[number]!r} is empty, in tokens; a "
                "model cannot go on from nothing. Begin it with some text, or leave "
                "the row out"
            )
        learned: list[int] | None = apart[number]
        if learned and ids + learned != together[number]:
            learned = _continued(
                prompts[number],
                ids,
                answers[number],
                learned,
                tokenizer,
                [mark for mark in special.values() if mark in answers[number]],
            )
        if learned is None and _forgets_spaces(
            f"{prompts[number]} {answers[number]}", tokenizer
        ):
            learned = apart[number]
        if learned is None:
            raise DataError(
                f"row {number}: this tokenizer cannot write the answer "
                f"{answers[number][:40]!r} where the prompt ends "
                f"({prompts[number][-40:]!r}) without a space between, or one less; "
                "end the prompt, or begin the answer, with a space or a line feed"
            )
        for token in special.keys() & set(learned):
            if special[token] in answers[number]:
                raise DataError(
                    f"row {number}: the answer {answers[number][:80]!r} holds "
                    f"{special[token]!r}, which this tokenizer cannot read as text; "
                    "leave the row out, or write it otherwise"
                )
        found.append((ids, learned))
    return found


def _continued(
    prompt: str,
    given: list[int],
    answer: str,
    apart: list[int],
    tokenizer: PreTrainedTokenizerBase,
    marks: list[str],
) -> list[int] | None:
    """An answer's ids behind a prompt's, so that both read as the whole text does."""
    # How an answer begins shows before its first mark, a text that looks like a special
    # token and would be one in the whole text.
    head = answer
    if marks:
        head = answer[: min(answer.index(mark) for mark in marks)].rstrip() or "a"
    whole = _encode([prompt + head], tokenizer)[0]
    rest = whole[len(given) :]
    if head == answer and rest and whole[: len(given)] == given:
        return rest
    text = _read(whole, tokenizer)

    def behind(anchor: str, part: str) -> list[int] | None:
        stem, both = _encode(
            [anchor, anchor + part], tokenizer, split_special_tokens=True
        )
        return both[len(stem) :] if both[: len(stem)] == stem else None

    def reads(ids: list[int] | None) -> bool:
        return ids is not None and _read(given + ids, tokenizer) == text

    if reads(_encode([head], tokenizer, split_special_tokens=True)[0]):
        return apart
    for anchor in (prompt, prompt[-1:], *_ANCHORS):
        if reads(behind(anchor, head)) and (ids := behind(anchor, answer)) is not None:
            return ids
    return None


def _forgets_spaces(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer splits at spaces and keeps none, as one of whole words does.

    Then no token says whether there was one, and none is added where texts meet.
    """
    ways = [text, f" {text}", text.replace(" ", "  ")]
    one, *others = _encode(ways, tokenizer)
    return all(other == one for other in others)


def _read(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    # A tokenizer may compose what a border separates.
    return unicodedata.normalize("NFC", str(tokenizer.decode(ids)))


def _encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=False, **options)
    found: list[list[int]] = encoded["input_ids"]
    return found
