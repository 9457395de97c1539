"""What to keep of a teacher's distribution, and what comes back.

A vocabulary of 50,000 in fp16 costs 100 KB a token; a useful cache about 100 bytes.

=============== ====================================================== =========
scheme          stored                                                 estimator
=============== ====================================================== =========
``full``        every log-probability, fp16                            exact
``top_k``       the k likeliest tokens, renormalised                   biased
``tail_bucket`` the k likeliest, and all others as one class           biased
``sampled``     tokens drawn from the whole distribution               unbiased
``hybrid``      the k likeliest exactly, and draws from the rest       unbiased
=============== ====================================================== =========

Draws are *systematic*: one random offset per position, then evenly spaced points on
the cumulated probabilities. Each token is expected as often as among independent draws,
so the estimate is unbiased too, but a token that deserves 2.4 of the draws gets 2 or 3.

Taught in notebook 04. Papers: Anshumann et al. 2025 (Sparse Logit Sampling,
arXiv:2503.16870) for sampled soft labels; Madow and Madow 1944 for systematic sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill_helpers.losses import SparseTargets

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMES = ("full", "top_k", "tail_bucket", "sampled", "hybrid")
# Sums and maxima of whole groups of tokens find the few that matter.
_GROUP = 64


@dataclass(frozen=True)
class Scheme:
    """What is kept of a distribution.

    Attributes:
        name: One of ``SCHEMES``.
        top_k: Likeliest tokens kept with their probabilities.
        samples: Tokens drawn.
        vocabulary: Outputs of the teacher's head.
    """

    name: str
    top_k: int
    samples: int
    vocabulary: int

    @property
    def id_bits(self) -> int:
        """Bits of one token id."""
        return max(1, math.ceil(math.log2(self.vocabulary)))

    @property
    def bytes_per_position(self) -> int:
        """Bytes that one distribution takes, entropy included."""
        if self.name == "full":
            return 2 * self.vocabulary + 4
        ids = [self.top_k, self.samples]
        packed = sum(math.ceil(count * self.id_bits / 8) for count in ids)
        return packed + 2 * self.top_k + 4


def scheme_for(
    name: str, vocabulary: int, *, top_k: int = 8, samples: int = 24
) -> Scheme:
    """Check the options of a scheme.

    Args:
        name: One of ``SCHEMES``.
        vocabulary: Outputs of the teacher's head.
        top_k: Ignored by ``full`` and ``sampled``.
        samples: Ignored by ``full``, ``top_k`` and ``tail_bucket``.
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme={name!r} is unknown; choose one of {SCHEMES}")
    draws = name in ("sampled", "hybrid")
    tops = name in ("top_k", "tail_bucket", "hybrid")
    if tops and not 1 <= top_k < vocabulary:
        raise ValueError(
            f"top_k={top_k} must lie between 1 and {vocabulary - 1} (below the "
            "vocabulary)"
        )
    if draws and samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    return Scheme(name, top_k if tops else 0, samples if draws else 0, vocabulary)


def encode(
    logits: torch.Tensor, scheme: Scheme, offsets: torch.Tensor
) -> dict[str, NDArray[Any]]:
    """What a scheme keeps of ``[positions, vocabulary]`` logits, as columns.

    Args:
        logits: fp32, divided by T already; overwritten.
        scheme: From :func:`scheme_for`.
        offsets: ``[positions]`` in [0, 1), for the draws.

    Raises:
        ValueError: If a teacher gives NaN.
    """
    top = logits.amax(-1, keepdim=True)
    p = torch.softmax(logits, -1)
    log_total = top - p.amax(-1, keepdim=True).log()
    entropy = log_total.squeeze(-1) - torch.linalg.vecdot(p, logits)
    if bool(entropy.isnan().any()):
        # A token that is ruled out has no share in the entropy: 0 * -inf is 0 here.
        known = torch.linalg.vecdot(p, logits.masked_fill(p == 0, 0.0))
        entropy = log_total.squeeze(-1) - known
        if bool(entropy.isnan().any()):
            raise ValueError(
                "the teacher's logits hold NaN; look for an fp16 overflow, or a "
                "position whose every logit is -inf"
            )
    columns = {"entropy": entropy.clamp(min=0).cpu().numpy()}
    if scheme.name == "full":
        columns["log_p"] = (logits - log_total).half().cpu().numpy()
        return columns
    if p.shape[-1] % _GROUP:
        # What fills the last group is never among the largest, not even where a teacher
        # rules all but a few tokens out.
        p = torch.nn.functional.pad(p, (0, -p.shape[-1] % _GROUP), value=-1.0)
    if scheme.top_k:
        ids, weights = _largest(p, scheme.top_k)
        columns["top_ids"] = pack_ids(ids.cpu().numpy(), scheme.id_bits)
        columns["top_weights"] = weights.half().cpu().numpy()
        p.scatter_(-1, ids, 0.0)
    if scheme.samples:
        p[:, logits.shape[-1] :] = 0.0  # nor is it drawn
        draws = systematic_draws(p, scheme.samples, offsets)
        columns["draws"] = pack_ids(draws.cpu().numpy(), scheme.id_bits)
    return columns


