"""Losses between tokenizers, against loops over chunks and what theory says."""

import math

import pytest
import torch

from distill_helpers.losses import (
    Hidden,
    SparseTargets,
    binary_kl,
    blocks,
    chunk_likelihood_loss,
    first_pieces_loss,
    hard_label_loss,
    mapped_vocabulary_loss,
    shared_beginnings_loss,
    soft_label_loss,
    sorted_probabilities_loss,
)

WIDTH, THEIR_WIDTH, VOCABULARY, THEIRS = 6, 5, 19, 27
BEGINNINGS = 7
# Of each row: what is in no chunk, then each chunk's tokens, student's and teacher's.
LAYOUTS = (
    ((1, 1), [(1, 2), (2, 1), (1, 1), (3, 2)]),
    ((2, 0), [(1, 1), (1, 1), (2, 3)]),
    ((0, 1), [(2, 2), (1, 3)]),
    ((0, 0), []),
)
KINDS = ("chunks", "mapped", "pieces", "shared", "sorted")


def numbers(side):
    length = 1 + max(
        before[side] + sum(chunk[side] for chunk in rows) for before, rows in LAYOUTS
    )
    found = torch.full((len(LAYOUTS), length), -1)
    for row, (before, rows) in enumerate(LAYOUTS):
        place = before[side]
        for number, chunk in enumerate(rows):
            found[row, place : place + chunk[side]] = number
            place += chunk[side]
    return found


class Case:
    """Random models at the layouts above."""

    def __init__(self, dtype=torch.float64, *, same=False, seed=3):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return drawn.to(dtype).requires_grad_()

        self.chunks = numbers(0)
        self.teacher_chunks = self.chunks if same else numbers(1)
        theirs = VOCABULARY if same else THEIRS
        rows, length = self.chunks.shape
        other = self.teacher_chunks.shape[1]
        self.student = Hidden(draw(rows, length, WIDTH), draw(VOCABULARY, WIDTH))
        self.teacher = Hidden(draw(rows, other, THEIR_WIDTH), draw(theirs, THEIR_WIDTH))
        self.labels = torch.randint(VOCABULARY, (rows, length), generator=generator)
        self.labels[self.chunks < 0] = -100
        self.labels[0, 3] = -100  # the second token of a chunk
        self.teacher_ids = torch.randint(theirs, (rows, other), generator=generator)
        if same:
            self.teacher_ids = self.labels.clamp(min=0)
        order = torch.randperm(theirs, generator=generator)[:VOCABULARY]
        self.twins = torch.arange(VOCABULARY) if same else order
        if not same:
            self.twins[::4] = -1
        drawn = torch.randint(VOCABULARY, (theirs,), generator=generator)
        self.pieces = torch.arange(VOCABULARY) if same else drawn
        if not same:
            self.pieces[::6] = -1
        self.beginnings = self.teacher_beginnings = torch.arange(VOCABULARY)
        if not same:
            drawn = torch.randint(BEGINNINGS, (VOCABULARY,), generator=generator)
            drawn[:BEGINNINGS] = torch.arange(BEGINNINGS)
            self.beginnings = drawn[torch.randperm(VOCABULARY, generator=generator)]
            drawn = torch.randint(-1, BEGINNINGS, (theirs,), generator=generator)
            self.teacher_beginnings = drawn
            # The text begins alike in both, but for one chunk of each row.
            for row, (i, _), (j, _) in [*self.places()]:
                one = int(self.labels[row, i])
                number = int(self.beginnings[one]) + (j == 2)
                ids = (drawn == number % BEGINNINGS).nonzero().flatten()
                self.teacher_ids[row, j] = ids[j % len(ids)]

    def loss(self, kind, student=None, teacher=None, **options):
        student = self.student if student is None else student
        teacher = self.teacher if teacher is None else teacher
        both = (self.chunks, self.teacher_chunks)
        if kind == "chunks":
            return chunk_likelihood_loss(
                student, teacher, self.labels, self.teacher_ids, *both, **options
            )
        if kind == "mapped":
            return mapped_vocabulary_loss(
                student, teacher, self.labels, *both, self.twins, **options
            )
        if kind == "pieces":
            return first_pieces_loss(
                student, teacher, self.labels, self.teacher_ids, *both, self.pieces,
                **options,
            )  # fmt: skip
        if kind == "shared":
            return shared_beginnings_loss(
                student, teacher, self.labels, self.teacher_ids, *both,
                self.beginnings, self.teacher_beginnings, **options,
            )  # fmt: skip
        return sorted_probabilities_loss(
            student, teacher, self.labels, *both, **options
        )

    def gradients(self, loss):
        inputs = [self.student.states, self.student.head.weight]
        return torch.autograd.grad(loss, inputs)

    def log_probs(self, temperature=1.0):
        return [
            (model.logits().detach() / temperature).log_softmax(-1)
            for model in (self.student, self.teacher)
        ]

    def places(self):
        """Row, and where each chunk begins and ends on both sides."""
        for row, (before, rows) in enumerate(LAYOUTS):
            i, j = before
            for ours, theirs in rows:
                yield row, (i, i + ours), (j, j + theirs)
                i, j = i + ours, j + theirs


