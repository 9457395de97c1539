"""The contract of losses.py: values, gradients, masks, shift, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from distill_helpers.losses import (
    DIVERGENCES,
    hard_label_loss,
    soft_label_loss,
    token_divergence,
)

NO_LABEL = -100


def random_batch(batch=4, positions=12, vocabulary=50, dtype=torch.float64, seed=0):
    """Student, teacher and labels with ragged prompts and padding."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, positions, vocabulary)
    student, teacher = (
        (2 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)
        for _ in range(2)
    )
    labels = torch.randint(vocabulary, (batch, positions), generator=g)
    for row in range(1, batch):
        labels[row, :row] = NO_LABEL
        labels[row, positions - row :] = NO_LABEL
    return student.requires_grad_(), teacher, labels


def counted(labels):
    """Mask of the logits' positions that count."""
    return F.pad(labels[:, 1:], (0, 1), value=NO_LABEL) != NO_LABEL


def plain_loss(student, teacher, labels, t, alpha, kind="forward_kl", beta=0.5):
    """The contract once more, in float64 and one obvious step after another."""
    keep = counted(labels)
    z_s, z_t = student.double()[keep], teacher.double()[keep]
    targets = F.pad(labels[:, 1:], (0, 1), value=NO_LABEL)[keep]
    p_s, p_t = (z_s / t).softmax(-1), (z_t / t).softmax(-1)

    def kl(p, q):
        return (p * (p.log() - q.log())).sum(-1)

    m = (1 - beta) * p_s + beta * p_t
    soft = {
        "forward_kl": lambda: kl(p_t, p_s),
        "reverse_kl": lambda: kl(p_s, p_t),
        "jsd": lambda: beta * kl(p_t, m) + (1 - beta) * kl(p_s, m),
    }[kind]().mean()
    rows = torch.arange(len(targets))
    hard = -z_s.log_softmax(-1)[rows, targets].mean()
    return (1 - alpha) * hard + alpha * t**2 * soft


def gradient(loss, student):
    return torch.autograd.grad(loss, student, retain_graph=True)[0]


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


# --- Divergences. ---

P_T = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
P_S = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_zero_at_equality(kind, temperature):
    student, _, _ = random_batch()
    value = token_divergence(student, student, kind=kind, temperature=temperature)
    assert value.abs().max() < 1e-12
    assert gradient(value.sum(), student).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("kind", "beta", "by_hand"),
    [
        # 0.5 ln(0.5/0.25) + 0.25 ln(1) + 0.25 ln(0.25/0.5) = 0.25 ln 2
        ("forward_kl", 0.5, 0.25 * math.log(2)),
        # The two distributions mirror each other, so the reverse is the same.
        ("reverse_kl", 0.5, 0.25 * math.log(2)),
        # m = (0.375, 0.25, 0.375); each side 0.5 ln(4/3) + 0.25 ln(2/3) = 0.042474756
        ("jsd", 0.5, 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)),
        # m = 0.75 p_S + 0.25 p_T = (0.3125, 0.25, 0.4375):
        # 0.25 KL(p_T || m) + 0.75 KL(p_S || m)
        (
            "jsd",
            0.25,
            0.25 * (0.5 * math.log(0.5 / 0.3125) + 0.25 * math.log(0.25 / 0.4375))
            + 0.75 * (0.25 * math.log(0.25 / 0.3125) + 0.5 * math.log(0.5 / 0.4375)),
        ),
    ],
)
def test_three_tokens_by_hand(kind, beta, by_hand):
    value = token_divergence(P_S.log(), P_T.log(), kind=kind, beta=beta)
    assert value.item() == pytest.approx(by_hand, rel=1e-12)


