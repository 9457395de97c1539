"""Exposure bias where every distribution is written down: all is worked out by hand.

Two small real models, whose logits are then replaced by what a table says of the last
token. Nearly every text is certain, although it is drawn at temperature 1: a model is
sure of the next token, or tosses between tokens that go on alike. Where one model is
sure of what the other rules out, their divergence is the gap between the two logits.
"""

import math

import pytest
import torch
from tiny_models import byte_level_bpe, tiny

from distill_helpers.evaluation import ExposureBias, measure_exposure

# The logits of all tokens that a table does not name: never drawn.
GAP = 30.0
LN2 = math.log(2)
END, STOP = 0, 299  # the tokenizer's end, and one that only the student has
A, B, C = 20, 21, 22  # the last tokens of the prompts


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def speaker(tokenizer, table, *, ends=(END,)):
    """A model that says what ``table`` holds: last token to next ones' shares."""
    model = tiny(tokenizer)
    model.generation_config.eos_token_id = list(ends)
    logits = torch.full((len(tokenizer), len(tokenizer)), -GAP)
    logits[:, END] = 0.0  # what is behind tokens that are in no table
    for last, nexts in table.items():
        assert sum(nexts.values()) == 1
        logits[last, END] = -GAP
        for token, share in nexts.items():
            logits[last, token] = math.log(share)

    def say(module, args, kwargs, output):
        output.logits = logits[kwargs["input_ids"]]

    model.register_forward_hook(say, with_kwargs=True)
    return model


def even(*tokens):
    return {token: 1 / len(tokens) for token in tokens}


# Behind A the student writes 30, one of four, END; behind B only END; behind C it
# writes 32, 33 or 37, 32 or 38, … until it is cut off: 3, 1 and 6 tokens.
STUDENT = {
    A: {30: 1},
    **{30: even(31, 34, 35, 36)},
    **{last: {END: 1} for last in (B, 31, 34, 35, 36)},
    C: {32: 1},
    **{last: even(33, 37) for last in (32, 38)},
    **{last: even(32, 38) for last in (33, 37)},
    # What it would say where only the teacher goes.
    **{last: even(END, 60) for last in (40, 41)},
    43: even(44, 61, 62, 63),
    44: {45: 0.25, 46: 0.25, 60: 0.5},
    **{last: {END: 1 / 16, 60: 15 / 16} for last in (45, 46)},
}
# The teacher writes END; 40 or 41, END; and 43, 44, 45 or 46, END: 1, 2, 4 tokens.
TEACHER = {
    A: {END: 1},
    B: even(40, 41),
    **{last: {END: 1} for last in (40, 41, 45, 46)},
    C: {43: 1},
    43: {44: 1},
    44: even(45, 46),
    # What it would say where only the student goes.
    30: {31: 1},
    **{last: {END: 1} for last in (31, 34, 35, 36)},
    **{last: {33: 0.75, 37: 0.25} for last in (32, 38)},
    **{last: {32: 1} for last in (33, 37)},
}
# Three prompts that end in A, four in B, three in C, of different lengths. Ten are
# more than are scored at a time.
PROMPTS = [
    [5] * (1 + row % 3) + [last]
    for row, last in enumerate([A, B, C, B, A, C, B, C, A, B])
]


@pytest.fixture(scope="module", params=[1, 4, 64])
def found(request, bpe):
    models = (speaker(bpe, table) for table in (STUDENT, TEACHER))
    return measure_exposure(
        *models, bpe, PROMPTS, max_new_tokens=6, batch_size=request.param
    )


# At 32 and 38 the teacher says ¾, ¼ where the student says ½, ½.
UNEVEN_KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
UNEVEN_ENTROPY = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
# Behind the prompts: after A and C, each is sure of another token; after B the
# teacher's ½, ½ lie where the student has nothing: GAP, less their entropy.
BEHIND_PROMPTS = (3 * GAP + 4 * (GAP - LN2) + 3 * GAP) / 10
# The student's tokens at places 1 to 6: 10, 6, 6, 3, 3, 3 (A: 3 texts of 3 tokens,
# B: 4 of 1, C: 3 of 6). The teacher's: 10, 7, 3, 3 (A: 1, B: 2, C: 4).
OWN = [
    BEHIND_PROMPTS,
    (3 * math.log(4) + 3 * UNEVEN_KL) / 6,  # A: one of four, where it is sure; C
    (3 * 0.0 + 3 * LN2) / 6,  # A: both end; C: one of two, where it is sure
    UNEVEN_KL,  # C alone
]
HIS = [
    BEHIND_PROMPTS,
    (4 * LN2 + 3 * math.log(4)) / 7,  # B: the student half ends; C: one of four
    LN2,  # C: ½ and ½ against ¼ and ¼
    math.log(16),  # C: the student ends with a sixteenth
]


def test_places_are_counted_up_to_the_shorter_side(found):
    """The lower of 10, 6, 6, 3, 3, 3 and 10, 7, 3, 3; then the teacher's have ended."""
    assert found.counts == (10, 6, 3, 3)


def test_each_place_is_the_mean_over_its_own_side_s_texts(found):
    assert found.student_prefix == pytest.approx(OWN, abs=1e-5)
    assert found.teacher_prefix == pytest.approx(HIS, abs=1e-5)