def brute_force(case, kind, temperature):
    """The sum over chunks, in loops; how many labels it compares; what is covered."""
    log_q, log_p = case.log_probs(1.0 if kind == "chunks" else temperature)
    if kind == "pieces":
        return brute_force_of_pieces(case, temperature)
    if kind == "shared":
        return brute_force_of_beginnings(case, temperature)
    total, compared, covered = 0.0, 0, 0.0
    for row, (i, k), (j, m) in case.places():
        counts = [int(case.labels[row, place]) != -100 for place in range(i, k)]
        if i == 0 or j == 0 or not (all(counts) if kind == "chunks" else counts[0]):
            continue
        if kind == "chunks":
            q = math.exp(
                sum(
                    log_q[row, place - 1, case.labels[row, place]].item()
                    for place in range(i, k)
                )
                / temperature
            )
            p = math.exp(
                sum(
                    log_p[row, place - 1, case.teacher_ids[row, place]].item()
                    for place in range(j, m)
                )
                / temperature
            )
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            compared += k - i
            continue
        compared += 1
        q, p = log_q[row, i - 1].exp(), log_p[row, j - 1].exp()
        if kind == "sorted":
            p = p.sort(descending=True).values
            q = torch.cat(
                [q.sort(descending=True).values, q.new_zeros(len(p) - len(q))]
            )
            total += (p - q).abs().sum().item()
            continue
        twins = [(s, int(t)) for s, t in enumerate(case.twins) if t >= 0]
        mass_q = sum(q[s].item() for s, _ in twins)
        mass_p = sum(p[t].item() for _, t in twins)
        total += sum((p[t] * (p[t] / q[s]).log()).item() for s, t in twins)
        if mass_q < 1 - 1e-9:
            total += (1 - mass_p) * math.log((1 - mass_p) / (1 - mass_q))
        covered += mass_p
    return total, compared, covered


def brute_force_of_pieces(case, temperature):
    """The same; the sum is divided by T² where labels are learned at 1."""
    tempered, _ = case.log_probs(temperature)
    _, log_p = case.log_probs()
    total, covered, compared = 0.0, 0.0, set()
    for row, (i, _), (j, m) in case.places():
        if i == 0 or j == 0 or int(case.labels[row, i]) == -100:
            continue
        compared.add((row, i))
        mass = dict.fromkeys(range(-1, VOCABULARY), 0.0)
        for t, s in enumerate(case.pieces.tolist()):
            mass[s] += log_p[row, j - 1, t].exp().item()
        ids = case.teacher_ids[row].tolist()
        begun, meant = int(case.pieces[ids[j]]), int(case.labels[row, i])
        if begun != meant:
            chunk = sum(log_p[row, at - 1, ids[at]].item() for at in range(j, m))
            mass[begun] -= math.exp(chunk)
            mass[meant] += math.exp(chunk)
        del mass[-1]
        covered += sum(mass.values())
        raised = {s: p ** (1 / temperature) for s, p in mass.items() if p > 0}
        for s, p in raised.items():
            p = p / sum(raised.values())
            total += p * (math.log(p) - tempered[row, i - 1, s].item())
    total += text_elsewhere(case, compared) / temperature**2
    return total, len(compared), covered


