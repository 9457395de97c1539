"""How many bytes of text each token stands for, so that losses become bits per byte.

Used by :func:`~distill_helpers.evaluation.evaluate`.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from distill_helpers.data.base import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of either kind, ASCII or not, that a tokenizer is tried with.
_TRIALS = 48


@dataclass(frozen=True)
class ByteCount:
    """How many bytes of text the tokens of a tokenizer stand for.

    Attributes:
        sizes: ``[highest id + 1]``, int64: see :func:`token_bytes`.
        opening: ``[highest id + 1]``, bool: tokens that begin with a space which,
            where a text begins, nobody typed: the tokenizer puts one before a text.
        special: ``[highest id + 1]``, bool: tokens behind which a text begins.
        unknown: Tokens that stand for whatever the tokenizer cannot write.
        spelling: The bytes of each token, by its id; of special tokens, their names;
            empty where an id is not in use.
    """

    sizes: torch.Tensor
    opening: torch.Tensor
    special: torch.Tensor
    unknown: frozenset[int]
    spelling: tuple[bytes, ...]

    def count(self, before: torch.Tensor, tokens: torch.Tensor) -> int | None:
        """Bytes of text that some tokens stand for.

        Args:
            before: The token before each, ``[tokens]``.
            tokens: Ids.

        Returns:
            ``None`` if some are unknown, and so is the text that they stand for.
        """
        if any(bool((tokens == one).any()) for one in self.unknown):
            return None
        # Whatever no tokenizer knows, such as a place that pads a head, is no text.
        known = before.clamp(max=len(self.special) - 1)
        untyped = self.opening[tokens] & self.special[known]
        return int(self.sizes[tokens].sum() - untyped.sum())


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """UTF-8 bytes of text that each token id stands for.

    Special tokens stand for none. Bits per byte make models with different
    tokenizers comparable, which losses per token do not.

    Right for tokenizers that keep all of a text: byte-level ones (GPT-2, Llama 3,
    Qwen, SmolLM2), those that write ``▁`` for a space and ``<0xE2>`` for a byte (Llama
    2, Mistral, Gemma), and vocabularies of characters or whole pieces. Which of them a
    tokenizer is, is found out by trying: a way to read tokens as bytes is taken if,
    for some texts of the tokenizer's own tokens and of several scripts, the tokens
    spell out the text.

    Args:
        tokenizer: Any; its ids may have gaps.

    Returns:
        ``[highest id + 1]``, int64.

    Raises:
        DataError: If no way of reading does: the tokenizer changes texts (lower case,
            other characters) or drops some of them (spaces, as BERT's does), so that
            the bytes of a text cannot be told from its tokens.
    """
    return byte_count(tokenizer).sizes.clone()


def byte_count(
    tokenizer: PreTrainedTokenizerBase, *, normalised: bool = False
) -> ByteCount:
    """:func:`token_bytes`, with what it takes to count the bytes of whole rows.

    Can be asked again and again: a tokenizer is tried out once.

    Args:
        tokenizer: Same as in :func:`token_bytes`.
        normalised: Whether to count the bytes of a text as the tokenizer's normaliser
            leaves it (:func:`normalised_text`), so that one which changes texts can
            be read too.

    Raises:
        DataError: Where :func:`token_bytes` raises it.
    """
    special = tuple(tokenizer.all_special_ids)
    return _tried_out(tokenizer, len(tokenizer), special, normalised)


def normalised_text(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text as a tokenizer's normaliser leaves it: in lower case, composed, or as is.

    The space that some put before a text, and the ``▁`` that they write for spaces,
    are taken back.
    """
    normaliser = getattr(
        getattr(tokenizer, "backend_tokenizer", None), "normalizer", None
    )
    if normaliser is None:
        return text
    changed = str(normaliser.normalize_str(text)).replace("▁", " ")
    return changed if text.startswith(" ") else changed.removeprefix(" ")


@lru_cache(maxsize=4)
def _tried_out(
    tokenizer: PreTrainedTokenizerBase,
    _length: int,
    _special: tuple[int, ...],
    normalised: bool,
) -> ByteCount:
    """With length and special tokens among what is remembered, changes are seen."""
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special}
    special.update(tokenizer.all_special_ids)
    # What was added stands for itself, unless it is also one of the model's tokens.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = {} if backend is None else backend.get_vocab(with_added_tokens=False)
    literal = {i: t.content for i, t in added.items() if t.content not in own}
    texts = _trial_texts(
        [
            token
            for token, index in vocabulary.items()
            # Where a byte's name is a piece, a text of that name becomes the byte.
            if index not in special and index not in literal and not is_byte(token)
        ]
    )
    encoded = _encoded(texts, tokenizer)
    if normalised:
        texts = [normalised_text(text, tokenizer) for text in texts]
    trials = list(zip(texts, encoded, strict=True))
    # Where nothing is unknown, the text can be compared.
    # Byte-level tokenizers name an unknown token, and never need it.
    unknown = _unknown_names(tokenizer, vocabulary).intersection(
        index for _, ids in trials for index in ids
    )
    unreadable = special | unknown
    trials = [(text, ids) for text, ids in trials if ids and not unreadable & {*ids}]
    for read in _readings(tokenizer):
        spelling = [b""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            spelling[index] = (
                literal[index].encode() if index in literal else read(token)
            )
        spelled = [
            (text.encode(), b"".join(spelling[index] for index in ids))
            for text, ids in trials
        ]
        if spelled and all(found in (text, b" " + text) for text, found in spelled):
            spaced = any(found != text for text, found in spelled)
            return _byte_count(spelling, special, unknown, spaced=spaced)
    raise DataError(
        f"the bytes of a text cannot be told from the tokens of this tokenizer "
        f"({type(tokenizer).__name__}): {_example(trials, tokenizer)}; bits per byte "
        "need one that keeps all of a text (byte-level, or with ▁ for spaces), so "
        "compare losses per token of models with this very tokenizer instead"
    )


def is_byte(token: str) -> bool:
    """Whether a token is the name of one byte, such as ``<0xE2>``."""
    return re.fullmatch("<0x[0-9A-Fa-f]{2}>", token) is not None


def _unknown_names(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int]
) -> set[int]:
    """Tokens that a tokenizer calls unknown, whether it writes them or not."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    name = getattr(model, "unk_token", None)
    found = {tokenizer.unk_token_id, vocabulary.get(name or "")}
    return {index for index in found if index is not None}


def _byte_count(
    spelling: Sequence[bytes], special: set[int], unknown: set[int], *, spaced: bool
) -> ByteCount:
    is_special = torch.zeros(len(spelling), dtype=torch.bool)
    is_special[[index for index in special if index < len(spelling)]] = True
    sizes = torch.tensor([len(one) for one in spelling])
    opening = torch.tensor([spaced and one.startswith(b" ") for one in spelling])
    return ByteCount(
        sizes=sizes.masked_fill(is_special, 0),
        opening=opening & ~is_special,
        special=is_special,
        unknown=frozenset(unknown),
        spelling=tuple(spelling),
    )


def _example(
    trials: Sequence[tuple[str, list[int]]], tokenizer: PreTrainedTokenizerBase
) -> str:
    """What becomes of a text, for a message."""
    for text, ids in trials:
        tokens = tokenizer.convert_ids_to_tokens(ids)
        if "".join(tokens) != text:
            return f"{text!r} becomes {tokens}"
    return "it can write none of the texts that it was tried with"


def _readings(tokenizer: PreTrainedTokenizerBase) -> list[Callable[[str], bytes]]:
    """Ways to read a token as bytes, to be tried in this order."""
    # As in GPT-2's vocabulary: printable characters of Latin-1 stand for their own
    # bytes, and those from 256 on for the others, in order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + place): byte for place, byte in enumerate(others)}
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    joins = getattr(model, "continuing_subword_prefix", None) or ""

    def byte_level(token: str) -> bytes:
        try:
            return bytes([table[one] for one in token])
        except KeyError:
            return token.encode()

    def pieces(token: str) -> bytes:
        if is_byte(token):
            return bytes([int(token[3:5], 16)])
        return token.removeprefix(joins).replace("▁", " ").encode()

    def latin_1(token: str) -> bytes:  # ByT5
        return token.encode("latin-1", "ignore")

    return [byte_level, pieces, latin_1]


def _trial_texts(tokens: Sequence[str]) -> list[str]:
    """Texts that tell one kind of tokenizer from another: its own, and of many kinds.

    One and two tokens with and without a space between them, in capitals too; a
    tokenizer of few tokens can write nothing else.
    """
    texts = [
        "It's 12 o'clock, said Emma.",
        "Two  spaces, a\ttab\nand a line.",
        "ENDS IN Capitals",
        "Größe über alles? Ça coûte 5 €.",
        "½ …",
        "Привет",
        "高い",
        "مرحبا",
        "🐦",
        "\ue000",  # in no vocabulary: unknown, or bytes
    ]
    foreign = [token for token in tokens if not token.isascii()]
    for some in (foreign, [token for token in tokens if token.isascii()]):
        chosen = some[:: max(1, len(some) // _TRIALS)][:_TRIALS]
        plain = [token.replace("▁", " ").removeprefix("##") for token in chosen]
        texts += plain
        for one, other in itertools.pairwise(plain):
            texts += [one + other, f"{one} {other}", f"{one} {other}".upper()]
    # Composed, as texts are: many tokenizers compose what they read.
    return [unicodedata.normalize("NFC", text) for text in texts if text.strip()]


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The ids of each text; none where the tokenizer refuses it."""
    try:
        return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    except Exception:  # of tokenizers, which has no class of its own
        if len(texts) == 1:
            return [[]]
        return [_encoded([text], tokenizer)[0] for text in texts]
