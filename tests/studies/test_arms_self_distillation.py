"""Who teaches whom in ``self_distillation``, with which prompts, and what is measured.

A random model stands in for SmolLM2, and writes nonsense; the tiny teacher of prose is
the real one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from small_hub import CHATML
from tiny_models import byte_level_bpe, tiny
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.data import TEACHER_PROMPT
from distill_helpers.models import Loaded, round_groups, weights_hash
from distill_helpers.studies import self_distillation
from distill_helpers.studies.self_distillation import (
    EXAMPLES,
    STUDY,
    Sizes,
    load_task,
    obeys,
    prompt_of,
    repair,
)

BEFORE, TEACHER, SOFT, TEXT = "before", "teacher", "soft labels", "text"
RULE, HINTS = "a shared rule", "a hint for each word"
SIZES = Sizes(learn=6, validation=3, test=5, answer=4, steps=4)
WORDS = [f"{letter}{other}" for letter in "abcdefg" for other in "xyz"]
ROUNDED = "rounded to 2 bits"


def forget():
    load_task.cache_clear()
    self_distillation._untrained.cache_clear()


@pytest.fixture(scope="module")
def loaded():
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = CHATML
    return Loaded(tiny(tokenizer, seed=1).requires_grad_(False).eval(), tokenizer)


@pytest.fixture(scope="module", autouse=True)
def small(loaded, pair):
    """The study with a small model, few words and few rows of prose."""
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_distillation, "load_teacher", lambda _: loaded)
        patch.setattr(self_distillation, "load_pair", lambda **_: pair)
        patch.setattr(
            self_distillation, "entries", lambda: {one: f"{one}!" for one in WORDS}
        )
        patch.setattr(load_task.__wrapped__, "__defaults__", (SIZES,))
        yield
    forget()


@pytest.fixture(scope="module")
def ran():
    """Three steps of an arm: its trainings, its row, and what it wrote behind."""

    @lru_cache
    def run(arm, setting):
        asked = []
        real = self_distillation.write

        def write(*given):
            asked.append((weights_hash(given[0]), given[2], given[3]))
            return real(*given)

        load_task(RULE, 3), load_task(HINTS, 3)
        with pytest.MonkeyPatch.context() as patch, watching(3) as trainings:
            patch.setattr(self_distillation, "write", write)
            row = STUDY.run(run_of(arm, setting))
        return trainings, row, asked

    return run


def text_of(loaded, ids):
    return loaded.tokenizer.decode(ids)


# A prompt ---------------------------------------------------------------------------


def test_the_arms_of_the_tables():
    assert STUDY.pairs() == [
        *((arm, RULE) for arm in (BEFORE, TEACHER, SOFT, TEXT)),
        (SOFT, HINTS),
        *((arm, ROUNDED) for arm in (BEFORE, TEACHER, SOFT, TEXT)),
    ]


@pytest.mark.parametrize("setting", [RULE, HINTS])
def test_the_student_reads_the_question_and_the_teacher_something_more(setting, loaded):
    task = load_task(setting, 3)
    for row in task.rows:
        own = row["input_ids"][: row["labels"].count(-100)]
        short, long = (text_of(loaded, ids) for ids in (own, row[TEACHER_PROMPT]))
        asked = short.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        word = asked[:-1].split()[-1]
        assert word in WORDS
        assert asked == f"What is {'an' if word[0] in 'ae' else 'a'} {word}?"
        assert "dictionary" not in short
        assert '{"answer"' not in short
        if setting == RULE:
            turns = [
                turn
                for question, text in EXAMPLES
                for turn in (question, f'{{"answer": "{text}"}}')
            ]
            assert [long.count(turn) for turn in turns] == [1] * 6
            places = [long.index(turn) for turn in (*turns, asked)]
            assert places == sorted(places)
        else:
            assert f"user\nThe dictionary says: {word}!. {asked}<|im_end|>" in long
            assert '{"answer"' not in long


@pytest.mark.parametrize("setting", [RULE, HINTS])
def test_learned_is_what_the_teacher_says_behind_its_prompt(setting, loaded):
    task = load_task(setting, 3)
    for row in task.rows:
        answer = [label for label in row["labels"] if label != -100]
        assert row["input_ids"][-len(answer) :] == answer
        ids = row[TEACHER_PROMPT][:]
        for token in answer:
            logits = loaded.model(torch.tensor([ids])).logits[0, -1]
            assert logits[token] > logits.max() - 1e-4
            ids.append(token)


def test_words_are_the_seed_s_and_nobody_learns_what_judges():
    def questions(task):
        batches = (*task.validation.batches, *task.test.batches)
        learned = [row["input_ids"][: row["labels"].count(-100)] for row in task.rows]
        judged = [
            ids[: (labels != -100).nonzero()[0, 0]].tolist()
            for batch in batches
            for ids, labels in zip(
                *(batch[n] for n in ("input_ids", "labels")), strict=True
            )
        ]
        return learned, judged

    learned, judged = questions(load_task(RULE, 3))
    assert (len(learned), len(judged)) == (6, 8)
    every = {tuple(one) for one in (*learned, *judged)}
    assert len(every) == 14
    assert questions(load_task(HINTS, 3)) == (learned, judged)
    assert judged[3:] == load_task(RULE, 3).alone
    assert {tuple(one) for one in questions(load_task(RULE, 4))[0]} != {
        *map(tuple, learned)
    }


@pytest.mark.parametrize(
    ("arm", "setting"), [(SOFT, RULE), (TEXT, RULE), (SOFT, HINTS)]
)
def test_who_learns_what_from_whom(arm, setting, ran, loaded):
    (training,), _, _ = ran(arm, setting)
    task = load_task(setting, 3)
    assert training.settings == settings_of(4, 2)
    model = training.trainer.model
    named = {name for name, one in model.named_parameters() if one.requires_grad}
    assert named
    assert all("lora_" in name for name in named)
    ranks = {one.r["default"] for one in model.modules() if hasattr(one, "r")}
    assert ranks == {8}
    assert training.begins == ran(SOFT, RULE)[0][0].begins
    if arm == TEXT:
        assert training.kind == "HardLabelTrainer"
        assert same_rows(training.rows, task.rows.remove_columns(TEACHER_PROMPT))
    else:
        assert training.kind == "SoftLabelTrainer"
        assert same_rows(training.rows, task.rows)
        assert training.options == PLAIN
        teacher = training.trainer.objective.teacher
        assert teacher.is_student
        assert teacher.model is model
    # What everybody begins as was not trained on the way.
    assert weights_hash(loaded.model) == weights_hash(tiny(loaded.tokenizer, seed=1))


def test_the_adapters_start_is_the_seed_s(loaded):
    task = load_task(RULE, 3)
    with watching() as trainings:
        for seed in (3, 3, 4):
            self_distillation.learn(task, TEXT, seed=seed, learning_rate=1e-3)
    first, again, other = (one.begins for one in trainings)
    assert first == again != other


def naive(loaded, task, heard, student):
    """NLL and KL, row by row, from logits at the answers' places."""
    nll, kl, count = 0.0, 0.0, 0
    for batch in heard.batches:
        for row in range(len(batch["input_ids"])):
            places = (batch["labels"][row] != -100).nonzero()[:, 0]
            answer = batch["input_ids"][row, places]
            size = int(batch["teacher_attention_mask"][row].sum())
            theirs = batch["teacher_input_ids"][row : row + 1, :size]
            with torch.no_grad():
                p = (
                    loaded.model(theirs)
                    .logits[0, -len(answer) - 1 : -1]
                    .log_softmax(-1)
                )
                mine = student(batch["input_ids"][row : row + 1]).logits[0]
            q = mine[places - 1].log_softmax(-1)
            kl += float((p.exp() * (p - q)).sum())
            nll -= float(q.gather(-1, answer[:, None]).sum())
            count += len(answer)
    return nll / count, kl / count


