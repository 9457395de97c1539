"""What the likelihood of chunks cannot see, in a language that is known exactly.

A text is words, " a" or " ab", drawn one by one. The teacher's tokens are the words,
the student's are the characters, and both give every text the same probability.
"""

import math

import pytest
import torch

from distill_helpers.losses import binary_kl, blocks, chunk_likelihood_loss

P_A = 0.3  # of the word " a"; else it is " ab"
BEGIN, WORDS = 0, {"a": 1, "ab": 2}  # the teacher's tokens
SPACE, A, B = 1, 2, 3  # the student's, with the same BEGIN
STARTS = (torch.tensor([SPACE]), torch.tensor([*WORDS.values()]))
NEVER = -1e9
TEXT = ("a", "ab", "a", "a", "ab", "a")


def both():
    """Ids, chunks and log-probabilities of student and teacher, for the text."""
    ids, chunks = [BEGIN], [-1]
    for number, word in enumerate(TEXT):
        spelled = [SPACE, *({"a": A, "b": B}[letter] for letter in word)]
        ids += spelled
        chunks += [number] * len(spelled)
    after = torch.full((4, 4), NEVER, dtype=torch.float64)
    after[BEGIN, SPACE] = after[SPACE, A] = after[B, SPACE] = 0.0
    after[A, SPACE], after[A, B] = math.log(P_A), math.log(1 - P_A)
    words = torch.full((len(TEXT) + 1, 3), NEVER, dtype=torch.float64)
    words[:, 1], words[:, 2] = math.log(P_A), math.log(1 - P_A)
    theirs = [BEGIN, *(WORDS[word] for word in TEXT)]
    return (
        (torch.tensor([ids]), torch.tensor([chunks]), after[ids][None]),
        (torch.tensor([theirs]), torch.tensor([[-1, *range(len(TEXT))]]), words[None]),
    )


def likelihoods(ids, chunks, log_probs, *, spaces, before, after):
    """Of each word, in a loop; with a space to come, and given that one has come."""
    found = []
    row, numbers, logits = ids[0], chunks[0], log_probs[0]
    space = logits[:, spaces].logsumexp(-1)
    for number in range(len(TEXT)):
        places = (numbers == number).nonzero().flatten().tolist()
        value = sum(logits[place - 1, row[place]] for place in places)
        value = value + (space[places[-1]] if after else 0)
        found.append(value - (space[places[0] - 1] if before else 0))
    return torch.stack(found)


def test_both_give_each_text_the_same_probability():
    (ids, _, log_q), (their_ids, _, log_p) = both()
    ours, theirs = (
        logits[0, :-1].gather(1, row[0, 1:, None]).sum()
        for row, logits in ((ids, log_q), (their_ids, log_p))
    )
    # The characters do not say whether the last word has ended.
    last = log_q[0, -1, SPACE]
    assert (ours + last).item() == pytest.approx(theirs.item())


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_where_texts_are_equally_likely_chunks_are_not(temperature):
    """The limit that the docstring names, with its value in closed form."""
    (ids, chunks, log_q), (their_ids, their_chunks, log_p) = both()
    found = chunk_likelihood_loss(
        log_q, log_p, ids, their_ids, chunks, their_chunks,
        temperature=temperature, scale_by_t=False, num_items=1,
    )  # fmt: skip
    expected = 0.0
    for word, previous in zip(TEXT, (None, *TEXT), strict=False):
        p = math.log(P_A if word == "a" else 1 - P_A)
        # What the teacher knew before, the student says with the space; and it has
        # not said yet whether " a" is all.
        q = math.log(P_A) if previous == "a" else 0.0
        q += math.log(1 - P_A) if word == "ab" else 0.0
        pair = torch.tensor([p, q], dtype=torch.float64)
        expected += binary_kl(*pair, temperature).item()
    assert found.loss.item() == pytest.approx(expected, rel=1e-6)
    assert found.loss.item() > 1e-3


@pytest.mark.parametrize("form", ["logits", "blocks"])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_words_are_equally_likely_where_texts_are(temperature, form, monkeypatch):
    """Given that a word begins, that it is this one and ends: value and gradient."""
    if form == "blocks":
        monkeypatch.setattr(blocks, "BLOCK_NUMBERS", {"cpu": 1})
        monkeypatch.setattr(blocks, "LEAST_ROWS", 2)
    (ids, chunks, log_q), (their_ids, their_chunks, log_p) = both()
    log_q.requires_grad_()
    ids[0, -2:] = -100  # the last word: nothing says whether it has ended
    found = chunk_likelihood_loss(
        log_q, log_p, ids, their_ids, chunks, their_chunks,
        temperature=temperature, word_starts=STARTS,
    )  # fmt: skip
    found.loss.backward()
    assert found.loss.item() == pytest.approx(0, abs=1e-6)
    assert float(log_q.grad.abs().max()) < 1e-5
    assert found.compared.item() == pytest.approx(1)


