"""Every mutant is told from the contract, and shows the symptom its entry promises."""

import math
import re

import pytest
import torch

from distill_helpers import losses
from distill_helpers.course import mutants
from distill_helpers.course.bugs import KNOWN_BUGS, find_bug, infected, plain_loss

NO_LABEL = -100
OUTSIDE_THE_LOSS = {
    "eos_masked",
    "partner_not_detached",
    "identical_partners",
    "soft_cap_ignored",
    "prose_denied",
}
MUTANTS = [
    pytest.param(bug.name, mutant, id=f"{bug.name}-{number}")
    for bug in KNOWN_BUGS
    for number, mutant in enumerate(bug.mutants)
]


def batch(rows=4, positions=12, vocabulary=50, seed=0):
    """The batch of the project's list of fingerprints, in float64."""
    g = torch.Generator().manual_seed(seed)
    student, teacher = (
        2 * torch.randn((rows, positions, vocabulary), generator=g).double()
        for _ in range(2)
    )
    labels = torch.randint(vocabulary, (rows, positions), generator=g)
    for row in range(1, rows):
        labels[row, :row] = NO_LABEL
        labels[row, positions - row :] = NO_LABEL
    return student.requires_grad_(), teacher, labels


def right(student, teacher, labels, temperature, alpha):
    return losses.soft_label_loss(
        student, teacher, labels, temperature=temperature, alpha=alpha
    ).loss


def both(fn, inputs, temperature, alpha):
    """Value and gradient, zero where there is none."""
    loss = fn(*inputs, temperature, alpha)
    student = inputs[0]
    if not loss.requires_grad:
        return loss, torch.zeros_like(student)
    grad = torch.autograd.grad(loss, student, allow_unused=True)[0]
    return loss.detach(), torch.zeros_like(student) if grad is None else grad


def only(name, number=0):
    return find_bug(name).mutants[number]


def counted(labels):
    keep = labels != NO_LABEL
    return torch.nn.functional.pad(keep[:, 1:], (0, 1))


# --- The table. ---


def test_names_are_unique():
    names = [bug.name for bug in KNOWN_BUGS]
    assert len(names) == len(set(names))
    assert len(names) >= 36


def test_every_entry_is_filled_in():
    for bug in KNOWN_BUGS:
        assert bug.title[0].islower() or bug.title[0] in "TKα", bug.name
        assert not bug.title.endswith(".")
        assert bug.symptom.endswith("."), bug.name
        assert bug.remedy.endswith("."), bug.name
        assert bug.taught_in.startswith("notebook ")
        assert not bug.issue or re.fullmatch(
            r"[\w.-]+/[\w.-]+( #\d+,?)+(; [\w.-]+/[\w.-]+( #\d+,?)+)*", bug.issue
        )


def test_entries_without_a_mutant():
    assert {b.name for b in KNOWN_BUGS if not b.mutants} == OUTSIDE_THE_LOSS


def test_every_mutant_has_an_entry():
    assert set(mutants.MUTANTS) <= {bug.name for bug in KNOWN_BUGS}


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'t3'.*t2_missing"):
        find_bug("t3")


# --- The healthy patient, and the lines at fault. ---

IN_THE_LOSS = [
    bug.name
    for bug in KNOWN_BUGS
    if bug.fault and bug.name not in ("shuffled_cache", "mean_of_means", "prose_denied")
]


def test_the_plain_loss_is_right():
    for inputs, temperature, alpha in probes():
        for came, wanted in zip(
            both(plain_loss, inputs, temperature, alpha),
            both(right, inputs, temperature, alpha),
            strict=True,
        ):
            torch.testing.assert_close(came, wanted)


@pytest.mark.parametrize("name", IN_THE_LOSS)
def test_the_lines_at_fault_are_the_mutant(name):
    """What a learner sees in the patch is what the mutant does."""
    ill = infected(name)

    def same(mutant):
        return all(
            torch.allclose(a, b, equal_nan=True)
            for inputs, temperature, alpha in probes()
            for a, b in zip(
                both(ill, inputs, temperature, alpha),
                both(mutant, inputs, temperature, alpha),
                strict=True,
            )
        )

    assert any(same(mutant) for mutant in find_bug(name).mutants)


@pytest.mark.parametrize("name", ["shuffled_cache", "reversed_kl", "prose_denied"])
def test_a_bug_outside_the_plain_loss_cannot_be_put_in(name):
    with pytest.raises(ValueError, match=name):
        infected(name)


