"""What a server says of tokens, as token ids: never guessed, and what is lost counted.

Servers name a token by its id (llama.cpp, vLLM), by its bytes, or by a text only. Two
tokens may have one text, and half a character is no text at all.

Taught in notebook 05.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from distill_helpers.data import byte_count
from distill_helpers.models import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # stands for bytes that are no whole character
_PLACEHOLDER = re.compile(r"token_id:(\d+)")


class ServerError(ValueError):
    """What a server gives cannot become soft labels; every other answer is alike."""


class Named(NamedTuple):
    """A token in a server's words.

    Attributes:
        id: Its id; ``None`` if the server does not tell it.
        text: Its bytes; empty if the server does not tell them.
        logprob: Its log-probability at T = 1.
    """

    id: int | None
    text: bytes
    logprob: float

    @classmethod
    def of_chat(cls, entry: Any) -> Named:
        """From an entry of ``logprobs.content`` or its ``top_logprobs``."""
        token = str(entry.token)
        placeholder = _PLACEHOLDER.fullmatch(token)
        if placeholder:  # vLLM's, where it is asked for ids
            return cls(int(placeholder[1]), b"", float(entry.logprob))
        index = getattr(entry, "id", None)
        spelled = getattr(entry, "bytes", None)
        text = token.encode() if spelled is None else bytes(spelled)
        return cls(
            index if isinstance(index, int) else None, text, float(entry.logprob)
        )

    @classmethod
    def of_prompt(cls, index: str, entry: Mapping[str, Any]) -> Named:
        """From an entry of vLLM's ``prompt_logprobs``."""
        text = str(entry.get("decoded_token") or "").encode()
        return cls(int(index), text, float(entry["logprob"]))


@dataclass(frozen=True)
class Tops:
    """The likeliest tokens of some positions, likeliest first.

    Attributes:
        ids: For every position the ids of those that have one here.
        logprobs: Their log-probabilities.
        unmapped: How many others a server named that have none.
        unmapped_mass: Their probability, summed over the positions.
    """

    ids: list[list[int]]
    logprobs: list[list[float]]
    unmapped: int
    unmapped_mass: float

    def columns(self) -> dict[str, Any]:
        """As they stand in a row."""
        return {
            "top_ids": self.ids,
            "top_logprobs": self.logprobs,
            "unmapped": self.unmapped,
            "unmapped_mass": round(self.unmapped_mass, 6),
        }


class TokenMap:
    """Finds the ids of what a server names, in the student's tokenizer.

    Args:
        tokenizer: The student's, which must be the teacher's.

    Raises:
        DataError: If the bytes of its tokens cannot be told.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.vocabulary = vocabulary_size(tokenizer)
        count = byte_count(tokenizer)
        self.spelling = count.spelling
        self.special = frozenset(count.special.nonzero().flatten().tolist())

    @cached_property
    def _owners(self) -> dict[bytes, int | None]:
        """The token of each spelling; ``None`` if two share it."""
        shared = Counter(self.spelling)
        return {
            text: index if shared[text] == 1 else None
            for index, text in enumerate(self.spelling)
            if text
        }

    def find(self, named: Named) -> int | None:
        """The id of a token; ``None`` if there is none, or more than one.

        Raises:
            ServerError: If the server's id means another text here.
        """
        if named.id is None:
            return self._owners.get(named.text)
        if not 0 <= named.id < self.vocabulary:
            return None
        if not self._may_be(named.id, named.text):
            raise ServerError(
                f"the server calls token {named.id} "
                f"{named.text.decode(errors='replace')!r}, and in this tokenizer it is "
                f"{self.spelling[named.id].decode(errors='replace')!r}: another "
                "tokenizer is behind the server; pass the tokenizer of the model that "
                "is served, and build the student on it"
            )
        return named.id

    def text(self, ids: Iterable[int]) -> str:
        """What some tokens spell, without special ones."""
        found = (self.spelling[index] for index in ids if index not in self.special)
        return b"".join(found).decode(errors="replace")

    def _may_be(self, index: int, text: bytes) -> bool:
        """Whether a text can be a token's, as far as servers tell texts exactly.

        Special tokens have names or none, some servers trim spaces, and where a token
        is a part of a character, a text may show the whole of it, or a stand-in.
        """
        own = self.spelling[index]
        if not text or index in self.special or text == own:
            return True
        try:
            whole = own.decode()
        except UnicodeDecodeError:
            return True
        shown = text.decode(errors="replace")
        return _BROKEN in shown or shown.strip() == whole.strip()

    def tops(self, positions: Iterable[Sequence[Named]], wanted: int) -> Tops:
        """The likeliest tokens of some positions, at the most so many of each.

        Raises:
            ServerError: If every position has fewer, or the probabilities are none.
        """
        ids, logprobs = [], []
        unmapped, mass, most = 0, 0.0, 0
        for named in positions:
            most = max(most, len(named))
            if sum(math.exp(one.logprob) for one in named) > 1.01:
                raise ServerError(
                    "the server's logprobs of one position are probabilities that sum "
                    "to more than 1; they must be of the softmax at T = 1 (vLLM: "
                    "--logprobs-mode raw_logprobs)"
                )
            found = [(self.find(one), one.logprob) for one in named]
            times = Counter(index for index, _ in found)
            known = {
                index: logprob
                for index, logprob in sorted(found, key=lambda pair: -pair[1])
                if index is not None and times[index] == 1
            }
            lost = [p for index, p in found if index not in known]
            unmapped += len(lost)
            mass += sum(map(math.exp, lost))
            ids.append(list(known)[:wanted])
            logprobs.append([round(p, 5) for p in known.values()][:wanted])
        if ids and most < wanted:
            raise ServerError(
                f"the server gives {most} likeliest tokens of a position, and top_k="
                f"{wanted} were asked for; pass top_k={most} to ServedTeacher, or let "
                "the server give more (vLLM: --max-logprobs)"
            )
        return Tops(ids, logprobs, unmapped, mass)
