"""Every form of the loss equals the plain one, in ordinary autograd and float64."""

import itertools
from functools import partial

import pytest
import torch

from distill_helpers.course import bugs as bugs
from distill_helpers.losses import (
    Hidden,
    SparseTargets,
    forward_kl,
    hard_label_loss,
    jsd,
    plain_soft_label_loss,
    reverse_kl,
    soft_label_loss,
)

ROWS, POSITIONS, WIDTH, THEIR_WIDTH, VOCABULARY = 4, 9, 12, 20, 53
DIVERGENCES = {
    "forward_kl": ({}, forward_kl),
    "reverse_kl": ({}, reverse_kl),
    "jsd": ({"beta": 0.3}, partial(jsd, beta=0.3)),
}
MASKS = ("none", "prompts", "all but one")
STUDENTS = {"logits": lambda h: h.logits(), "hidden": lambda h: h}


def stored(hidden, temperature):
    """The whole distribution of each position, as a store would give it."""
    logits = hidden.logits().detach().flatten(0, 1)
    p = (logits / temperature).softmax(-1)
    ids = torch.argsort(torch.rand(p.shape), -1)
    return SparseTargets(ids, p.gather(-1, ids), None, None, temperature)


def inputs(mask, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).requires_grad_()

    student = Hidden(draw(ROWS, POSITIONS, WIDTH), draw(VOCABULARY, WIDTH))
    teacher = Hidden(draw(ROWS, POSITIONS, THEIR_WIDTH), draw(VOCABULARY, THEIR_WIDTH))
    labels = torch.randint(VOCABULARY, (ROWS, POSITIONS), generator=generator)
    for row, prompt in enumerate((2, 5, 1, 7)):
        if mask == "prompts":
            labels[row, :prompt] = -100
            labels[row, POSITIONS - row :] = -100
    if mask == "all but one":
        kept = int(labels[2, 4])
        labels.fill_(-100)
        labels[2, 4] = kept
    return student, teacher, labels


def value_and_gradients(loss, student):
    leaves = (student.states, student.head.weight)
    gradients = torch.autograd.grad(loss, leaves)
    return (loss.detach(), *gradients)


def close(found, wanted, relative=1e-5):
    for mine, right in zip(found, wanted, strict=True):
        error = (mine.double() - right).norm() / right.norm().clamp(min=1e-12)
        assert error < relative, float(error)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        *itertools.product(("logits", "hidden"), DIVERGENCES),
        ("stored", "forward_kl"),
    ],
)
@pytest.mark.parametrize("ours", STUDENTS)
def test_the_loss_is_the_plain_one(ours, theirs, kind, mask):
    options, divergence = DIVERGENCES[kind]
    for alpha, temperature in itertools.product((0.0, 0.3, 1.0), (0.7, 1.0, 4.0)):
        student, teacher, labels = inputs(mask, torch.float64)
        plain = plain_soft_label_loss(
            student.logits(),
            teacher.logits(),
            labels,
            temperature,
            alpha,
            divergence,
        )
        wanted = value_and_gradients(plain, student)
        student, teacher, labels = inputs(mask)
        given = stored(teacher, temperature) if theirs == "stored" else teacher
        if theirs == "logits":
            given = teacher.logits()
        found = soft_label_loss(
            STUDENTS[ours](student),
            given,
            labels,
            temperature=temperature,
            alpha=alpha,
            divergence=kind,
            **options,
        )
        close(value_and_gradients(found.loss, student), wanted)


@pytest.mark.parametrize("ours", STUDENTS)
def test_labels_alone_are_the_plain_loss_at_alpha_0(ours):
    student, teacher, labels = inputs("prompts", torch.float64)
    plain = plain_soft_label_loss(student.logits(), teacher.logits(), labels, alpha=0.0)
    wanted = value_and_gradients(plain, student)
    student, _, labels = inputs("prompts")
    found = hard_label_loss(STUDENTS[ours](student), labels)
    close(value_and_gradients(found, student), wanted)


def test_the_plain_loss_counts_nothing_where_all_is_masked():
    student, teacher, labels = inputs("none")
    labels.fill_(-100)
    loss = plain_soft_label_loss(student.logits(), teacher.logits(), labels)
    assert loss.item() == 0
    assert not value_and_gradients(loss, student)[1].any()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_patient_of_the_clinic_is_healthy(temperature, alpha):
    """The loss whose lines the known bugs change says what the contract says."""
    student, teacher, labels = inputs("prompts", torch.float64)
    given = (student.logits(), teacher.logits(), labels, temperature, alpha)
    wanted = value_and_gradients(plain_soft_label_loss(*given), student)
    given = (student.logits(), *given[1:])
    found = value_and_gradients(bugs.plain_loss(*given), student)
    close(found, wanted, 1e-12)
