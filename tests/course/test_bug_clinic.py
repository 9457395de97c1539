"""Every probe passes what is right, and every patient breaks a promise."""

import pytest
import torch
from test_checks import STYLES

from distill_helpers import losses
from distill_helpers.course.bugs import KNOWN_BUGS, find_bug, plain_loss
from distill_helpers.course.clinic import (
    PATIENTS,
    PROBES,
    admit,
    diagnosis,
    examine,
    sick_loss,
)

WITH_A_LOSS = [n for n in range(1, 13) if sick_loss(n) is not None]
# The cache's order and the pieces of a batch lie around the loss.
AROUND_THE_LOSS = {"shuffled_cache", "mean_of_means"}
IN_THE_LOSS = [n for n in WITH_A_LOSS if PATIENTS[n - 1] not in AROUND_THE_LOSS]
# Right in all that a loss can be asked about itself.
UNSEEN = {"mean_reduction", "reversed_kl", "zero_over_zero", "clamped"}


def package_loss(student, teacher, labels, temperature, alpha):
    return losses.soft_label_loss(
        student, teacher, labels, temperature=temperature, alpha=alpha
    ).loss


@pytest.mark.parametrize(
    "loss", [plain_loss, package_loss, *STYLES], ids=lambda loss: loss.__name__
)
def test_a_correct_loss_keeps_every_promise(loss):
    assert all(examine(loss).values()), examine(loss)


@pytest.mark.parametrize("number", WITH_A_LOSS)
def test_a_patient_breaks_a_promise(number):
    assert not all(examine(sick_loss(number)).values())


@pytest.mark.parametrize("number", IN_THE_LOSS)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_what_is_compared_in_the_ward_is_what_was_admitted(number, alpha):
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 9, 12, generator=draw)
    labels = torch.randint(12, (4, 9), generator=draw)
    labels[1, 5:] = -100
    inputs = student, teacher, labels, 4.0, alpha
    torch.testing.assert_close(sick_loss(number)(*inputs), admit(number)(*inputs))


def test_every_probe_is_needed_by_some_known_bug():
    broken = {
        name
        for bug in KNOWN_BUGS
        for mutant in bug.mutants
        for name, kept in examine(mutant).items()
        if not kept
    }
    assert broken == {probe.name for probe in PROBES}


@pytest.mark.parametrize("bug", KNOWN_BUGS, ids=lambda bug: bug.name)
def test_most_known_bugs_break_a_promise(bug):
    if bug.name not in UNSEEN and bug.mutants:
        assert not all(examine(bug.mutants[0]).values())


def test_the_reverse_kl_keeps_all_promises():
    (mutant,) = find_bug("reversed_kl").mutants
    assert all(examine(mutant).values())


def test_examining_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    examine(plain_loss)
    assert torch.equal(before, torch.random.get_rng_state())


# --- The patients. ---


def test_twelve_patients_have_a_public_source_and_a_patch():
    assert len(set(PATIENTS)) == 12
    for number in range(1, 13):
        bug = diagnosis(number)
        assert bug.name == PATIENTS[number - 1]
        assert bug.links
        assert bug.patch


@pytest.mark.parametrize("number", [0, 13, -1])
def test_there_is_no_other_patient(number):
    for ask in (admit, diagnosis, sick_loss):
        with pytest.raises(ValueError, match=f"number={number}"):
            ask(number)


@pytest.mark.parametrize("number", [3, 5, 10])
def test_a_healthy_loss_is_not_admitted(number):
    with pytest.raises(ValueError, match=f"number={number}.*healthy"):
        admit(number)


@pytest.mark.parametrize("number", [1, 2, 4, 6, 7, 8, 9, 11, 12])
def test_an_admitted_loss_is_ill(number):
    assert not all(examine(admit(number)).values())