def test_direction_by_hand():
    teacher = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    student = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    # forward: 0.8 ln 2 + 0.1 ln(1/4) + 0.1 ln(1/2) = 0.5 ln 2 = 0.346574
    # reverse: 0.4 ln(1/2) + 0.4 ln 4 + 0.2 ln 2 = 0.6 ln 2 = 0.415888
    forward = token_divergence(student.log(), teacher.log(), kind="forward_kl")
    reverse = token_divergence(student.log(), teacher.log(), kind="reverse_kl")
    assert forward.item() == pytest.approx(0.5 * math.log(2), rel=1e-12)
    assert reverse.item() == pytest.approx(0.6 * math.log(2), rel=1e-12)


def test_gradient_is_student_minus_teacher():
    z = P_S.log().clone().requires_grad_()
    token_divergence(z, P_T.log()).backward()
    torch.testing.assert_close(z.grad, P_S - P_T)


def test_gradient_at_temperature():
    t = 4.0
    student, teacher, labels = random_batch(2, 3, 7)
    labels[:] = 1
    loss = soft_label_loss(student, teacher, labels, temperature=t).loss
    p_s, p_t = (student / t).softmax(-1), (teacher / t).softmax(-1)
    expected = (p_s - p_t) / t * t**2 / 4  # two of three positions in two rows count
    expected[:, -1] = 0
    torch.testing.assert_close(gradient(loss, student), expected.detach())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("kind", "beta"),
    [
        ("forward_kl", 0.5),
        ("reverse_kl", 0.5),
        ("jsd", 0.1),
        ("jsd", 0.5),
        ("jsd", 0.9),
    ],
)
def test_gradcheck(kind, beta, temperature):
    student, teacher, _ = random_batch(1, 3, 5)

    def value(z):
        return token_divergence(
            z, teacher, kind=kind, beta=beta, temperature=temperature
        )

    assert torch.autograd.gradcheck(value, (student,))


def test_gradcheck_of_the_mixed_loss():
    student, teacher, labels = random_batch(3, 4, 5)
    assert torch.autograd.gradcheck(
        lambda z: soft_label_loss(z, teacher, labels, temperature=2.0, alpha=0.3).loss,
        (student,),
    )


def test_beta_ends_are_forward_and_reverse_kl():
    student, teacher, _ = random_batch()
    for beta, kind in ((0, "forward_kl"), (1, "reverse_kl")):
        end = token_divergence(student, teacher, kind="jsd", beta=beta)
        assert torch.equal(end, token_divergence(student, teacher, kind=kind))


def test_jsd_near_its_end_is_beta_times_forward_kl():
    student, teacher, _ = random_batch()
    beta = 1e-6
    near = token_divergence(student, teacher, kind="jsd", beta=beta) / beta
    forward = token_divergence(student, teacher)
    torch.testing.assert_close(near, forward, rtol=1e-3, atol=1e-6)


def test_jsd_swaps_with_its_beta():
    student, teacher, _ = random_batch()
    for beta in (0.5, 0.2):
        one = token_divergence(student, teacher, kind="jsd", beta=beta)
        other = token_divergence(teacher, student, kind="jsd", beta=1 - beta)
        torch.testing.assert_close(one, other)


def test_high_temperature_limit():
    # T² KL → mean over the vocabulary of (centred difference)² / 2
    student, teacher, _ = random_batch(1, 1, 6)
    gap = (student - student.mean(-1, keepdim=True)) - (
        teacher - teacher.mean(-1, keepdim=True)
    )
    limit = (gap**2).mean() / 2
    errors = [
        abs(t**2 * token_divergence(student, teacher, temperature=t) - limit).item()
        for t in (10.0, 100.0, 1000.0)
    ]
    assert errors[0] / limit < 0.25
    assert errors[2] / limit < 2e-3
    # The error shrinks as 1/T.
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_tokens_ruled_out_on_both_sides_stay_finite():
    student, teacher, _ = random_batch(1, 2, 6)
    ruled_out = torch.tensor([0.0, 0, 0, 0, -math.inf, -math.inf]).double()
    for kind in DIVERGENCES:
        value = token_divergence(student + ruled_out, teacher + ruled_out, kind=kind)
        short = token_divergence(student[..., :4], teacher[..., :4], kind=kind)
        torch.testing.assert_close(value, short)
        grad = gradient(value.sum(), student)
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, gradient(short.sum(), student))


