"""Texts, and how they become rows of token ids that a model can learn.

* ``corpus``: a file of one's own becomes passages: :func:`load_corpus`;
* ``packing``: texts and examples become rows of one length;
* ``answers``: prompts and answers become rows that learn the answers alone;
* ``prompts``: where a row's prompt ends, rows made of a prompt and a text, and prompts
  that the teacher alone sees: :func:`add_teacher_prompts`;
* ``rows``: labels, masks, padding, and the batch;
* ``byte_counts``: bytes of text per token;
* ``alignment``: which tokens of two tokenizers stand for the same bytes;
* ``aligned_rows``: a dataset whose rows two tokenizers have written, and its batches;
* ``base``: the error of the room, and reading files.

Used from notebook 00 on; packing and masking are taught in notebook 02.
"""

from distill_helpers.data.aligned_rows import (
    ALIGNED_COLUMNS,
    AlignedCollator,
    align_rows,
)
from distill_helpers.data.alignment import (
    AlignedRow,
    Alignment,
    Chunk,
    NotAligned,
    align_tokenizers,
    chunks,
)
from distill_helpers.data.answers import encode_answers, mask_prompts
from distill_helpers.data.base import DataError, jsonl_rows, read_utf8, whole_characters
from distill_helpers.data.byte_counts import (
    ByteCount,
    byte_count,
    normalised_text,
    token_bytes,
)
from distill_helpers.data.corpus import load_corpus
from distill_helpers.data.packing import evenly_spaced, pack, pack_examples, stream_rows
from distill_helpers.data.prompts import (
    TEACHER_PROMPT,
    add_teacher_prompts,
    first_learned,
    join_row,
    prompt_of,
)
from distill_helpers.data.rows import (
    Collator,
    collator_for,
    refuse_padding,
    row_labels,
    strip_padding,
)

__all__ = [
    "ALIGNED_COLUMNS",
    "TEACHER_PROMPT",
    "AlignedCollator",
    "AlignedRow",
    "Alignment",
    "ByteCount",
    "Chunk",
    "Collator",
    "DataError",
    "NotAligned",
    "add_teacher_prompts",
    "align_rows",
    "align_tokenizers",
    "byte_count",
    "chunks",
    "collator_for",
    "encode_answers",
    "evenly_spaced",
    "first_learned",
    "join_row",
    "jsonl_rows",
    "load_corpus",
    "mask_prompts",
    "normalised_text",
    "pack",
    "pack_examples",
    "prompt_of",
    "read_utf8",
    "refuse_padding",
    "row_labels",
    "stream_rows",
    "strip_padding",
    "token_bytes",
    "whole_characters",
]