@pytest.mark.parametrize("setting", [RULE, HINTS])
def test_numbers_are_those_of_the_formula(setting, ran, loaded):
    (training,), row, _ = ran(SOFT, setting)
    task, student = load_task(setting, 3), training.trainer.model
    nll, kl = naive(loaded, task, task.test, student)
    assert (row["nll"], row["kl_to_teacher"]) == pytest.approx((nll, kl), rel=1e-3)
    before = naive(loaded, task, task.test, loaded.model)[1]
    assert row["kl_left"] == pytest.approx(100 * kl / before, rel=1e-3)
    assert abs(row["kl_left"] - 100) > 0.1, "the untrained model was measured"
    chosen = naive(loaded, task, task.validation, student)[0]
    assert row["validation_nll"] == pytest.approx(chosen, rel=1e-3)
    learned = [
        naive(loaded, task, task.learned, one)[1] for one in (student, loaded.model)
    ]
    assert row["kl_left_learned"] == pytest.approx(
        100 * learned[0] / learned[1], rel=1e-3
    )


def test_without_training_all_is_left_and_of_the_teacher_nothing(ran, loaded):
    task = load_task(RULE, 3)
    before, teacher = ran(BEFORE, RULE)[1], ran(TEACHER, RULE)[1]
    assert (before["kl_left"], before["kl_left_learned"]) == (100, 100)
    assert teacher["kl_left"] == pytest.approx(0, abs=1e-3)
    assert before["nll"] == pytest.approx(
        naive(loaded, task, task.test, loaded.model)[0]
    )
    assert teacher["nll"] < before["nll"]
    assert not ran(BEFORE, RULE)[0]
    assert not ran(TEACHER, RULE)[0]


@pytest.mark.parametrize("arm", [BEFORE, TEACHER, SOFT, TEXT])
def test_the_form_is_asked_of_the_right_model_with_the_right_prompts(arm, ran, loaded):
    trainings, row, asked = ran(arm, RULE)
    task = load_task(RULE, 3)
    writer = trainings[0].trainer.model if trainings else loaded.model
    # What the teacher wrote was there to be learned from.
    wrote = [] if arm == TEACHER else [(weights_hash(writer), task.alone, 4)]
    assert asked == wrote
    assert row["form"] == 0