def test_words_are_those_of_a_loop():
    """Any two models: chunks joined where none starts, and both ends of each word."""
    generator = torch.Generator().manual_seed(5)
    # Two rows; words begin with 0 (student) and with 0 or 1 (teacher). The first chunk
    # of a row has no such start, and the second word has two chunks.
    ids = torch.tensor([[3, 2, 0, 1, 2, 0, 2], [3, 0, 1, 2, 0, 2, 2]])
    chunks = torch.tensor([[-1, 0, 1, 1, 2, 3, 3], [-1, 0, 0, 1, 2, 3, -1]])
    theirs = torch.tensor([[4, 2, 0, 3, 1], [4, 1, 2, 0, 3]])
    their_chunks = torch.tensor([[-1, 0, 1, 2, 3], [-1, 0, 1, 2, 3]])
    # Row, the student's places, the teacher's; has it a start; does another follow?
    words = [
        (0, (1, 1), (1, 1), False, True),
        (0, (2, 4), (2, 3), True, True),
        (0, (5, 6), (4, 4), True, False),
        (1, (1, 3), (1, 2), True, True),
        (1, (4, 5), (3, 4), True, False),
    ]
    log_q = torch.randn(2, 7, 4, generator=generator).double().log_softmax(-1)
    log_p = torch.randn(2, 5, 5, generator=generator).double().log_softmax(-1)
    starts = (torch.tensor([0]), torch.tensor([0, 1]))
    total = 0.0
    for row, *places, opens, followed in words:
        values = []
        for (begin, end), row_ids, logits, some in zip(
            places,
            (ids[row], theirs[row]),
            (log_q[row], log_p[row]),
            starts,
            strict=True,
        ):
            space = logits[:, some].logsumexp(-1)
            value = sum(logits[at - 1, row_ids[at]] for at in range(begin, end + 1))
            value = value - (space[begin - 1] if opens else 0)
            values.append(value + (space[end] if followed else 0))
        total += binary_kl(values[1], values[0], 2.0).item()
    found = chunk_likelihood_loss(
        log_q, log_p, ids, theirs, chunks, their_chunks,
        temperature=2.0, scale_by_t=False, num_items=1, word_starts=starts,
    )  # fmt: skip
    assert found.loss.item() == pytest.approx(total, rel=1e-9)
    assert found.compared.item() == 11
    masked = ids.clone()
    masked[0, 4] = -100  # of a word, one token that does not count takes all with it
    less = chunk_likelihood_loss(
        log_q, log_p, masked, theirs, chunks, their_chunks, num_items=1,
        word_starts=starts,
    )  # fmt: skip
    assert less.compared.item() == 8


def test_nothing_to_compare_and_starts_that_nobody_has():
    (ids, chunks, log_q), (their_ids, their_chunks, log_p) = both()
    arguments = (log_q, log_p, ids, their_ids, chunks, their_chunks)
    for starts in (
        (STARTS[0], torch.tensor([9])),
        (torch.tensor([], dtype=int), STARTS[1]),
    ):
        with pytest.raises(ValueError, match=r"word_starts holds .* own tokenizers"):
            chunk_likelihood_loss(*arguments, word_starts=starts)
    nothing = torch.full_like(ids, -100)
    found = chunk_likelihood_loss(
        log_q.requires_grad_(), log_p, nothing, *arguments[3:], word_starts=STARTS
    )
    found.loss.backward()
    assert found.loss.item() == 0


@pytest.mark.parametrize(
    ("before", "after", "zero"),
    [(False, False, False), (False, True, False), (True, True, True)],
)
def test_the_end_alone_does_not_repair_it(before, after, zero):
    """ALM's factor, a space to come, needs its other half: given that one has come."""
    options = {"before": before, "after": after}
    (ids, chunks, log_q), (their_ids, their_chunks, log_p) = both()
    ours = likelihoods(ids, chunks, log_q, spaces=[SPACE], **options)
    theirs = likelihoods(their_ids, their_chunks, log_p, spaces=[1, 2], **options)
    value = binary_kl(theirs, ours).sum().item()
    assert value == pytest.approx(0, abs=1e-12) if zero else value > 0.05