def test_excess_weighs_the_places_behind_the_first_by_what_both_have(found):
    gaps = [own - his for own, his in zip(OWN, HIS, strict=True)]
    by_hand = (6 * gaps[1] + 3 * gaps[2] + 3 * gaps[3]) / (6 + 3 + 3)
    assert by_hand < -0.5  # far from nothing
    assert found.excess == pytest.approx(by_hand, abs=1e-5)


def test_entropies_are_over_every_token_of_a_side(found):
    """Also over the tokens at places that the other side does not have."""
    # The student's 31 tokens. B: before its END the teacher tosses; C: at places
    # 2, 4 and 6 it says ¾, ¼; else it is sure.
    own = (4 * LN2 + 3 * 3 * UNEVEN_ENTROPY) / (3 * 3 + 4 * 1 + 3 * 6)
    assert found.student_entropy == pytest.approx(own, abs=1e-5)
    # The teacher's 23 tokens: it tosses at the first of B and at the third of C.
    his = (4 * LN2 + 3 * LN2) / (3 * 1 + 4 * 2 + 3 * 4)
    assert found.teacher_entropy == pytest.approx(his, abs=1e-5)


def test_the_student_s_side_may_be_the_shorter_one(bpe):
    """Both have places as far as the side that ends first, whichever it is."""
    teacher = speaker(bpe, {B: {40: 1}, 40: {41: 1}, 41: {END: 1}})
    student = speaker(bpe, {B: {END: 1}, 40: even(41, 60), 41: even(END, 60)})
    found = measure_exposure(student, teacher, bpe, [[5, B]], max_new_tokens=6)
    assert found.counts == (1,)
    assert found.student_prefix == pytest.approx([GAP])  # sure of another token
    assert found.teacher_prefix == pytest.approx([GAP])
    assert found.excess == 0.0  # nothing to compare behind the first


def test_what_ends_one_model_s_text_ends_the_other_s(bpe):
    """STOP ends the student's texts alone; the teacher, too, says nothing behind it."""
    student = speaker(bpe, {A: {STOP: 1}}, ends=(STOP,))
    # Of its two tokens it is sure; of what it would say next it is not.
    teacher = speaker(bpe, {A: {40: 1}, 40: {STOP: 1}, STOP: even(50, 51, 52, 53)})
    found = measure_exposure(student, teacher, bpe, [[5, A]] * 2, max_new_tokens=6)
    assert found.counts == (2,)
    assert found.teacher_entropy == pytest.approx(0, abs=1e-5)
    # And the other way round.
    found = measure_exposure(teacher, student, bpe, [[5, A]] * 2, max_new_tokens=6)
    assert found.counts == (2,)
    assert found.student_repetition == 0.0


def test_repetition_is_the_share_of_runs_of_four_that_came_before(bpe):
    """Runs are looked for within a text, and counted over all of a side's texts."""
    # Behind A: 30, 31, 30, …, eight tokens, five runs, three of them again. Behind B:
    # 40, 41, 42, 43, END, and twice the same text is no repetition: two runs each.
    student = speaker(
        bpe,
        {A: {30: 1}, 30: {31: 1}, 31: {30: 1}}
        | {B: {40: 1}, 40: {41: 1}, 41: {42: 1}, 42: {43: 1}},
    )
    # Behind A: 50 eight times, five runs, four of them again. Behind B: END, no run.
    teacher = speaker(bpe, {A: {50: 1}, 50: {50: 1}})
    prompts = [[A], [5, B], [B]]
    found = measure_exposure(student, teacher, bpe, prompts, max_new_tokens=8)
    assert found.student_repetition == pytest.approx(3 / (5 + 2 + 2))
    assert found.teacher_repetition == pytest.approx(4 / 5)
    short = measure_exposure(student, teacher, bpe, prompts, max_new_tokens=3)
    assert (short.student_repetition, short.teacher_repetition) == (0.0, 0.0)


def test_excess_of_one_place_is_nothing():
    parts = {"student_prefix": (1.0,), "teacher_prefix": (1.0,), "counts": (3,)}
    rest = dict.fromkeys(
        f"{who}_{what}"
        for who in ("student", "teacher")
        for what in ("entropy", "repetition")
    )
    assert ExposureBias(**parts, **rest).excess == 0.0


def test_draws_are_at_temperature_1_and_follow_the_seed_alone(bpe):
    """128 prompts alike, behind each a toss of its own that is tails with ⅕."""
    # Heads is a text of one token, tails one of two: the counts tell the tosses. About
    # 26 of 128, with a deviation of 4.5; at half the temperature it would be 8.
    coin = speaker(bpe, {A: {END: 0.8, 40: 0.2}})
    found = [
        measure_exposure(
            coin, coin, bpe, [[A]] * 128, max_new_tokens=2, seed=seed, batch_size=size
        ).counts
        for seed, size in ((0, 128), (0, 32), (1, 128), (2, 128))
    ]
    assert found[0] == found[1]  # whatever the batch
    assert len(set(found)) > 1
    assert all(14 <= counts[1] <= 38 for counts in found)