def test_tokens_ruled_out_in_the_whole_loss():
    student, teacher, labels = random_batch(2, 5, 6)
    labels = labels.clamp_max(3)
    ruled_out = torch.tensor([0.0, 0, 0, 0, -math.inf, -math.inf]).double()
    for kind in DIVERGENCES:
        loss = soft_label_loss(
            student + ruled_out,
            teacher + ruled_out,
            labels,
            alpha=0.5,
            divergence=kind,
        ).loss
        assert loss.isfinite()
        assert gradient(loss, student).isfinite().all()


# --- The mixed loss. ---


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("dtype", "loss_limit", "gradient_limit"),
    [
        (torch.float64, 1e-12, 1e-12),
        (torch.float32, 1e-5, 1e-5),
        # The gradient comes back in the input's own dtype and is rounded to it.
        (torch.float16, 1e-5, 2e-3),
        (torch.bfloat16, 1e-5, 5e-3),
    ],
)
def test_against_float64(kind, alpha, temperature, dtype, loss_limit, gradient_limit):
    student, teacher, labels = random_batch(dtype=dtype)
    loss = soft_label_loss(
        student, teacher, labels, temperature=temperature, alpha=alpha, divergence=kind
    ).loss
    exact = student.detach().double().requires_grad_()
    expected = plain_loss(exact, teacher, labels, temperature, alpha, kind)
    assert relative(loss.detach(), expected.detach()) < loss_limit
    came = gradient(loss, student)
    assert came.dtype == dtype
    assert relative(came, gradient(expected, exact)) < gradient_limit


def test_whole_loss_on_three_tokens_by_hand():
    # One sequence of two tokens: position 0 predicts the label 2, position 1 nothing.
    student = torch.stack([P_S.log(), torch.zeros(3).double()]).unsqueeze(0)
    teacher = torch.stack([P_T.log(), torch.ones(3).double()]).unsqueeze(0)
    labels = torch.tensor([[0, 2]])
    result = soft_label_loss(student, teacher, labels, alpha=0.25)
    # hard: -ln 0.5 = ln 2; soft: 0.25 ln 2; together 0.75 ln 2 + 0.25 · 0.25 ln 2
    assert result.hard.item() == pytest.approx(math.log(2))
    assert result.soft.item() == pytest.approx(0.25 * math.log(2))
    assert result.loss.item() == pytest.approx(0.8125 * math.log(2))
    assert result.num_items == 1


def test_t2_is_a_factor_of_the_soft_term_alone():
    student, teacher, labels = random_batch()
    kept = {"temperature": 4.0, "alpha": 0.5}
    scaled = soft_label_loss(student, teacher, labels, **kept)
    plain = soft_label_loss(student, teacher, labels, scale_by_t2=False, **kept)
    assert (scaled.soft / plain.soft).item() == pytest.approx(16)
    assert torch.equal(scaled.hard, plain.hard)


def test_alpha_ends():
    student, teacher, labels = random_batch()
    ce = hard_label_loss(student, labels)
    zero = soft_label_loss(student, teacher, labels, temperature=4.0, alpha=0.0)
    torch.testing.assert_close(zero.loss, ce)
    torch.testing.assert_close(gradient(zero.loss, student), gradient(ce, student))
    one = soft_label_loss(student, teacher, labels, alpha=1.0)
    other = torch.where(labels == NO_LABEL, NO_LABEL, (labels + 7) % 50)
    assert torch.equal(one.loss, soft_label_loss(student, teacher, other).loss)


