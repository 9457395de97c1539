"""What a teacher says of rows of token ids, as the columns of a shard.

Taught in notebook 04.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill_helpers.data import collator_for
from distill_helpers.labels.schemes import Scheme, encode
from distill_helpers.losses import Head, Hidden
from distill_helpers.models import HeadReader, reading_device

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Logits of this many bytes exist at a time while a cache is written.
_CHUNK_BYTES = 64 * 2**20


def row_key(ids: NDArray[np.int32]) -> int:
    """What a row is found by: 64 bits of a hash of its token ids."""
    digest = hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class RowEncoder:
    """Turns rows of token ids into the columns of a shard."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        header: Mapping[str, Any],
    ) -> None:
        self.teacher = teacher
        self.scheme = Scheme(**header["scheme"])
        self.temperature = float(header["temperature"])
        self.seed = int(header["seed"])
        self.batch_size = int(header["batch_size"])
        self.collate = collator_for(tokenizer)
        self.reader = HeadReader("teacher", fused=True)

    def encode(
        self, ids: list[list[int]], keys: NDArray[np.uint64], bar: Any = None
    ) -> dict[str, NDArray[Any]]:
        """Columns of all rows, each row's positions one after another."""
        lengths = np.array([len(row) for row in ids])
        # Rows of one length belong together; the plan depends on nothing else.
        order = np.argsort(-lengths, kind="stable")
        parts: list[dict[str, NDArray[Any]]] = [{} for _ in ids]
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            columns = self._batch([ids[index] for index in chosen], keys[chosen])
            ends = np.cumsum(lengths[chosen] - 1)
            for index, end in zip(chosen, ends, strict=True):
                positions = slice(end - lengths[index] + 1, end)
                parts[index] = {name: c[positions] for name, c in columns.items()}
            if bar is not None:
                bar.update(int(ends[-1]))
        joined = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
        return joined | {"keys": keys, "lengths": lengths.astype(np.int32)}

    @torch.no_grad()
    def _batch(
        self, ids: list[list[int]], keys: NDArray[np.uint64]
    ) -> dict[str, NDArray[Any]]:
        device = reading_device(self.teacher)
        batch = self.collate([{"input_ids": row} for row in ids])
        batch = {name: value.to(device) for name, value in batch.items()}
        read = self.reader.read(self.teacher, batch)
        head = None
        if isinstance(read, Hidden):
            head = read.head.cut(self.scheme.vocabulary)
        hidden = read.states if isinstance(read, Hidden) else read
        # The last position of a row predicts nothing that is there.
        counted = batch["attention_mask"][:, 1:].bool()
        hidden = hidden[:, :-1][counted]
        offsets = np.concatenate(
            [
                _offsets(self.seed, int(key), len(row) - 1)
                for row, key in zip(ids, keys, strict=True)
            ]
        )
        pieces = [
            encode(logits, self.scheme, torch.from_numpy(some).to(device))
            for logits, some in self._blocks(hidden, head, offsets)
        ]
        return {
            name: np.concatenate([piece[name] for piece in pieces])
            for name in pieces[0]
        }

    def _blocks(
        self, hidden: torch.Tensor, head: Head | None, offsets: NDArray[np.float64]
    ) -> Iterator[tuple[torch.Tensor, NDArray[np.float64]]]:
        """Logits over T in fp32, a few positions at a time, and their offsets.

        The product with the head wants many positions at once and one buffer that
        stays; what follows wants blocks that stay in the processor's cache.
        """
        chunk = max(1, _CHUNK_BYTES // (4 * self.scheme.vocabulary))
        most = 2**20 if hidden.device.type == "cpu" else 2**25
        block = max(1, most // self.scheme.vocabulary)
        buffer = None
        for start in range(0, len(hidden), chunk):
            logits = hidden[start : start + chunk]
            if head is None:
                logits = logits[:, : self.scheme.vocabulary]
            else:
                if buffer is None:
                    buffer = hidden.new_empty(len(logits), self.scheme.vocabulary)
                logits = head.logits(logits, out=buffer)
            for i in range(0, len(logits), block):
                some = logits[i : i + block].to(torch.float32, copy=True)
                if self.temperature != 1:
                    some /= self.temperature
                yield some, offsets[start + i :][: len(some)]


def _offsets(seed: int, key: int, positions: int) -> NDArray[np.float64]:
    """One uniform number per position, from seed and row alone."""
    bits = np.random.Philox(key=np.array([seed, key], dtype=np.uint64))
    return np.random.Generator(bits).random(positions)