def test_a_bug_shows_its_patch_and_its_sources():
    bug = find_bug("mean_of_means")
    shown = bug._repr_mimebundle_()
    assert bug.links[1] == "https://github.com/huggingface/trl/issues/6006"
    assert len(bug.links) == 3
    for link in bug.links:
        assert link in shown["text/markdown"]
    assert "- loss = kl.sum() / len(kl)\n+ loss = kl.sum() / num_items" in bug.patch
    for text in shown.values():
        assert bug.patch in text
        assert bug.title in text
        assert bug.remedy in text
    nameless = find_bug("alpha_swapped")
    assert nameless.links == ()
    assert "Shipped" not in str(nameless)
    assert "```" not in nameless._repr_mimebundle_()["text/markdown"]


# --- Every mutant is killed. ---


def probes():
    student, teacher, labels = batch()
    ordinary = (student, teacher, labels)
    for temperature, alpha in ((1.0, 1.0), (4.0, 1.0), (4.0, 0.0), (4.0, 0.3)):
        yield ordinary, temperature, alpha
    nothing = torch.full_like(labels, NO_LABEL)
    yield (student, teacher, nothing), 2.0, 0.5
    one_masked = labels.clone()
    one_masked[2] = NO_LABEL
    yield (student, teacher, one_masked), 2.0, 0.5
    hostile = teacher.clone()
    hostile[~counted(labels)] = -math.inf
    yield (student, hostile, labels), 4.0, 0.5


@pytest.mark.parametrize(("name", "mutant"), MUTANTS)
def test_mutant_is_killed(name, mutant):
    if name == "teacher_attached":
        student, teacher, labels = batch()
        teacher.requires_grad_()
        mutant(student, teacher, labels, 4.0, 0.5).backward()
        assert teacher.grad is not None
        return
    largest = 0.0
    for inputs, temperature, alpha in probes():
        for came, wanted in zip(
            both(mutant, inputs, temperature, alpha),
            both(right, inputs, temperature, alpha),
            strict=True,
        ):
            if not came.isfinite().all():
                largest = math.inf
            else:
                scale = max(float(wanted.norm()), 0.01)
                largest = max(largest, float((came - wanted).norm()) / scale)
    assert largest > 0.05


@pytest.mark.parametrize(("name", "mutant"), MUTANTS)
def test_mutant_returns_a_scalar_and_leaves_its_inputs_alone(name, mutant):
    student, teacher, labels = batch()
    before = [x.detach().clone() for x in (student, teacher, labels)]
    assert mutant(student, teacher, labels, 4.0, 0.5).shape == ()
    for old, new in zip(before, (student, teacher, labels), strict=True):
        assert torch.equal(old, new)


# --- The numbers that the symptoms promise. ---


def ratios(mutant, temperature, alpha):
    """Mutant's value and gradient over the right ones; the directions must agree."""
    inputs = batch()
    loss, grad = both(mutant, inputs, temperature, alpha)
    right_loss, right_grad = both(right, inputs, temperature, alpha)
    ratio = float(grad.norm() / right_grad.norm())
    torch.testing.assert_close(grad, right_grad * ratio)
    return float(loss / right_loss), ratio


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("name", "power"), [("t2_missing", 2), ("t_once", 1)])
def test_missing_t2_is_a_ratio_of_powers_of_t(name, power, temperature):
    expected = temperature**-power
    assert ratios(only(name), temperature, 1.0) == pytest.approx((expected, expected))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_reductions_are_exact_ratios(temperature):
    items = int(counted(batch()[2]).sum())
    for mutant, ratio in (
        (only("mean_reduction"), 1 / 50),
        (only("batchmean"), items / 4),
        (only("sum_not_mean"), items),
        (only("mean_over_all"), items / (4 * 11)),
        (only("mean_over_all", 2), items / (4 * 12)),
    ):
        came = ratios(mutant, temperature, 1.0)
        assert came == pytest.approx((ratio, ratio))


def test_wrong_scale_is_negative_or_not_zero_at_equality():
    inputs = batch()
    _, teacher, labels = inputs
    for number, mutant in enumerate(find_bug("not_log_probabilities").mutants):
        # The first three feed the student's side with raw logits or probabilities.
        if number in (0, 1, 2):
            assert mutant(teacher, teacher, labels, 1.0, 1.0) < 0
        at_equality = mutant(teacher, teacher, labels, 4.0, 1.0)
        if number == 7 or number == 4:
            # Both sides are wrong in the same way: zero there, wrong elsewhere.
            assert at_equality == 0
        else:
            assert abs(at_equality) > 0.01


