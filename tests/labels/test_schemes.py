"""What a scheme keeps of a distribution, and that draws are fair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill_helpers.labels.schemes import (
    decode,
    encode,
    pack_ids,
    scheme_for,
    systematic_draws,
    unpack_ids,
)


@pytest.mark.parametrize("bits", [1, 8, 9, 11, 16, 18])
def test_ids_survive_packing(bits):
    ids = np.random.default_rng(0).integers(0, 2**bits, (7, 5))
    packed = pack_ids(ids, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (7, -(-5 * bits // 8))
    assert np.array_equal(unpack_ids(packed, bits, 5), ids)


def test_draws_are_unbiased_and_steadier_than_independent_ones():
    torch.manual_seed(0)
    p = torch.randn(1, 192).mul(2).softmax(-1)
    rounds, count = 20_000, 12
    offsets = torch.rand(rounds, dtype=torch.float64)
    draws = systematic_draws(p.expand(rounds, -1).contiguous(), count, offsets)
    counts = torch.zeros(rounds, 192).scatter_add_(1, draws, torch.ones(draws.shape))
    error = counts.mean(0) / count - p[0]
    assert error.abs().max() < 4e-3
    # A token that deserves 2.4 draws gets 2 or 3.
    assert bool(((counts - count * p).abs() < 1 + 1e-4).all())
    independent = count * p * (1 - p)
    assert counts.var(0).sum() < 0.6 * independent.sum()


def test_draws_never_name_a_token_without_weight():
    p = torch.zeros(4, 128)
    p[0, 3] = 1.0
    p[1, 127] = 1e-30
    p[2, 5:9] = 0.25
    p[3, 64] = 0.5
    for offset in (0.0, 0.3, 1 - 1e-16):
        draws = systematic_draws(p, 5, torch.full((4,), offset, dtype=torch.float64))
        assert bool((p.gather(1, draws) > 0).all())


@pytest.mark.parametrize("vocabulary", [128, 300])
def test_hybrid_keeps_the_top_exactly_and_the_mean_of_the_rest(vocabulary):
    torch.manual_seed(1)
    logits = torch.randn(1, vocabulary) * 2
    p = logits.softmax(-1)[0]
    scheme = scheme_for("hybrid", vocabulary, top_k=4, samples=6)
    rounds = 8000
    columns = encode(
        logits.expand(rounds, -1).clone(),
        scheme,
        torch.rand(rounds, dtype=torch.float64),
    )
    targets = decode(columns, scheme, 1.0)
    dense = torch.zeros(rounds, vocabulary).scatter_add_(
        1, targets.ids, targets.weights
    )
    torch.testing.assert_close(dense.sum(-1), torch.ones(rounds))
    top = p.topk(4).indices
    torch.testing.assert_close(
        dense[:, top], p[top].expand(rounds, -1), rtol=2e-3, atol=1e-4
    )
    assert (dense.mean(0) - p).abs().max() < 3e-3
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(targets.entropy, entropy.expand(rounds))


def test_tail_bucket_holds_what_the_top_leaves():
    logits = torch.randn(5, 256)
    p = logits.softmax(-1)
    scheme = scheme_for("tail_bucket", 256, top_k=16)
    targets = decode(encode(logits.clone(), scheme, torch.zeros(5)), scheme, 1.0)
    wanted = 1 - p.topk(16).values.sum(-1)
    torch.testing.assert_close(targets.tail, wanted, rtol=0, atol=2e-3)


def test_size_of_the_default_at_the_real_vocabulary():
    assert scheme_for("hybrid", 49_152).bytes_per_position <= 100


@pytest.mark.parametrize("possible", [1, 3, 70])
@pytest.mark.parametrize("vocabulary", [65, 100, 191, 50_257])
@pytest.mark.parametrize("name", ["top_k", "tail_bucket", "sampled", "hybrid"])
def test_no_id_is_stored_that_does_not_exist(name, vocabulary, possible):
    """Where a teacher rules out all but a few tokens, and V is no multiple of 64."""
    torch.manual_seed(0)
    possible = min(possible, vocabulary)
    logits = torch.full((5, vocabulary), -torch.inf)
    logits[:, -possible:] = torch.randn(5, possible)
    right = torch.softmax(logits, -1)
    scheme = scheme_for(name, vocabulary, top_k=32, samples=24)
    columns = encode(logits.clone(), scheme, torch.rand(5, dtype=torch.float64))
    found = decode(columns, scheme, 1.0)
    assert found.ids.max() < vocabulary
    if scheme.top_k:
        top = found.ids[:, : scheme.top_k]
        assert all(len(set(row.tolist())) == scheme.top_k for row in top)
    # What carries weight is what the teacher may say, and all of that where it fits.
    carried = right.gather(-1, found.ids)[
        found.weights > 1e-3
    ]  # beside what fp16 rounds
    assert carried.min() > 0
    if possible <= 3 and scheme.top_k:
        stored = torch.zeros_like(right).scatter_add_(-1, found.ids, found.weights)
        torch.testing.assert_close(stored, right, atol=1e-3, rtol=0)