def _largest(p: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row: they are in the k groups with the largest maxima."""
    groups = p.unflatten(-1, (-1, _GROUP))
    chosen = groups.amax(-1).topk(min(k, groups.shape[1])).indices
    inside = groups.gather(1, chosen.unsqueeze(-1).expand(-1, -1, _GROUP)).flatten(1)
    weights, where = inside.topk(k)
    group = chosen.gather(1, where // _GROUP)
    return group * _GROUP + where % _GROUP, weights


def systematic_draws(
    p: torch.Tensor, count: int, offsets: torch.Tensor
) -> torch.Tensor:
    """Draw tokens at evenly spaced points of the cumulated probabilities.

    Args:
        p: Weights ``[positions, vocabulary]``, a multiple of 64 wide; they need not
            sum to 1.
        count: Draws per position.
        offsets: Where in the first interval the points begin, ``[positions]``.

    Returns:
        Ids ``[positions, count]``. Token i is expected ``count * p_i / sum(p)`` times.
    """
    groups = p.unflatten(-1, (-1, _GROUP))
    sums = groups.sum(-1).double()
    ends = sums.cumsum(-1)
    steps = torch.arange(count, dtype=torch.float64, device=p.device)
    points = (steps + offsets.double().unsqueeze(-1)) / count * ends[:, -1:]
    group = torch.searchsorted(ends, points, right=True)
    # Rounding may put a point behind the last group, or below the last token, that
    # has any weight; argmax finds where the sums reach their final value.
    group = torch.minimum(group, ends.argmax(-1, keepdim=True))
    rest = points - (ends - sums).gather(1, group)
    inside = groups.gather(1, group.unsqueeze(-1).expand(-1, -1, _GROUP))
    inside = inside.double().cumsum(-1)
    where = (inside <= rest.unsqueeze(-1)).sum(-1)
    where = torch.minimum(where, inside.argmax(-1))
    return group * _GROUP + where


def kept_entropy(weights: NDArray[Any]) -> NDArray[np.float32]:
    """The entropy of the likeliest tokens and of all others as one class, in nats.

    That is all that is known of a served teacher's; the whole entropy is larger.

    Args:
        weights: ``[positions, k]`` probabilities; NaN, where nothing is known, stays.
    """
    p = torch.from_numpy(weights.astype(np.float64))
    tail = (1 - p.sum(-1)).clamp(min=0)
    entropy = -torch.xlogy(p, p).sum(-1) - torch.xlogy(tail, tail)
    found: NDArray[np.float32] = entropy.float().numpy()
    return found


def pack_ids(ids: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Ids ``[n, k]`` as ``[n, bytes]`` with ``bits`` bits each."""
    if bits == 16:
        return ids.astype("<u2").view(np.uint8)
    shifts = np.arange(bits, dtype=np.uint32)
    raised = (ids.astype(np.uint32)[..., None] >> shifts & 1).astype(np.uint8)
    return np.packbits(raised.reshape(len(ids), -1), axis=-1, bitorder="little")


def unpack_ids(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """The inverse of :func:`pack_ids`; ``[n, count]``."""
    if bits == 16:
        return packed.view("<u2").astype(np.int64)
    flat = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    powers = 1 << np.arange(bits, dtype=np.int64)
    return flat.reshape(len(packed), count, bits) @ powers


def decode(
    columns: Mapping[str, NDArray[Any]], scheme: Scheme, temperature: float
) -> SparseTargets:
    """Columns of :func:`encode` ``[positions, …]`` as targets for a loss."""
    entropy = torch.from_numpy(columns["entropy"])
    ids, weights = [], []
    rest = torch.ones(len(entropy))
    if scheme.top_k:
        ids.append(unpack_ids(columns["top_ids"], scheme.id_bits, scheme.top_k))
        weights.append(torch.from_numpy(columns["top_weights"]).float())
        rest = (1 - weights[0].sum(-1)).clamp(min=0)
    if scheme.samples:
        ids.append(unpack_ids(columns["draws"], scheme.id_bits, scheme.samples))
        share = rest / scheme.samples
        weights.append(share.unsqueeze(-1).expand(-1, scheme.samples))
    all_ids = torch.from_numpy(np.concatenate(ids, -1))
    all_weights = torch.cat(weights, -1)
    if scheme.name == "tail_bucket":
        return SparseTargets(
            all_ids, all_weights, rest, None, temperature, checked=True
        )
    # fp16 rounds; a distribution sums to one.
    all_weights = all_weights / all_weights.sum(-1, keepdim=True).clamp(min=1e-9)
    # What was cut off for good has no entropy to compare with.
    known = None if scheme.name == "top_k" else entropy
    return SparseTargets(all_ids, all_weights, None, known, temperature, checked=True)