def test_log_target_is_nan():
    for mutant in find_bug("log_target_missing").mutants:
        assert mutant(*batch(), 4.0, 1.0).isnan()


def test_wrong_dimension_depends_on_length_or_company():
    student, teacher, labels = batch()
    longer = [
        torch.cat([student, student], 1),
        torch.cat([teacher, teacher], 1),
        torch.cat([labels, torch.full_like(labels, NO_LABEL)], 1),
    ]
    counts = counted(labels).sum(1).double()
    assert torch.isclose(
        right(*longer, 1.0, 1.0), right(student, teacher, labels, 1.0, 1.0)
    )
    for mutant in find_bug("wrong_dimension").mutants:
        whole = mutant(student, teacher, labels, 1.0, 1.0)
        alone = sum(
            mutant(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], 1.0, 1.0)
            * counts[i]
            for i in range(4)
        )
        by_company = abs(alone / counts.sum() - whole)
        by_length = abs(mutant(*longer, 1.0, 1.0) - whole)
        assert max(by_company, by_length) > 0.01


def test_one_sided_temperature_shows_at_equality_and_not_at_t_1():
    student, teacher, labels = batch()
    for mutant in find_bug("one_sided_temperature").mutants:
        assert mutant(teacher, teacher, labels, 4.0, 1.0) > 0.1
        assert torch.isclose(
            mutant(student, teacher, labels, 1.0, 1.0),
            right(student, teacher, labels, 1.0, 1.0),
        )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_is_off_by_the_teachers_entropy(temperature):
    mutant = only("soft_cross_entropy")
    inputs = batch()
    _, teacher, labels = inputs
    p = (teacher / temperature).softmax(-1)[counted(labels)]
    entropy = -(p * p.log()).sum(-1).mean()
    at_equality = mutant(teacher, teacher, labels, temperature, 1.0)
    assert torch.isclose(at_equality, temperature**2 * entropy)
    torch.testing.assert_close(
        both(mutant, inputs, temperature, 1.0)[1],
        both(right, inputs, temperature, 1.0)[1],
    )


def test_reversed_kl_is_the_reverse_kl():
    student, teacher, labels = batch()
    mutant = only("reversed_kl")
    assert abs(mutant(teacher, teacher, labels, 4.0, 1.0)) < 1e-12
    other = losses.soft_label_loss(
        student, teacher, labels, temperature=4.0, divergence="reverse_kl"
    ).loss
    assert torch.isclose(mutant(student, teacher, labels, 4.0, 1.0), other)


def test_padding_counted_answers_to_pads():
    student, teacher, labels = batch()
    ignored = ~counted(labels)
    ignored[:, -1] = False  # some variants leave the last position out
    changed = torch.where(ignored.unsqueeze(-1), student.flip(-1), student)
    for mutant in find_bug("padding_counted").mutants:
        gap = mutant(changed, teacher, labels, 4.0, 1.0) - mutant(
            student, teacher, labels, 4.0, 1.0
        )
        assert abs(gap) > 1e-3
    assert right(changed, teacher, labels, 4.0, 1.0) == right(
        student, teacher, labels, 4.0, 1.0
    )


def test_unshifted_labels_and_masks_touch_the_wrong_positions():
    inputs = batch()
    # Row 1 has a prompt of one token and one token of padding at the end.
    row, last_prompt, last_label, pad = 1, 0, 10, 11
    grad = both(right, inputs, 1.0, 0.0)[1].abs().sum(-1)
    assert grad[row, last_prompt] > 0
    assert grad[row, last_label] == 0
    for mutant in find_bug("labels_not_shifted").mutants:
        grad = both(mutant, inputs, 1.0, 0.0)[1].abs().sum(-1)
        assert grad[row, last_prompt] == 0
        assert grad[row, last_label] > 0
    for mutant in find_bug("shifted_wrong_way").mutants:
        grad = both(mutant, inputs, 1.0, 0.0)[1].abs().sum(-1)
        assert grad[row, last_prompt] == 0
        assert grad[row, pad] > 0
        assert grad[0, -1].sum() > 0
    for mutant in find_bug("mask_not_shifted").mutants:
        grad = both(mutant, inputs, 1.0, 1.0)[1].abs().sum(-1)
        assert grad[row, last_prompt] == 0
        assert grad[row, last_label] > 0


