"""The fused loss equals the plain one: values, gradients, masks, chunks, errors."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from distill_helpers.losses import (
    Head,
    Hidden,
    SparseTargets,
    fused,
    hard_label_loss,
    soft_label_loss,
)


# Labels are aligned with the positions here; the section at the end has them unshifted.
def fused_soft_label_loss(hidden, head, theirs, their_head, labels, **options):
    """The loss of a student whose logits are never held."""
    teacher = theirs if their_head is None else Hidden(theirs, their_head)
    options = {"shift": False, **options}
    return soft_label_loss(Hidden(hidden, head), teacher, labels, **options)


def fused_hard_label_loss(hidden, head, labels, **options):
    """Likewise, of labels alone."""
    options = {"shift": False, **options}
    return hard_label_loss(Hidden(hidden, head), labels, **options)


sparse_soft_label_loss = partial(soft_label_loss, shift=False)

N, H, HT, V = 37, 12, 20, 53
KINDS = [
    ("forward_kl", 0.5),
    ("reverse_kl", 0.5),
    ("jsd", 0.5),
    ("jsd", 0.1),
    ("jsd", 0.0),
    ("jsd", 1.0),
]
MASKS = ["none", "quarter", "all but one", "first half"]


def _inputs(mask="quarter", *, seed=0, dtype=torch.float32, spread=3.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = draw(N, H)
    head = draw(V, H) * spread / H**0.5
    teacher_hidden = draw(N, HT)
    teacher_head = draw(V, HT) * spread / HT**0.5
    labels = torch.randint(0, V, (N,), generator=generator)
    if mask == "quarter":
        labels[torch.rand(N, generator=generator) < 0.25] = -100
    elif mask == "all but one":
        labels[torch.arange(N) != 5] = -100
    elif mask == "first half":
        labels[: N // 2] = -100
    tensors = [t.to(dtype) for t in (hidden, head, teacher_hidden, teacher_head)]
    for tensor in tensors:
        tensor.requires_grad_()
    return (*tensors, labels)


def _plain(hidden, head, teacher_hidden, teacher_head, labels, **options):
    """The loss of `losses`, in float64, with autograd through both products."""
    leaves = [t.detach().double().requires_grad_() for t in (hidden, head)]
    teacher = teacher_hidden.double() @ teacher_head.double().T
    loss = soft_label_loss(
        leaves[0] @ leaves[1].T, teacher, labels, shift=False, **options
    )
    loss.loss.backward()
    return loss, [leaf.grad for leaf in leaves]


def _close(ours, reference, relative=1e-5):
    error = (ours.double() - reference).norm() / reference.norm().clamp(min=1e-12)
    assert error < relative, float(error)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("divergence", "beta"), KINDS)
def test_equals_the_plain_loss(divergence, beta, mask):
    for temperature, alpha, chunk in itertools.product(
        (0.7, 1.0, 4.0), (0.0, 0.3, 1.0), (None, 1, 7, N)
    ):
        options = {
            "temperature": temperature,
            "alpha": alpha,
            "divergence": divergence,
            "beta": beta,
        }
        inputs = _inputs(mask)
        reference, gradients = _plain(*inputs, **options)
        ours = fused_soft_label_loss(*inputs, chunk_tokens=chunk, **options)
        ours.loss.backward()
        for name in ("loss", "soft", "hard"):
            _close(getattr(ours, name), getattr(reference, name))
        for tensor, gradient in zip(inputs[:2], gradients, strict=True):
            _close(tensor.grad, gradient)
        assert inputs[2].grad is None
        assert inputs[3].grad is None
        assert ours.num_items == reference.num_items


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_t2_and_num_items(scale_by_t2):
    inputs = _inputs()
    options = {
        "temperature": 2.0,
        "alpha": 0.4,
        "scale_by_t2": scale_by_t2,
        "num_items": torch.tensor(100),
    }
    reference, gradients = _plain(*inputs, **options)
    ours = fused_soft_label_loss(*inputs, **options)
    (3 * ours.loss).backward()
    _close(ours.loss, reference.loss)
    _close(inputs[1].grad, 3 * gradients[1])


@pytest.mark.parametrize("padding", [0, 5], ids=["", "padded head"])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("width", [96, 60, 24])
def test_the_first_chunk_may_lie_in_the_heads_gradient(
    monkeypatch, width, dense, padding
):
    """All rows in it, a part of them, and (too narrow a head) none."""
    tokens, vocabulary = 45, 211
    # Room for 16 rows a chunk; for more in the gradient if the head is wide enough.
    monkeypatch.setitem(fused._BUFFER_BYTES, "cpu", 16 * 2 * 4 * vocabulary)
    lent = []
    lend = fused._Gradients.logits_in_head_grad

    def watched(self, rows, *options):
        lent.append(rows)
        return lend(self, rows, *options)

    monkeypatch.setattr(fused._Gradients, "logits_in_head_grad", watched)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = [draw(tokens, width), draw(vocabulary + padding, width) / width**0.5]
    inputs += [draw(tokens, 20), draw(vocabulary, 20) / 20**0.5]
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[::6] = -100
    for tensor in inputs:
        tensor.requires_grad_()
    if dense:
        options = {"temperature": 2.0, "alpha": 0.3, "divergence": "jsd"}
        shared = [inputs[0], inputs[1][:vocabulary], *inputs[2:]]
        reference, gradients = _plain(*shared, labels, **options)
        ours = fused_soft_label_loss(*inputs, labels, **options).loss
        expected = reference.loss
    else:
        leaves = [t.detach().double().requires_grad_() for t in inputs[:2]]
        expected = hard_label_loss(leaves[0] @ leaves[1].T, labels, shift=False)
        expected.backward()
        gradients = [leaf.grad for leaf in leaves]
        ours = fused_hard_label_loss(*inputs[:2], labels)
    ours.backward()
    _close(ours, expected)
    for tensor, gradient in zip(inputs[:2], gradients, strict=True):
        _close(tensor.grad[: len(gradient)], gradient)
    if dense:
        assert not inputs[1].grad[vocabulary:].any()
    counted = int((labels != -100).sum())
    possible = {96: counted, 60: 30 if dense else counted, 24: 0 if dense else 24}
    assert sum(lent) == possible[width]


def test_hard_labels_alone():
    hidden, head, _, _, labels = _inputs()
    ours = fused_hard_label_loss(hidden, head, labels, chunk_tokens=5)
    ours.backward()
    leaves = [t.detach().double().requires_grad_() for t in (hidden, head)]
    loss = hard_label_loss(leaves[0] @ leaves[1].T, labels, shift=False)
    loss.backward()
    _close(ours, loss)
    _close(hidden.grad, leaves[0].grad)
    _close(head.grad, leaves[1].grad)


@pytest.mark.parametrize(("divergence", "beta"), KINDS)
def test_gradients_match_finite_differences(divergence, beta):
    inputs = _inputs(dtype=torch.float64)

    def loss(hidden, head):
        return fused_soft_label_loss(
            hidden,
            head,
            *inputs[2:],
            temperature=1.7,
            alpha=0.6,
            divergence=divergence,
            beta=beta,
            chunk_tokens=10,
        ).loss

    for which in range(2):
        direction = torch.randn_like(inputs[which])
        moved = [list(inputs[:2]) for _ in range(2)]
        moved[0][which] = inputs[which] + 1e-5 * direction
        moved[1][which] = inputs[which] - 1e-5 * direction
        slope = (loss(*moved[0]) - loss(*moved[1])).item() / 2e-5
        (gradient,) = torch.autograd.grad(loss(*inputs[:2]), inputs[which])
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_bias_scale_and_soft_cap(temperature):
    hidden, weight, teacher_hidden, teacher_weight, labels = _inputs(
        dtype=torch.float64
    )
    bias = torch.randn(V, dtype=torch.float64, requires_grad=True)
    options = {"temperature": temperature, "alpha": 0.5}

    def logits(inputs, head):
        raw = head.scale * (inputs @ head.weight.T + head.bias)
        return head.soft_cap * torch.tanh(raw / head.soft_cap)

    student = Head(weight, bias, scale=0.5, soft_cap=4.0)
    teacher = Head(teacher_weight, torch.ones(V).double(), scale=2.0, soft_cap=9.0)
    ours = fused_soft_label_loss(
        hidden, student, teacher_hidden, teacher, labels, chunk_tokens=8, **options
    )
    leaves = (hidden, weight, bias)
    found = torch.autograd.grad(ours.loss, leaves)
    reference = soft_label_loss(
        logits(hidden, student),
        logits(teacher_hidden, teacher),
        labels,
        shift=False,
        **options,
    )
    wanted = torch.autograd.grad(reference.loss, leaves)
    _close(ours.loss, reference.loss)
    for mine, theirs in zip(found, wanted, strict=True):
        _close(mine, theirs)


def test_heads_of_unequal_width_are_cut():
    hidden, head, teacher_hidden, teacher_head, labels = _inputs()
    narrow = labels.clamp(max=V - 8)
    reference, _ = _plain(hidden, head[:-7], teacher_hidden, teacher_head[:-7], narrow)
    for mine, theirs in ((head[:-7], teacher_head), (head, teacher_head[:-7])):
        mine = mine.detach().clone().requires_grad_()
        ours = fused_soft_label_loss(hidden, mine, teacher_hidden, theirs, narrow)
        ours.loss.backward()
        _close(ours.loss, reference.loss)
        assert mine.grad[V - 7 :].abs().sum() == 0


def test_given_teacher_logits():
    inputs = _inputs()
    reference, gradients = _plain(*inputs, temperature=2.0)
    logits = (inputs[2] @ inputs[3].T).detach()
    before = logits.clone()
    ours = fused_soft_label_loss(
        *inputs[:2], logits, None, inputs[4], temperature=2.0, chunk_tokens=6
    )
    ours.loss.backward()
    _close(ours.loss, reference.loss)
    _close(inputs[1].grad, gradients[1])
    assert torch.equal(logits, before), "the caller's logits were overwritten"


@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_as_sparse_targets_are_the_whole_distribution(alpha, temperature):
    inputs = _inputs()
    options = {"alpha": alpha, "temperature": temperature}
    reference, gradients = _plain(*inputs, **options)
    p = ((inputs[2] @ inputs[3].T) / temperature).detach().softmax(-1)
    order = torch.argsort(torch.rand(N, V), -1)
    entropy = -torch.xlogy(p, p).sum(-1)
    for stored_entropy in (entropy, None):
        targets = SparseTargets(
            order, p.gather(-1, order), None, stored_entropy, temperature
        )
        for tensor in inputs[:2]:
            tensor.grad = None
        ours = fused_soft_label_loss(
            *inputs[:2], targets, None, inputs[4], chunk_tokens=9, **options
        )
        ours.loss.backward()
        _close(ours.loss, reference.loss)
        _close(inputs[0].grad, gradients[0])
        _close(inputs[1].grad, gradients[1])


def test_tail_bucket_is_a_divergence_over_k_plus_one_classes():
    hidden, head, teacher_hidden, teacher_head, labels = _inputs(dtype=torch.float64)
    p = (teacher_hidden @ teacher_head.T).detach().softmax(-1)
    weights, ids = p.topk(5)
    targets = SparseTargets(ids, weights, 1 - weights.sum(-1), None, 1.0)
    ours = fused_soft_label_loss(hidden, head, targets, None, labels, chunk_tokens=4)
    found = torch.autograd.grad(ours.loss, (hidden, head))

    q = (hidden @ head.T).softmax(-1)
    known = q.gather(-1, ids)
    coarse_q = torch.cat([known, 1 - known.sum(-1, keepdim=True)], -1)
    coarse_p = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
    counted = labels != -100
    value = (coarse_p * (coarse_p / coarse_q).log()).sum(-1)[counted].mean()
    _close(ours.loss, value)
    wanted = torch.autograd.grad(value, (hidden, head))
    for mine, theirs in zip(found, wanted, strict=True):
        _close(mine, theirs, 1e-8)


def test_zero_at_equality():
    hidden, head, _, _, labels = _inputs()
    for kind, beta in KINDS:
        ours = fused_soft_label_loss(
            hidden, head, hidden, head, labels, divergence=kind, beta=beta
        )
        (gradient,) = torch.autograd.grad(ours.loss, hidden)
        assert abs(ours.loss.item()) < 2e-6
        assert gradient.abs().max() < 1e-6


def test_tokens_that_are_ruled_out():
    inputs = _inputs(dtype=torch.float64)
    labels = inputs[4].clamp(max=V - 4)
    bias = torch.zeros(V, dtype=torch.float64)
    bias[-3:] = -torch.inf
    student, teacher = Head(inputs[1], bias), Head(inputs[3], bias)
    for kind, beta in KINDS:
        ours = fused_soft_label_loss(
            inputs[0], student, inputs[2], teacher, labels, divergence=kind, beta=beta
        )
        gradients = torch.autograd.grad(ours.loss, inputs[:2])
        reference = fused_soft_label_loss(
            inputs[0],
            inputs[1][:-3],
            inputs[2],
            inputs[3][:-3],
            labels,
            divergence=kind,
            beta=beta,
        )
        _close(ours.loss, reference.loss)
        assert all(g.isfinite().all() for g in gradients)


def test_what_stands_at_ignored_positions_does_not_matter():
    inputs = _inputs()
    ignored = inputs[4] == -100
    clean = fused_soft_label_loss(*inputs)
    with torch.no_grad():
        inputs[0][ignored] = torch.nan
        inputs[2][ignored] = -torch.inf
    dirty = fused_soft_label_loss(*inputs)
    dirty.loss.backward()
    assert dirty.loss == clean.loss
    assert inputs[0].grad[ignored].abs().sum() == 0
    assert inputs[1].grad.isfinite().all()


def test_no_counted_position_gives_a_zero_with_a_graph():
    inputs = _inputs()
    loss = fused_soft_label_loss(*inputs[:4], torch.full((N,), -100)).loss
    loss.backward()
    assert loss == 0
    assert inputs[0].grad.abs().sum() == 0
    assert inputs[1].grad.abs().sum() == 0


def test_micro_batches_add_up():
    inputs = _inputs()
    count = int((inputs[4] != -100).sum())
    fused_soft_label_loss(*inputs, alpha=0.5).loss.backward()
    whole = [t.grad.clone() for t in inputs[:2]]
    for tensor in inputs[:2]:
        tensor.grad = None
    for part in torch.arange(N).chunk(4):
        hidden, head, teacher_hidden, teacher_head, labels = inputs
        fused_soft_label_loss(
            hidden[part],
            head,
            teacher_hidden[part],
            teacher_head,
            labels[part],
            alpha=0.5,
            num_items=count,
        ).loss.backward()
    for tensor, gradient in zip(inputs[:2], whole, strict=True):
        _close(tensor.grad, gradient.double())


def test_a_frozen_head_gets_no_gradient_and_no_grad_mode_computes_none():
    inputs = _inputs()
    fused_soft_label_loss(inputs[0], inputs[1].detach(), *inputs[2:]).loss.backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is None
    with torch.no_grad():
        assert not fused_soft_label_loss(*inputs).loss.requires_grad


def test_gradient_of_the_head_is_handed_over_not_copied():
    hidden, head, *rest = _inputs()
    loss = fused_soft_label_loss(hidden, head, *rest).loss
    buffer = loss.grad_fn.gradients[1].data_ptr()
    loss.backward()
    assert head.grad.data_ptr() == buffer


def test_a_second_backward_says_why_it_cannot():
    loss = fused_soft_label_loss(*_inputs()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it again"):
        loss.backward()


def test_autocast_matches_plain_autocast():
    inputs = _inputs()
    options = {"alpha": 0.5, "temperature": 2.0}
    _, gradients = _plain(*inputs, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fused_soft_label_loss(*inputs, **options)
        logits = inputs[0] @ inputs[1].T
        teacher = inputs[2] @ inputs[3].T
    assert logits.dtype == torch.bfloat16
    plain = soft_label_loss(logits, teacher, inputs[4], shift=False, **options)
    _close(ours.loss, plain.loss.double(), 1e-5)
    ours.loss.backward()
    assert inputs[1].grad.dtype == torch.float32
    for tensor, gradient in zip(inputs[:2], gradients, strict=True):
        _close(tensor.grad, gradient, 0.02)


def test_many_chunks_in_bf16_are_summed_in_fp32():
    inputs = [t.repeat(20, 1) if t.shape[0] == N else t for t in _inputs()[:4]]
    leaves = [t.detach().requires_grad_() for t in inputs]
    labels = torch.randint(0, V, (20 * N,))
    _, gradients = _plain(*leaves, labels)
    errors = []
    for chunk in (20 * N, 2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = fused_soft_label_loss(*leaves, labels, chunk_tokens=chunk).loss
        (found,) = torch.autograd.grad(loss, leaves[1])
        errors.append(float((found - gradients[1]).norm() / gradients[1].norm()))
    # A running sum that is rounded to bf16 370 times is off by ten times as much.
    assert errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"divergence": "kl"}, "divergence='kl'"),
        ({"chunk_tokens": 0}, "chunk_tokens=0"),
        ({"num_items": 0}, "num_items=0"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        fused_soft_label_loss(*_inputs(), **change)


def test_shapes_that_do_not_fit():
    hidden, head, teacher_hidden, teacher_head, labels = _inputs()
    with pytest.raises(ValueError, match=r"student\.states has shape"):
        fused_soft_label_loss(hidden[:-1], head, teacher_hidden, teacher_head, labels)
    with pytest.raises(ValueError, match=r"teacher\.head has shape"):
        fused_soft_label_loss(hidden, head, teacher_hidden, head, labels)
    with pytest.raises(ValueError, match="teacher has shape"):
        fused_soft_label_loss(hidden, head, teacher_hidden[:-1], None, labels)
    with pytest.raises(ValueError, match="labels holds the id 53"):
        fused_soft_label_loss(
            hidden, head, teacher_hidden, teacher_head, torch.full((N,), V)
        )


def test_nan_is_refused_by_name():
    inputs = _inputs("none")
    with torch.no_grad():
        inputs[2][3] = torch.nan
    with pytest.raises(ValueError, match=r"teacher\.states holds NaN"):
        fused_soft_label_loss(*inputs)


def test_sparse_targets_serve_forward_kl_at_their_own_temperature():
    hidden, head, _, _, labels = _inputs()
    targets = SparseTargets(
        torch.zeros(N, 1, dtype=torch.long), torch.ones(N, 1), None, None, 2.0
    )
    with pytest.raises(ValueError, match=r"taken at 2\.0"):
        fused_soft_label_loss(hidden, head, targets, None, labels)
    with pytest.raises(ValueError, match="only 'forward_kl'"):
        fused_soft_label_loss(
            hidden,
            head,
            targets,
            None,
            labels,
            temperature=2.0,
            divergence="reverse_kl",
        )


# --- targets that were made by hand -------------------------------------------------


def server_s_top(tokens=6, vocabulary=50, top=5):
    """Hidden states, a head, and the likeliest tokens of a teacher with their rest."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 8, generator=generator)
    weight = torch.randn(vocabulary, 8, generator=generator)
    p = (2 * torch.randn(tokens, vocabulary, generator=generator)).softmax(-1)
    weights, ids = p.topk(top)
    return hidden, weight, ids, weights, 1 - weights.sum(-1)