def text_elsewhere(case, compared):
    log_q, _ = case.log_probs()
    return -sum(
        log_q[row, place - 1, case.labels[row, place]].item()
        for row, place in (case.labels != -100).nonzero().tolist()
        if place and (row, place) not in compared
    )


def brute_force_of_beginnings(case, temperature):
    """The same."""
    log_q, log_p = case.log_probs()
    total, covered, text, compared = 0.0, 0.0, 0.0, set()
    for row, (i, _), (j, _) in case.places():
        if i == 0 or j == 0 or int(case.labels[row, i]) == -100:
            continue
        own = int(case.labels[row, i])
        number = int(case.beginnings[own])
        if number != int(case.teacher_beginnings[case.teacher_ids[row, j]]):
            continue
        compared.add((row, i))
        p, q = (
            [
                sum(
                    log[row, at - 1, token].exp().item()
                    for token in (group == which).nonzero().flatten()
                )
                for which in range(BEGINNINGS)
            ]
            for log, at, group in (
                (log_p, j, case.teacher_beginnings), (log_q, i, case.beginnings)
            )
        )  # fmt: skip
        covered += sum(p)
        text -= log_q[row, i - 1, own].item() - math.log(q[number])
        p, q = ([one ** (1 / temperature) for one in some] for some in (p, q))
        for a, b in zip(p, q, strict=True):
            if a:
                total += a / sum(p) * math.log(a / sum(p) / (b / sum(q)))
    text += text_elsewhere(case, compared)
    return total + text / temperature**2, len(compared), covered