def test_a_term_without_weight_cannot_spoil_the_loss():
    student, teacher, labels = random_batch()
    without_3 = torch.where(torch.arange(50) == 3, -math.inf, 0.0)
    student_3, teacher_3 = student + without_3, teacher + without_3
    labels[0, 4] = 3  # an infinite cross-entropy
    soft = soft_label_loss(student_3, teacher_3, labels, alpha=1.0).loss
    assert soft.isfinite()
    assert gradient(soft, student).isfinite().all()
    with pytest.raises(ValueError, match="loss is inf"):
        soft_label_loss(student_3, teacher_3, labels, alpha=0.5)
    labels = torch.where(labels == 3, 4, labels)
    # Now the divergence is infinite, and the labels are fine.
    hard = soft_label_loss(student_3, teacher, labels, alpha=0.0).loss
    assert hard.isfinite()
    assert gradient(hard, student).isfinite().all()


def test_the_teacher_is_a_constant():
    student, teacher, labels = random_batch()
    teacher = teacher.requires_grad_()
    for kind in DIVERGENCES:
        soft_label_loss(student, teacher, labels, divergence=kind).loss.backward()
    assert teacher.grad is None


def test_the_parts_carry_no_gradient():
    student, teacher, labels = random_batch()
    result = soft_label_loss(student, teacher, labels, alpha=0.5)
    assert result.loss.requires_grad
    assert not result.soft.requires_grad
    assert not result.hard.requires_grad


# --- Mask and shift. ---


@pytest.mark.parametrize("junk", [0.0, 1e30, -math.inf, math.inf, math.nan])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_ignored_positions_are_never_read(junk, kind):
    student, teacher, labels = random_batch()
    ignored = ~counted(labels)
    dirty_student = student.detach().clone()
    dirty_student[ignored] = junk
    dirty_student.requires_grad_()
    dirty_teacher = teacher.clone()
    dirty_teacher[ignored] = junk
    options = {"alpha": 0.5, "temperature": 2.0, "divergence": kind}
    clean = soft_label_loss(student, teacher, labels, **options).loss
    dirty = soft_label_loss(dirty_student, dirty_teacher, labels, **options).loss
    assert torch.equal(clean, dirty)
    came = gradient(dirty, dirty_student)
    assert torch.equal(came, gradient(clean, student))
    assert not came[ignored].any()


def test_every_position_that_counts_matters():
    student, teacher, labels = random_batch()
    came = gradient(soft_label_loss(student, teacher, labels).loss, student)
    assert torch.equal(came.abs().sum(-1) > 0, counted(labels))


def test_shift_can_be_done_by_the_caller():
    student, teacher, labels = random_batch()
    inside = soft_label_loss(student, teacher, labels, alpha=0.5)
    outside = soft_label_loss(
        student[:, :-1], teacher[:, :-1], labels[:, 1:], alpha=0.5, shift=False
    )
    torch.testing.assert_close(inside.loss, outside.loss)
    assert inside.num_items == outside.num_items
    torch.testing.assert_close(
        hard_label_loss(student, labels),
        hard_label_loss(student[:, :-1], labels[:, 1:], shift=False),
    )