def both_ways(hidden, weight, targets, labels):
    """The loss chunk by chunk, and from logits that are there already."""
    yield lambda: fused_soft_label_loss(hidden, weight, targets, None, labels).loss
    yield lambda: sparse_soft_label_loss(hidden @ weight.T, targets, labels).loss


def test_a_tail_stands_for_all_other_tokens():
    hidden, weight, ids, weights, tail = server_s_top()
    q = (hidden @ weight.T).double().softmax(-1)
    known = q.gather(-1, ids)
    right = (weights * (weights / known).log()).sum(-1)
    right = (right + tail * (tail / (1 - known.sum(-1))).log()).mean().item()
    targets = SparseTargets(ids, weights, tail, None, 1.0)
    for loss in both_ways(hidden, weight, targets, ids[:, 0]):
        assert loss().item() == pytest.approx(right, rel=1e-5)


BROKEN = {
    "no tail": (lambda i, w, t: (i, w, None), "weights and tail sum to 0"),
    "a tail too much": (lambda i, w, t: (i, w, t + 0.2), "weights and tail sum to 1.2"),
    "logarithms": (lambda i, w, t: (i, w.log(), t), "weights holds -.*exp"),
    "a negative tail": (lambda i, w, t: (i, w * 2, t - w.sum(-1)), "tail holds -"),
    "not a number": (lambda i, w, t: (i, w * torch.nan, t), "weights holds NaN"),
    "a token twice": (
        lambda i, w, t: (torch.cat([i, i[:, :1]], 1), torch.cat([w, w[:, :1]], 1), t),
        "ids names token .* twice",
    ),
    "an unused place": (
        lambda i, w, t: (torch.cat([i, i[:, :1]], 1), F.pad(w, (0, 1)), t),
        "ids names token .* twice",
    ),
    "beyond the vocabulary": (lambda i, w, t: (i + 49, w, t), "vocabulary of 50"),
    "below it": (lambda i, w, t: (i - 50, w, t), "ids holds the token -"),
    "unequal columns": (lambda i, w, t: (i[:, :4], w, t), "one whole number per"),
    "ids as floats": (lambda i, w, t: (i.float(), w, t), "one whole number per"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_distribution_is_refused(what):
    hidden, weight, ids, weights, tail = server_s_top()
    broken, words = BROKEN[what]
    targets = SparseTargets(*broken(ids, weights, tail), None, 1.0)
    for loss in both_ways(hidden, weight, targets, ids[:, 0]):
        with pytest.raises(ValueError, match=words):
            loss()


@pytest.mark.parametrize("what", ["a tail too much", "logarithms", "not a number"])
def test_positions_that_do_not_count_may_hold_anything(what):
    hidden, weight, ids, weights, tail = server_s_top()
    broken = BROKEN[what][0](ids, weights, tail)
    columns = [
        torch.cat([good[:3], bad[3:]])
        for good, bad in zip((ids, weights, tail), broken, strict=True)
    ]
    labels = ids[:, 0].clone()
    labels[3:] = -100
    pairs = [
        SparseTargets(*columns, None, 1.0),
        SparseTargets(ids, weights, tail, None, 1.0),
    ]
    for one, two in zip(
        *(both_ways(hidden, weight, targets, labels) for targets in pairs), strict=True
    ):
        assert one().item() == two().item()


def test_draws_may_come_twice():
    """Their weights add up, and the entropy is that of the whole distribution."""
    hidden, weight, ids, _, _ = server_s_top()
    drawn = torch.stack([ids[:, 0], ids[:, 0], ids[:, 1], ids[:, 2]], 1)
    shares = torch.full(drawn.shape, 0.25)
    entropy = torch.full((len(ids),), 1.5)
    once = torch.stack([ids[:, 0], ids[:, 1], ids[:, 2]], 1)
    added = torch.tensor([0.5, 0.25, 0.25]).expand_as(once)
    pairs = [
        SparseTargets(drawn, shares, None, entropy, 1.0),
        SparseTargets(once, added, None, entropy, 1.0),
    ]
    for loss, want in zip(
        *(both_ways(hidden, weight, targets, ids[:, 0]) for targets in pairs),
        strict=True,
    ):
        assert loss().item() == pytest.approx(want().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_number_dtype(dtype):
    """NumPy on Windows gives int32."""
    hidden, weight, ids, weights, tail = server_s_top()
    targets = SparseTargets(ids, weights, tail, None, 1.0)
    labels = ids[:, 0]
    for one, two in zip(
        both_ways(hidden, weight, targets, labels.to(dtype)),
        both_ways(hidden, weight, targets, labels),
        strict=True,
    ):
        assert one().item() == two().item()
    hard = [
        fused_hard_label_loss(hidden, weight, x) for x in (labels, labels.to(dtype))
    ]
    assert torch.equal(*hard)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_ids_are_refused(dtype):
    hidden, weight, ids, _, _ = server_s_top()
    with pytest.raises(ValueError, match=f"labels has the dtype {dtype}"):
        fused_hard_label_loss(hidden, weight, ids[:, 0].to(dtype))


# --- one alignment ------------------------------------------------------------------


def conversations():
    """Hidden states ``[rows, positions, width]`` and labels with ragged prompts."""
    generator = torch.Generator().manual_seed(3)
    sizes = ((4, 9, H), (V, H), (4, 9, HT), (V, HT))
    parts = [torch.randn(size, generator=generator) for size in sizes]
    labels = torch.randint(0, V, (4, 9), generator=generator)
    for row, prompt in enumerate((2, 5, 1, 7)):
        labels[row, :prompt] = -100
    labels[1, 7:] = -100
    return *(part.requires_grad_() for part in parts), labels


def stored_targets(logits):
    """The whole distribution of each position, as a store would give it."""
    flat = logits.detach().flatten(0, 1).softmax(-1)
    return SparseTargets(torch.arange(V).expand_as(flat), flat, None, None, 1.0)


STUDENTS = {
    "logits": lambda states, head: states @ head.T,
    "hidden": Hidden,
}
TEACHERS = STUDENTS | {
    "stored": lambda states, head: stored_targets(states @ head.T),
    "none": lambda states, head: None,
}


def loss_of(kinds, s, w, t, u, labels, **options):
    """The loss of one kind of student and one of teacher; with none, of labels."""
    student, teacher = STUDENTS[kinds[0]](s, w), TEACHERS[kinds[1]](t, u)
    if teacher is None:
        return hard_label_loss(student, labels, **options)
    return soft_label_loss(student, teacher, labels, **options).loss


ALIGNED = list(itertools.product(STUDENTS, TEACHERS))  # every form of the losses


@pytest.mark.parametrize("kinds", ALIGNED)
def test_labels_are_unshifted_in_every_loss(kinds):
    """By default like the plain loss; aligned ones give another value and gradient."""
    *parts, labels = conversations()
    plain = ("logits", "none" if kinds[1] == "none" else "logits")
    aligned = F.pad(labels[:, 1:], (0, 1), value=-100)
    found = []
    for forms, given, options in (
        (plain, labels, {}),
        (kinds, labels, {}),
        (kinds, aligned, {"shift": False}),
        (kinds, aligned, {}),  # the mistake
    ):
        value = loss_of(forms, *parts, given, **options)
        found.append((value.item(), torch.autograd.grad(value, parts[0])[0]))
    (right, gradient), *same, (other, moved) = found
    for value, grad in same:
        assert value == pytest.approx(right, rel=1e-5)
        torch.testing.assert_close(grad, gradient, rtol=1e-4, atol=1e-6)
    assert abs(other - right) > 1e-3 * right
    assert (moved - gradient).abs().max() > 0.01 * gradient.abs().max()


@pytest.mark.parametrize("kinds", ALIGNED)
def test_flat_labels_beside_rows_are_refused(kinds):
    """Shifted over the ends of rows, they would mean another row's first token."""
    *parts, labels = conversations()
    with pytest.raises(ValueError, match="label"):
        loss_of(kinds, *parts, labels.flatten())


def test_a_sure_student_still_feels_the_tail():
    """Both forms sum what is left; 1 - sum would be lost in rounding."""
    states = torch.eye(2)[:1].clone().requires_grad_()
    head = torch.zeros(50, 2)
    head[7, 0] = 30.0
    targets = SparseTargets(
        torch.tensor([[7]]), torch.tensor([[0.7]]), torch.tensor([0.3]), None, 1.0
    )
    labels = torch.tensor([7])
    found = []
    for student in (Hidden(states, Head(head)), states @ head.T):
        loss = soft_label_loss(student, targets, labels, shift=False).loss
        found.append((loss, *torch.autograd.grad(loss, states, retain_graph=True)))
    (fused, pull), (plain, other) = found
    torch.testing.assert_close(plain, fused)
    torch.testing.assert_close(other, pull)
    assert other.abs().max() > 5