@pytest.mark.parametrize("form", ["hidden", "logits", "blocks"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_loops(kind, temperature, form, monkeypatch):
    if form == "blocks":
        monkeypatch.setattr(blocks, "BLOCK_NUMBERS", {"cpu": 1})
        monkeypatch.setattr(blocks, "LEAST_ROWS", 2)
    case = Case()
    models = {}
    if form == "logits":
        models = {"student": case.student.logits(), "teacher": case.teacher.logits()}
    found = case.loss(kind, temperature=temperature, **models)
    total, compared, covered = brute_force(case, kind, temperature)
    scale = {"chunks": temperature, "sorted": 1}.get(kind, temperature**2)
    items = int((case.labels[:, 1:] != -100).sum())
    assert found.num_items == items
    assert found.loss.item() == pytest.approx(total * scale / items, rel=1e-6)
    assert found.compared.item() == pytest.approx(compared / items)
    assert 0 < compared < items
    if kind in ("mapped", "pieces", "shared"):
        assert found.covered.item() == pytest.approx(covered / items)
    else:
        assert found.covered is None
    off = {"chunks": "scale_by_t", "mapped": "scale_by_t2"}.get(kind)
    if off:
        plain = case.loss(kind, temperature=temperature, **models, **{off: False})
        assert plain.loss.item() == pytest.approx(total / items, rel=1e-6)
    halved = case.loss(kind, temperature=temperature, **models, num_items=2 * items)
    assert halved.loss.item() == pytest.approx(total * scale / items / 2, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_no_gradient(kind, monkeypatch):
    case = Case()
    whole = case.gradients(case.loss(kind, temperature=2.0).loss)
    assert all(float(gradient.abs().max()) > 1e-3 for gradient in whole)
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", {"cpu": 1})
    monkeypatch.setattr(blocks, "LEAST_ROWS", 2)
    for one, other in zip(
        case.gradients(case.loss(kind, temperature=2.0).loss), whole, strict=True
    ):
        torch.testing.assert_close(one, other)
    # Nor does the step from hidden states to logits.
    given = case.loss(kind, case.student.logits(), temperature=2.0)
    for one, other in zip(case.gradients(given.loss), whole, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_value(kind):
    case = Case()
    states = case.student.states.detach()
    (gradient,) = torch.autograd.grad(case.loss(kind).loss, [case.student.states])
    direction = torch.randn(
        states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def value(step):
        moved = Hidden(states + step * direction, case.student.head)
        return case.loss(kind, moved).loss.item()

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_no_gradient_flows_into_the_teacher():
    for kind in KINDS:
        case = Case()
        case.loss(kind).loss.backward()
        assert case.teacher.states.grad is None
        assert case.teacher.head.weight.grad is None


# --- what theory says of equal tokenizers -------------------------------------------


def single_tokens(case):
    """Every token a chunk of its own, as with one tokenizer."""
    counts = case.chunks >= 0
    case.chunks = (counts.cumsum(1) - 1).where(counts, -1)
    case.teacher_chunks = case.chunks
    return case


@pytest.mark.parametrize("kind", ["mapped", "pieces", "shared"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_one_tokenizer_these_are_the_forward_kl(temperature, kind):
    case = single_tokens(Case(same=True))
    # Nothing is inside a chunk; and what nothing predicts is not learned.
    found = case.loss(kind, temperature=temperature)
    # The same positions: row 2 begins with a token that nothing predicts.
    expected = soft_label_loss(
        case.student, case.teacher, case.labels, temperature=temperature
    )
    assert found.loss.item() == pytest.approx(expected.loss.item())
    assert found.compared == found.covered == pytest.approx(1)
    for one, other in zip(
        case.gradients(found.loss), case.gradients(expected.loss), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_with_one_tokenizer_chunks_are_the_text_s_token_and_a_tail():
    case = single_tokens(Case(same=True))
    found = case.loss("chunks")
    _, log_p = case.log_probs()
    ids = torch.nn.functional.pad(case.labels[:, 1:], (0, 1)).clamp(min=0).flatten()
    p = log_p.flatten(0, 1).exp().gather(1, ids.unsqueeze(1))
    stored = SparseTargets(ids.unsqueeze(1), p, 1 - p.squeeze(1), None, 1.0)
    expected = soft_label_loss(case.student, stored, case.labels)
    assert found.loss.item() == pytest.approx(expected.loss.item())
    for one, other in zip(
        case.gradients(found.loss), case.gradients(expected.loss), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_coarser_mapping_gives_a_smaller_value():
    case = single_tokens(Case(same=True))
    whole = case.loss("mapped").loss.item()
    before = whole
    for left_out in (3, 7, 12, 18):
        case.twins = torch.arange(VOCABULARY)
        case.twins[:left_out] = -1
        value = case.loss("mapped").loss.item()
        assert 0 < value < before
        before = value


def test_a_student_without_other_tokens_takes_what_lies_on_the_twins():
    case = Case()
    case.twins = torch.randperm(THEIRS)[:VOCABULARY]
    found = case.loss("mapped")
    total, items = 0.0, found.num_items
    log_q, log_p = case.log_probs()
    for row, (i, _), (j, _) in case.places():
        if i and j and int(case.labels[row, i]) != -100:
            p = log_p[row, j - 1, case.twins].softmax(-1)
            total += (p * (p.log() - log_q[row, i - 1])).sum().item()
    assert found.loss.item() == pytest.approx(total / items)
    assert found.covered.item() < found.compared.item()


@pytest.mark.parametrize("kind", ["pieces", "shared"])
def test_where_nothing_is_compared_the_text_is_the_label(kind):
    case = Case()
    before = case.loss(kind)
    case.chunks = torch.full_like(case.chunks, -1)
    case.teacher_chunks = torch.full_like(case.teacher_chunks, -1)
    alone = case.loss(kind)
    assert alone.compared == alone.covered == 0 < before.compared
    expected = hard_label_loss(case.student, case.labels)
    assert alone.loss.item() == pytest.approx(expected.item())


def test_pieces_that_go_nowhere_are_left_out():
    case = Case()
    case.pieces = torch.full((THEIRS,), -1)
    found = case.loss("pieces")
    # All that the teacher says in the student's tokens is the text.
    expected = hard_label_loss(case.student, case.labels)
    assert found.loss.item() == pytest.approx(expected.item())
    assert 0 < found.covered < found.compared


def test_a_longer_token_gets_what_the_teacher_gives_to_its_pieces():
    # The student has "Dar", "cy" and "Darcy", the teacher "Dar" and "cy".
    labels = torch.tensor([[1, 2]])
    teacher_ids = torch.tensor([[1, 0, 1]])
    chunks, theirs = torch.tensor([[-1, 0]]), torch.tensor([[-1, 0, 0]])
    teacher = torch.tensor([[[0.6, 0.4], [0.5, 0.5], [0.5, 0.5]]]).log()
    student = torch.tensor([[[0.3, 0.4, 0.3], [1.0, 1.0, 1.0]]]).log()
    found = first_pieces_loss(
        student.requires_grad_(), teacher, labels, teacher_ids, chunks, theirs,
        torch.tensor([0, 1]),
    )  # fmt: skip
    found.loss.backward()
    assert found.loss.item() == pytest.approx(0, abs=1e-7)
    assert float(student.grad.abs().max()) < 1e-7
    assert found.covered == found.compared == 1


def test_a_padded_head_of_the_student_counts_for_nothing():
    case = Case()
    logits = torch.cat(
        [case.student.logits(), torch.full((*case.chunks.shape, 5), 9.0)], -1
    )
    found = case.loss("mapped", logits).loss.item()
    assert found == pytest.approx(case.loss("mapped").loss.item())


def test_padded_heads_are_in_no_beginning():
    case = Case()
    narrow = case.loss("shared")
    wide = [
        torch.cat([model.logits(), torch.full((*where.shape, 5), 2.0)], -1)
        for model, where in (
            (case.student, case.chunks), (case.teacher, case.teacher_chunks)
        )
    ]  # fmt: skip
    found = case.loss("shared", *wide)
    assert found.covered < narrow.covered  # what lies on padding is nobody's
    assert found.loss.item() == pytest.approx(narrow.loss.item())


def test_the_text_says_which_token_has_the_beginning():
    """The teacher's "un" is the student's "un", "under" and "unless"."""
    labels, teacher_ids = torch.tensor([[3, 1]]), torch.tensor([[0, 1]])
    chunks = torch.tensor([[-1, 0]])
    teacher = torch.tensor([[[0.2, 0.8], [0.5, 0.5]]]).log()
    student = torch.tensor([[[0.3, 0.4, 0.1, 0.2], [1.0] * 4]]).log()
    found = shared_beginnings_loss(
        student.requires_grad_(), teacher, labels, teacher_ids, chunks, chunks,
        torch.tensor([1, 1, 1, 0]), torch.tensor([0, 1]),
    )  # fmt: skip
    # 0.8 on the three together, as the teacher has it; of these, 0.4 of 0.8 is "under".
    assert found.loss.item() == pytest.approx(math.log(2))
    assert found.covered == found.compared == 1
    found.loss.backward()
    assert student.grad[0, 0].tolist() == pytest.approx(
        [3 / 8, -0.5, 1 / 8, 0.0], abs=1e-6
    )


def test_a_token_that_both_rule_out_changes_nothing():
    """One tokenizer: the loss and the gradient of a vocabulary without that token."""
    case = single_tokens(Case(same=True))
    expected = case.loss("shared", temperature=2.0)
    padded = [
        torch.nn.functional.pad(model.logits(), (0, 1), value=-torch.inf)
        for model in (case.student, case.teacher)
    ]
    case.beginnings = case.teacher_beginnings = torch.arange(VOCABULARY + 1)
    found = case.loss("shared", *padded, temperature=2.0)
    assert found.loss.item() == pytest.approx(expected.loss.item())
    for one, other in zip(
        case.gradients(found.loss), case.gradients(expected.loss), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_beginning_that_the_student_never_writes_gives_a_gradient():
    """Probabilities that are zero in fp32 have logarithms."""
    labels, chunks = torch.tensor([[2, 0]]), torch.tensor([[-1, 0]])
    student = torch.tensor([[[-300.0, -301.0, 0.0], [0.0] * 3]], requires_grad=True)
    found = shared_beginnings_loss(
        student, torch.zeros(1, 2, 2), labels, torch.tensor([[0, 0]]), chunks, chunks,
        torch.tensor([0, 0, 1]), torch.tensor([0, 1]),
    )  # fmt: skip
    assert 100 < found.loss.item() < 200
    found.loss.backward()
    assert student.grad[0, 0, :2].sum().item() == pytest.approx(-0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_where_both_agree_and_never_negative(kind):
    case = Case(same=True)
    if kind in ("pieces", "shared"):  # inside a chunk the label is learned
        case = single_tokens(case)
    assert case.loss(kind).loss.item() > 1e-3
    agreed = case.loss(kind, teacher=case.student, temperature=2.0)
    assert agreed.loss.item() == pytest.approx(0, abs=1e-9)
    for gradient in case.gradients(agreed.loss):
        assert float(gradient.abs().max()) < 1e-6


def test_the_binary_kl_grows_into_surprisals():
    log_p = torch.tensor([-0.5, -3.0, -20.0], dtype=torch.float64)
    log_q = torch.tensor([-1.5, -2.0, -30.0], dtype=torch.float64)
    a, b = -log_p, -log_q
    limit = a * (a / b).log() - a + b
    torch.testing.assert_close(
        1e4 * binary_kl(log_p, log_q, 1e4), limit, rtol=5e-3, atol=1e-3
    )
    assert bool((binary_kl(log_p, log_q) > 0).all())
    # A certain text, and an impossible one: numbers, with numbers as gradients.
    ends = torch.tensor([0.0, -1e-9, -torch.inf, -5.0], requires_grad=True)
    value = binary_kl(torch.tensor([-1.0, 0.0, -torch.inf, -5.0]), ends)
    value.sum().backward()
    assert bool(value.isfinite().all())
    assert bool(ends.grad.isfinite().all())
    assert value[1:].tolist() == [0, 0, 0]


def test_sorting_forgets_what_the_probabilities_are_of():
    case = Case(same=True)
    renamed = Hidden(
        case.student.states, case.student.head.weight[torch.randperm(VOCABULARY)]
    )
    assert case.loss("sorted", teacher=renamed).loss.item() == pytest.approx(
        0, abs=1e-9
    )
    assert case.loss("mapped", teacher=renamed).loss.item() > 1e-2
    sure = torch.zeros(*case.chunks.shape, VOCABULARY, dtype=torch.float64)
    sure[..., 0] = 1e3
    even = torch.zeros(*case.chunks.shape, 10**4, dtype=torch.float64)
    found = case.loss("sorted", sure, even)
    assert found.loss.item() <= 2 * found.compared.item()
    assert found.loss.item() == pytest.approx(2 * found.compared.item(), rel=1e-3)


# --- the contract -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_compare_is_a_zero_with_its_graph(kind):
    case = Case()
    case.labels[:] = -100
    none = case.loss(kind)
    assert none.loss.item() == none.compared.item() == 0
    case = Case()
    case.chunks[:] = case.teacher_chunks[:] = -1
    if kind in ("pieces", "shared"):  # these have labels to learn
        none.loss.backward()
        return
    unaligned = case.loss(kind)
    assert unaligned.loss.item() == unaligned.compared.item() == 0
    for found in (none, unaligned):
        found.loss.backward()
    assert float(case.student.states.grad.abs().max()) == 0
    assert float(case.student.head.weight.grad.abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_positions_that_do_not_count_may_hold_anything(kind):
    case = Case()
    expected = case.loss(kind).loss
    student, teacher = (
        m.logits().detach().clone() for m in (case.student, case.teacher)
    )
    student[3] = teacher[3] = torch.nan  # a row without chunks
    student[:, -1] = teacher[:, -1] = -torch.inf  # predict nothing
    found = case.loss(kind, student.requires_grad_(), teacher).loss
    torch.testing.assert_close(found, expected)
    found.backward()
    assert bool(student.grad.isfinite().all())
    with pytest.raises(ValueError, match="student holds NaN"):
        case.loss(kind, student.detach().fill_(torch.nan), teacher)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_summed_in_fp32(kind):
    exact = Case()
    half = Case(torch.bfloat16)
    found = half.loss(kind)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(exact.loss(kind).loss.item(), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_not_kept(kind, monkeypatch):
    """What waits for the gradient does not grow with rows times vocabulary."""
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", {"cpu": 16 * 4000})
    rows, vocabulary = 160, 4000
    chunks = torch.arange(rows + 1).unsqueeze(0)
    student, teacher = (
        Hidden(
            torch.randn(1, rows + 1, 4).requires_grad_(grad), torch.randn(vocabulary, 4)
        )
        for grad in (True, False)
    )
    case = Case()
    case.chunks = case.teacher_chunks = case.labels = case.teacher_ids = chunks
    case.twins = case.pieces = torch.arange(vocabulary)
    case.beginnings = case.teacher_beginnings = case.twins
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = case.loss(kind, student, teacher)
    assert sum(kept) < rows * vocabulary / 4
    found.loss.backward()
    assert float(student.states.grad.abs().max()) > 0


def test_what_does_not_fit_is_named():
    case = Case()
    with pytest.raises(ValueError, match="temperature=0"):
        case.loss("mapped", temperature=0)
    with pytest.raises(ValueError, match="num_items=0"):
        case.loss("sorted", num_items=0)
    wrong = Case()
    wrong.chunks = wrong.chunks[:, 1:]
    with pytest.raises(ValueError, match=r"chunks has shape \(4, 8\).*\(4, 9\)"):
        wrong.loss("chunks")
    wrong = Case()
    wrong.teacher_ids = wrong.teacher_ids[:, 1:]
    with pytest.raises(ValueError, match="teacher_ids has shape"):
        wrong.loss("chunks")
    wrong = Case()
    wrong.teacher_chunks = wrong.teacher_chunks.clone()
    wrong.teacher_chunks[1] = -1
    with pytest.raises(ValueError, match=r"row 1 has 3 chunks.*0 for the teacher"):
        wrong.loss("sorted")
    wrong = Case()
    wrong.twins[1] = THEIRS
    with pytest.raises(
        ValueError, match=rf"twins holds ids up to.*{THEIRS}.*27 outputs"
    ):
        wrong.loss("mapped")
    wrong = Case()
    wrong.pieces[1] = VOCABULARY
    with pytest.raises(ValueError, match=rf"pieces maps {THEIRS} tokens.*19 outputs"):
        wrong.loss("pieces")
    wrong = Case()
    wrong.teacher_beginnings[1] = BEGINNINGS
    with pytest.raises(ValueError, match=r"beginnings hold 19 and 27.*up to 6 and 7"):
        wrong.loss("shared")
    wrong = Case()
    wrong.beginnings = torch.arange(VOCABULARY + 1)
    with pytest.raises(ValueError, match=r"hold 20 and 27.*heads have 19 and 27"):
        wrong.loss("shared")
    wrong = Case()
    wrong.labels = wrong.labels[:, 1:]
    with pytest.raises(ValueError, match="one hidden state per label"):
        wrong.loss("mapped")


@pytest.mark.parametrize("widths", [(7, 40), (40, 7), (9, 9)])
def test_what_one_side_has_more_is_compared_with_zeros(widths):
    """Value and gradient of the plain way: pad the shorter, and sort both whole."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(1, 6, v, dtype=torch.float64) for v in widths)
    student.requires_grad_()
    chunks = torch.arange(-1, 5).unsqueeze(0)
    labels = torch.zeros(1, 6, dtype=torch.long)
    found = sorted_probabilities_loss(student, teacher, labels, chunks, chunks)
    q, p = (
        torch.nn.functional.pad(one.softmax(-1), (0, 40 - one.shape[-1]))
        for one in (student, teacher)
    )
    apart = (q.sort(-1).values - p.sort(-1).values)[:, :-1].abs().sum() / 5
    assert found.loss.item() == pytest.approx(apart.item(), rel=1e-9)
    gradients = [torch.autograd.grad(one, student)[0] for one in (found.loss, apart)]
    torch.testing.assert_close(*gradients)


# ULDLoss of trl 1.16.0 (trl.experimental.gold, torch 2.13.0) on the tensors below: no
# cross-entropy, byte offsets, "bayesian", without the hybrid loss.
TRL_ULD = {1.0: 0.3000642914577595, 2.0: 0.24886979461937733}


@pytest.mark.parametrize("temperature", TRL_ULD)
def test_sorted_probabilities_are_those_of_trl(temperature):
    """Where every token is a chunk, for only there do both compare the same places."""
    student, teacher = (
        (torch.arange(n * v, dtype=torch.float64) * step).reshape(1, n, v)
        for n, v, step in ((6, 7, 1.0), (7, 9, 0.7))
    )
    chunks = torch.arange(-1, 5).unsqueeze(0)
    found = sorted_probabilities_loss(
        student.sin() * 3,
        teacher.cos() * 3,
        torch.tensor([[-100, 1, 2, 3, 4, 5]]),
        chunks,
        torch.cat([chunks, torch.tensor([[-1]])], 1),
        temperature=temperature,
    )
    assert found.loss.item() == pytest.approx(TRL_ULD[temperature], rel=1e-9)