def test_hard_loss_is_that_of_transformers():
    student, _, labels = random_batch()
    theirs = F.cross_entropy(
        student[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NO_LABEL
    )
    torch.testing.assert_close(hard_label_loss(student, labels), theirs)


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_micro_batches_add_up(splits):
    student, teacher, labels = random_batch()
    options = {"alpha": 0.5, "temperature": 2.0}
    whole = soft_label_loss(student, teacher, labels, **options)
    size = 4 // splits
    parts = [
        soft_label_loss(
            student[i : i + size],
            teacher[i : i + size],
            labels[i : i + size],
            num_items=whole.num_items,
            **options,
        ).loss
        for i in range(0, 4, size)
    ]
    torch.testing.assert_close(sum(parts), whole.loss)
    torch.testing.assert_close(
        gradient(sum(parts), student), gradient(whole.loss, student)
    )


def test_num_items_may_be_a_tensor():
    student, teacher, labels = random_batch()
    default = soft_label_loss(student, teacher, labels)
    given = soft_label_loss(
        student, teacher, labels, num_items=torch.tensor(2 * default.num_items)
    )
    torch.testing.assert_close(2 * given.loss, default.loss)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_nothing_to_count_is_a_zero_that_keeps_its_graph(kind, alpha):
    student, teacher, labels = random_batch()
    nothing = torch.full_like(labels, NO_LABEL)
    result = soft_label_loss(student, teacher, nothing, alpha=alpha, divergence=kind)
    assert result.loss.item() == 0
    assert not gradient(result.loss, student).any()
    hard = hard_label_loss(student, nothing)
    assert hard.item() == 0
    assert not gradient(hard, student).any()


# --- What is refused, and in which words. ---


def refusal(student, teacher, labels, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        soft_label_loss(student, teacher, labels, **options)
    return str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_refuses_temperature(value):
    message = refusal(*random_batch(), temperature=value)
    assert f"temperature={value}" in message
    assert "positive" in message
    with pytest.raises(ValueError, match="temperature"):
        token_divergence(*random_batch()[:2], temperature=value)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_refuses_weights(name, value):
    message = refusal(*random_batch(), divergence="jsd", **{name: value})
    assert f"{name}={value}" in message
    assert "between 0 and 1" in message


def test_refuses_unknown_divergence():
    message = refusal(*random_batch(), divergence="kl")
    assert "'kl'" in message
    for kind in DIVERGENCES:
        assert kind in message


def test_refuses_shapes():
    student, teacher, labels = random_batch()
    message = refusal(student, teacher[:, 1:], labels)
    assert "(4, 12, 50)" in message
    assert "(4, 11, 50)" in message
    message = refusal(student, teacher, labels[:, 1:])
    assert "labels" in message
    assert "(4, 11)" in message
    assert "(4, 12)" in message


def test_refuses_unequal_vocabularies():
    student, teacher, labels = random_batch()
    message = refusal(student, teacher[..., :-2], labels)
    assert "50" in message
    assert "48" in message
    assert "cut both to the shared tokens" in message


@pytest.mark.parametrize("bad", [50, 1000, -1])
def test_refuses_labels_outside_the_vocabulary(bad):
    student, teacher, labels = random_batch()
    labels[0, 5] = bad
    message = refusal(student, teacher, labels)
    assert str(bad) in message
    assert "50" in message
    assert "-100" in message


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_refuses_nan_where_it_counts(whose):
    student, teacher, labels = random_batch()
    student = student.detach().clone()
    dirty = student if whose == "student" else teacher
    dirty[0, 3, 7] = math.nan
    message = refusal(student, teacher, labels)
    assert f"{whose} holds NaN" in message
    assert "diverged" in message
    if whose == "student":
        with pytest.raises(ValueError, match="student holds NaN"):
            hard_label_loss(student, labels)


def test_refuses_an_infinite_divergence():
    student, teacher, labels = random_batch()
    one_sided = torch.where(torch.arange(50) == 3, -math.inf, student.detach())
    message = refusal(one_sided, teacher, labels)
    assert "inf" in message
    assert "rule tokens out in both" in message


@pytest.mark.parametrize("count", [0, -3])
def test_refuses_a_count_that_is_not_positive(count):
    message = refusal(*random_batch(), num_items=count)
    assert f"num_items={count}" in message


# --- Memory. ---


def saved_bytes(compute):
    """Bytes that autograd keeps for the backward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = compute()
    # The result keeps the graph, and with it the storages, alive until here.
    assert loss.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_one_buffer_is_kept_for_backward(kind):
    student, teacher, _ = random_batch(8, 32, 400, dtype=torch.float32)
    one = student.numel() * 4
    kept = saved_bytes(lambda: token_divergence(student, teacher, kind=kind).sum())
    assert kept <= 1.1 * one

    def naive():
        log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
        return F.kl_div(log_s, log_t, log_target=True, reduction="sum")

    assert saved_bytes(naive) >= 1.9 * one
