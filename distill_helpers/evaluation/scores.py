"""Yardsticks: how good a student is, and how like its teacher.

Every number comes with the count of positions it rests on. Taught in notebook 03,
which shows that the yardsticks can disagree.

All of them hold for any causal model, any tokenizer and any rows that the trainers
take: a ``Dataset``, a stream of ``datasets`` or a list of dicts, with ``labels``, with
masks of other tools (:func:`~distill_helpers.data.row_labels`) or with neither. Where
a model's head is plain, logits are made a block of positions at a time, so that memory
is that of a training step; what is multiplied is first tried out against the model's
own logits (:class:`~distill_helpers.models.HeadReader`). Token ids and lengths that a
model cannot read are refused before it is called.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from distill_helpers.data import (
    ByteCount,
    Collator,
    DataError,
    byte_count,
    collator_for,
)
from distill_helpers.losses import (
    IGNORE_INDEX,
    Hidden,
    cut_outputs,
    token_divergence,
)
from distill_helpers.machine import progress_bar
from distill_helpers.models import (
    HeadReader,
    Limits,
    eval_mode,
    reading_device,
    vocabulary_size,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    Rows: TypeAlias = Dataset | IterableDataset | Iterable[Mapping[str, Any]]

_LOGGER = logging.getLogger(__name__)

_CALIBRATION_BINS = 15
# Logits that are worked on at a time, in numbers; evaluate holds about six times as
# many. With more, a processor is slower, which gets their memory anew each time; with
# fewer rows, it waits for the head's weights.
_BLOCK = {"cpu": 2**20, "cuda": 2**26}
_LEAST_ROWS = 16


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured.

    Attributes:
        nll: Mean negative log-likelihood of the labels, nats per token.
        bits_per_byte: The NLL in bits per byte of text; comparable between
            tokenizers. ``nan`` if the counted tokens stand for no bytes, or the
            bytes cannot be told from the tokens.
        accuracy: Share of positions whose likeliest token is the label.
        ece: Expected calibration error of the likeliest token, 15 bins of equal
            width, in [0, 1] (Guo et al. 2017, arXiv:1706.04599).
        kl_to_teacher: Mean KL(p_T ‖ p_S) at T = 1, nats per token; ``None`` without a
            teacher.
        agreement: Share of positions where teacher and student have the same
            likeliest token; ``None`` without a teacher.
        tokens: Positions counted.
        bytes: Bytes of text that these positions stand for; 0 if they cannot be told.
        temperature: The student's logits were divided by this (1: as they are).
    """

    nll: float
    bits_per_byte: float
    accuracy: float
    ece: float
    kl_to_teacher: float | None
    agreement: float | None
    tokens: int
    bytes: int
    temperature: float = 1.0