def test_temperature_on_the_hard_term():
    inputs = batch()
    assert right(*inputs, 4.0, 0.0) == right(*inputs, 1.0, 0.0)
    for mutant in find_bug("temperature_on_hard").mutants:
        assert abs(mutant(*inputs, 4.0, 0.0) / mutant(*inputs, 1.0, 0.0) - 1) > 0.05
    assert ratios(only("t2_on_hard"), 4.0, 0.0) == pytest.approx((16, 16))


def test_dropout_makes_two_calls_differ():
    inputs = batch()
    assert only("teacher_dropout")(*inputs, 1.0, 1.0) != only("teacher_dropout")(
        *inputs, 1.0, 1.0
    )


def test_detached_student_has_the_right_value_and_no_gradient():
    inputs = batch()
    for mutant in find_bug("student_detached").mutants:
        loss, grad = both(mutant, inputs, 4.0, 1.0)
        assert torch.isclose(loss, right(*inputs, 4.0, 1.0))
        assert not grad.any()


def test_mean_of_means_is_what_micro_batches_of_one_give():
    student, teacher, labels = batch()
    by_sequence = [
        right(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], 4.0, 0.5)
        for i in range(4)
    ]
    assert torch.isclose(
        only("mean_of_means")(student, teacher, labels, 4.0, 0.5), sum(by_sequence) / 4
    )


def test_nothing_to_count_is_nan():
    student, teacher, labels = batch()
    nothing = torch.full_like(labels, NO_LABEL)
    for mutant in find_bug("zero_over_zero").mutants:
        assert mutant(student, teacher, nothing, 2.0, 0.5).isnan()


def test_mask_after_exp_has_a_finite_loss_with_a_nan_gradient():
    student, teacher, labels = batch()
    hostile = teacher.clone()
    hostile[~counted(labels)] = -math.inf
    finite = 0
    for mutant in find_bug("mask_after_exp").mutants:
        loss, grad = both(mutant, (student, hostile, labels), 2.0, 0.5)
        finite += bool(loss.isfinite())
        assert grad.isnan().any()
    assert finite == 2


def test_weights():
    inputs = batch()
    assert only("alpha_on_both")(*inputs, 4.0, 0.0) == 0
    swapped = only("alpha_swapped")
    assert torch.isclose(swapped(*inputs, 4.0, 1.0), right(*inputs, 4.0, 0.0))
    assert torch.isclose(swapped(*inputs, 4.0, 0.0), right(*inputs, 4.0, 1.0))
    assert torch.isclose(swapped(*inputs, 4.0, 0.5), right(*inputs, 4.0, 0.5))
    ends = right(*inputs, 4.0, 0.0) + right(*inputs, 4.0, 1.0)
    assert torch.isclose(only("one_term_unweighted")(*inputs, 4.0, 1.0), ends)
    assert torch.isclose(only("one_term_unweighted", 1)(*inputs, 4.0, 0.0), ends)
    for mutant in find_bug("half_by_accident").mutants:
        assert mutant(*inputs, 4.0, 0.1) == mutant(*inputs, 4.0, 1.0)


def test_swapped_hard_term_ignores_the_student():
    student, teacher, labels = batch()
    for mutant in find_bug("swapped").mutants:
        assert mutant(student, teacher, labels, 4.0, 0.0) == mutant(
            student.flip(-1), teacher, labels, 4.0, 0.0
        )


def test_teacher_against_itself_is_exactly_zero():
    loss, grad = both(only("teacher_against_itself"), batch(), 4.0, 1.0)
    assert loss == 0
    assert not grad.any()


def test_top_k_leaves_the_tail_out():
    student, teacher, labels = batch()
    keep = counted(labels)
    for number, k in enumerate((1, 2, 3, 4, 5, 8)):
        grad = both(
            only("top_k_renormalised", number), (student, teacher, labels), 1, 1
        )
        pushed_up = (grad[1] < 0)[keep]
        assert pushed_up.sum(-1).max() <= k


def test_clamping_kills_gradients():
    inputs = batch()
    whole, *truncated = find_bug("clamped").mutants
    assert whole(*inputs, 1.0, 1.0) > right(*inputs, 1.0, 1.0)
    # The student puts more on the teacher's top tokens than the teacher does.
    sharper = (3 * inputs[1]).detach().requires_grad_()
    loss, grad = both(truncated[0], (sharper, *inputs[1:]), 1.0, 1.0)
    dead = grad[counted(inputs[2])].abs().sum(-1) == 0
    assert dead.any()
    assert loss >= 0