def test_hints_are_not_judged_by_a_form(ran):
    _, row, asked = ran(SOFT, HINTS)
    assert math.isnan(row["form"])
    assert not asked


def test_the_share_is_of_a_hundred(loaded, monkeypatch):
    def ids(*texts):
        return [loaded.tokenizer(one)["input_ids"] for one in texts]

    good, bad = '{"answer": "a"}', "an answer"
    monkeypatch.setattr(
        self_distillation, "write", lambda *_: ids(good, bad, good, bad, bad)
    )
    task = replace(load_task(RULE, 3), answers=ids(good, good, good, bad))
    assert self_distillation.outcome(task, RULE)["form"] == 75
    assert self_distillation.outcome(task, RULE, loaded.model)["form"] == 40


def answers_of(batches):
    return [
        ids[labels != -100].tolist()
        for batch in batches
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]


def test_the_teacher_s_answers_are_those_that_judge():
    task = load_task(RULE, 3)
    assert task.answers == answers_of(task.test.batches)
    (batch,) = task.learned.batches
    read = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert read == task.rows["input_ids"][:3]


@pytest.mark.parametrize("setting", [RULE, HINTS])
def test_the_teacher_writes_behind_its_own_prompts(setting, monkeypatch):
    """A random model may write the same behind others."""
    asked = []
    real = self_distillation.write
    monkeypatch.setattr(
        self_distillation,
        "write",
        lambda *given: asked.append(given[2]) or real(*given),
    )
    task = load_task(setting, 5)
    ((first, *others),) = asked
    assert [first, *others][:6] == task.rows[TEACHER_PROMPT][:]
    assert len(others) == 13


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"answer": "A dog."}', True),
        (' {"answer": ""}\n', True),
        ('{"answer": "A dog.', False),
        ('{"answer": "A dog."} And more.', False),
        ('{"answer": "A dog.", "kind": "animal"}', False),
        ('{"Answer": "A dog."}', False),
        ('["answer"]', False),
        ("A dog.", False),
    ],
)
def test_the_form(text, kept, loaded):
    ids = loaded.tokenizer(text)["input_ids"]
    assert obeys(loaded.tokenizer, ids) is kept
    assert obeys(loaded.tokenizer, [*ids, loaded.tokenizer.eos_token_id]) is kept


def test_prompts_are_those_of_the_lesson(loaded):
    """Which makes them of turns, and asks for the next one."""
    ids = prompt_of(loaded.tokenizer, "Why?", [("How?", "So.")])
    assert text_of(loaded, ids) == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
        '<|im_start|>assistant\n{"answer": "So."}<|im_end|>\n'
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


# Full precision ---------------------------------------------------------------------


def whole(model):
    """Weights behind the rounded ones, by the names that they had."""
    return {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in model.named_parameters()
    }


@pytest.mark.parametrize("arm", [SOFT, TEXT])
def test_a_rounded_copy_learns_from_prose_or_from_itself(arm, ran, pair):
    (training,), row, _ = ran(arm, ROUNDED)
    assert training.settings == settings_of(self_distillation.REPAIR_STEPS, 16)
    count = self_distillation.REPAIR_STEPS * 16
    assert same_rows(training.rows, pair.train.shuffle(seed=3).select(range(count)))
    kinds = {SOFT: "SoftLabelTrainer", TEXT: "HardLabelTrainer"}
    assert training.kind == kinds[arm]
    full = weights_hash(pair.teacher.teacher)
    assert training.teacher == (full if arm == SOFT else None)
    if arm == SOFT:
        assert training.options == PLAIN
    layer = training.trainer.model.model.layers[0].self_attn.q_proj
    original = layer.parametrizations.weight.original
    expected = round_groups(original.detach(), 2, 32)
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert row == self_distillation.judge_prose(pair, training.trainer.model)
    assert row != ran(BEFORE, ROUNDED)[1]


def test_a_rounded_copy_begins_as_full_precision_and_all_of_it_learns(pair):
    full = pair.teacher.teacher
    copied = self_distillation.rounded(pair)
    for name, value in full.named_parameters():
        assert torch.equal(whole(copied)[name], value), name
    assert all(value.requires_grad for value in copied.parameters())
    assert not any(value.requires_grad for value in full.parameters())
    before = weights_hash(full)
    with watching(3):
        trained = repair(pair, SOFT, seed=3, learning_rate=1e-2)
    assert weights_hash(full) == before
    assert weights_hash(trained) != weights_hash(copied)


def test_the_ends_of_the_scale(ran, pair):
    before, full = ran(BEFORE, ROUNDED)[1], ran(TEACHER, ROUNDED)[1]
    assert full["kl_to_teacher"] == pytest.approx(0, abs=1e-4)
    assert full["nll"] < before["nll"] - 0.5
    copied = self_distillation.rounded(pair)
    assert before == self_distillation.judge_prose(pair, copied)
    assert before["validation_nll"] == pair.validation_nll(copied)
    assert before["nll"] != before["validation_nll"]