def evaluate(
    model: nn.Module,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: nn.Module | None = None,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> Evaluation:
    """Measure a model on held-out rows.

    Args:
        model: Put into eval mode for the measurement, then back, as is the teacher.
        rows: With ``input_ids`` and, if not all of it counts, ``labels`` or a mask of
            another tool (:func:`~distill_helpers.data.row_labels`): a ``Dataset``, a
            stream of ``datasets``, or dicts. Rows without tokens are passed over.
        tokenizer: Pads, and counts bytes: one that keeps all of a text, see
            :func:`~distill_helpers.data.token_bytes`, which finds that out by trying.
            With another, or where unknown tokens count, ``bits_per_byte`` is ``nan``
            and the log warns; all other numbers hold.
        teacher: To compare distributions with.
        temperature: Divide the student's logits by this first, see
            :func:`fit_temperature`.
        batch_size: Rows per forward pass.

    A head with more outputs than the tokenizer has tokens is cut to those, unless the
    tokenizer's ids have gaps: then the outputs without a token are the model's own,
    and count in its softmax as it computes it. Only where the teacher's head is of
    another width are both cut to the highest id.

    Raises:
        ValueError: If no position counts; or if a row holds a token id that a model
            or the tokenizer does not have, or more tokens than a model has positions.

    Taught in notebook 02.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be a positive number")
    counter = _byte_counter(tokenizer)
    sums = torch.zeros(5, dtype=torch.float64)
    confidence_sum = torch.zeros(_CALIBRATION_BINS, dtype=torch.float64)
    correct_sum = torch.zeros_like(confidence_sum)
    tokens = size = 0
    for block in _blocks(model, rows, tokenizer, teacher, batch_size):
        teacher_logits, targets = block.teacher_logits, block.targets
        log_p = (block.logits / temperature).log_softmax(-1)
        confidence, guess = log_p.max(-1)
        confidence = confidence.exp()
        correct = guess == targets
        sums[0] -= log_p.gather(-1, targets.unsqueeze(-1)).double().sum().cpu()
        sums[1] += correct.sum().cpu()
        if teacher_logits is not None:
            divergence = token_divergence(log_p, teacher_logits)
            sums[2] += divergence.double().sum().cpu()
            sums[3] += (guess == teacher_logits.argmax(-1)).sum().cpu()
        bins = (confidence * _CALIBRATION_BINS).long().clamp(max=_CALIBRATION_BINS - 1)
        bins = bins.cpu()
        confidence_sum.index_add_(0, bins, confidence.double().cpu())
        correct_sum.index_add_(0, bins, correct.double().cpu())
        tokens += targets.numel()
        if counter is not None:
            found = counter.count(block.before.cpu(), targets.cpu())
            if found is None:
                _LOGGER.warning(
                    "bits per byte are nan: some counted tokens are unknown ones of "
                    "the tokenizer, and the bytes that they stand for are not known"
                )
                counter, size = None, 0
            else:
                size += found
    _refuse_nothing_counted(tokens)
    return Evaluation(
        nll=float(sums[0]) / tokens,
        bits_per_byte=float(sums[0]) / math.log(2) / size if size else math.nan,
        accuracy=float(sums[1]) / tokens,
        ece=float((confidence_sum - correct_sum).abs().sum()) / tokens,
        kl_to_teacher=None if teacher is None else float(sums[2]) / tokens,
        agreement=None if teacher is None else float(sums[3]) / tokens,
        tokens=tokens,
        bytes=size,
        temperature=temperature,
    )


def _byte_counter(tokenizer: PreTrainedTokenizerBase) -> ByteCount | None:
    try:
        return byte_count(tokenizer)
    except DataError as error:
        _LOGGER.warning("bits per byte are nan: %s", error)
        return None


def held_out_nll(
    model: nn.Module,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> float:
    """Mean negative log-likelihood of the labels, nats per token; nothing else.

    Args:
        temperature: Divide the logits by this first.
        batch_size: Rows per forward pass.

    Same as in :func:`evaluate`: ``model`` and ``rows``; any ``tokenizer``, since no
    bytes are counted.

    Raises:
        ValueError: Where :func:`evaluate` raises it.
    """
    total = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for block in _blocks(model, rows, tokenizer, None, batch_size):
        loss = nn.functional.cross_entropy(
            block.logits / temperature, block.targets, reduction="sum"
        )
        total += loss.double().cpu()
        tokens += block.targets.numel()
    _refuse_nothing_counted(tokens)
    return float(total) / tokens


def fit_temperature(
    model: nn.Module,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
) -> float:
    """The one temperature that minimises the NLL of the labels.

    Fit it on validation rows and hand it to :func:`evaluate`: what a student gains
    by being better calibrated disappears, what it gains by knowing more stays.

    Args:
        batch_size: Rows per forward pass.

    Same as in :func:`evaluate`: ``model``, ``rows``, ``tokenizer``.

    Returns:
        A temperature in [0.25, 4].

    Raises:
        ValueError: Where :func:`evaluate` raises it.

    Paper: Guo et al. 2017 (arXiv:1706.04599). Taught in notebook 03.
    """
    # One forward pass serves all candidates; the NLL is smooth in log T, so a
    # parabola through the best three finds the minimum between them.
    log_t = torch.linspace(-2, 2, 17, dtype=torch.float64)
    totals = torch.zeros_like(log_t)
    tokens = 0
    for block in _blocks(model, rows, tokenizer, None, batch_size):
        for index, temperature in enumerate((2**log_t).tolist()):
            loss = nn.functional.cross_entropy(
                block.logits / temperature, block.targets, reduction="sum"
            )
            totals[index] += loss.double().cpu()
        tokens += block.targets.numel()
    _refuse_nothing_counted(tokens)
    best = int(totals[1:-1].argmin()) + 1
    left, middle, right = totals[best - 1 : best + 2].tolist()
    bend = left - 2 * middle + right
    if bend > 0:
        shift = 0.5 * (left - right) / bend
    else:  # no minimum between them: the lower end
        shift = float(right < left) - float(left < right)
    step = float(log_t[1] - log_t[0])
    return float(2 ** (log_t[best] + step * max(-1.0, min(1.0, shift))))


def _refuse_nothing_counted(tokens: int) -> None:
    if tokens == 0:
        raise ValueError("rows hold no position that counts: every label is masked")


@dataclass(frozen=True)
class _Block:
    """Some counted positions of a batch.

    Attributes:
        logits: ``[positions, width]``, fp32.
        teacher_logits: The teacher's at the same places.
        targets: ``[positions]``: the labels.
        before: ``[positions]``: the token before each of them.
    """

    logits: torch.Tensor
    teacher_logits: torch.Tensor | None
    targets: torch.Tensor
    before: torch.Tensor


def _blocks(
    model: nn.Module,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    teacher: nn.Module | None,
    batch_size: int,
) -> Iterator[_Block]:
    """Yield what is counted, block by block."""
    device = reading_device(model)
    networks = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    readers = {who: HeadReader(who, fused=True) for who in networks}
    limits = [Limits.of(who, network) for who, network in networks.items()]
    size = vocabulary_size(tokenizer)
    longest = 0
    with eval_mode(model, teacher):
        for batch in _batches(rows, collator_for(tokenizer), batch_size):
            labels = batch["labels"][:, 1:]
            places = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
            if not len(places[0]):
                continue
            _check_tokens(batch, tokenizer, size, limits)
            if batch["input_ids"].shape[1] > longest:
                longest = batch["input_ids"].shape[1]
                for limit in limits:
                    limit.check_length(longest)
            batch = {name: value.to(device) for name, value in batch.items()}
            targets = batch["labels"][:, 1:][places]
            before = batch["input_ids"][:, :-1][places]
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                read = [readers[who].read(networks[who], inputs) for who in networks]
            read = _cut(read, tokenizer, size, int(targets.max()))
            numbers = _BLOCK.get(device.type, _BLOCK["cpu"])
            step = max(_LEAST_ROWS, numbers // _width(read[0]))
            for start in range(0, len(targets), step):
                some = slice(start, start + step)
                at = (places[0][some].to(device), places[1][some].to(device))
                logits = [_logits(one, at) for one in read]
                yield _Block(
                    logits[0],
                    None if teacher is None else logits[1],
                    targets[some],
                    before[some],
                )


def _batches(
    rows: Rows, collate: Collator, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if isinstance(rows, Mapping):
        raise ValueError(
            f"rows are a mapping of {sorted(rows)}; pass one of its datasets, such as "
            'rows["test"], or Dataset.from_dict(rows) if these are columns'
        )
    found = iter(progress_bar(rows, desc="judging", unit="row", leave=False))
    while batch := list(islice(found, batch_size)):
        for row in batch:
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"rows hold a {type(row).__name__}; pass a Dataset, a stream of "
                    "datasets or dicts, with input_ids (data.pack, data.stream_rows)"
                )
            if row.get("position_ids") is not None:
                raise ValueError(
                    "rows come from pack_examples; judge the examples themselves, one "
                    "to a row"
                )
        yield collate(batch)


def _check_tokens(
    batch: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    limits: Sequence[Limits],
) -> None:
    """Refuse token ids that somebody does not know."""
    highest = int(batch["input_ids"].max())
    is_pad = bool(
        ((batch["input_ids"] == highest) & (batch["attention_mask"] == 0)).any()
    )
    for limit in limits:
        limit.check_ids(highest, "the tokenizer's pad token" if is_pad else "a row")
    label = int(batch["labels"].max())
    if label >= size:
        raise ValueError(
            f"rows have a label {label}, and the highest id of the tokenizer "
            f"({type(tokenizer).__name__}) is {size - 1}; pass the tokenizer that "
            "made the rows"
        )


_Reading: TypeAlias = torch.Tensor | Hidden


def _width(reading: _Reading) -> int:
    return reading.vocabulary if isinstance(reading, Hidden) else reading.shape[-1]


def _cut(
    readings: list[_Reading],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    highest: int,
) -> list[_Reading]:
    """Take off the outputs that only pad a head; see :func:`evaluate`.

    Args:
        readings: What the model says, and the teacher if there is one.
        tokenizer: The tokenizer, whose ids may have gaps.
        size: Its highest id, and one.
        highest: Label of the batch.
    """
    differ = len({_width(one) for one in readings}) > 1
    if differ or len(tokenizer) >= size:
        readings = [cut_outputs(one, size) for one in readings]
    widths = [_width(one) for one in readings]
    if len(set(widths)) > 1 or widths[0] <= highest:
        raise ValueError(
            f"heads of {' and '.join(map(str, widths))} outputs (model, teacher) "
            f"cannot be judged on labels up to {highest} with a tokenizer whose ids "
            f"end at {size - 1}; call model.resize_token_embeddings(len(tokenizer)) "
            "after tokens were added, or pass the models' own tokenizer"
        )
    return readings


def _logits(reading: _Reading, at: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Logits at some places, fp32, ``[places, width]``."""
    with torch.inference_mode():
        if isinstance(reading, Hidden):
            return replace(reading, states=reading.states[at]).logits().float()
        return reading[at].float()
