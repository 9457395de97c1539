"""SoftLabelTrainer across tokenizers: the step by hand, the log, what is refused."""

import copy
import logging

import pytest
import torch
from datasets import Dataset
from tiny_models import TEXTS, byte_level_bpe, tiny
from training_runs import SGD, weights

from distill_helpers import data, machine
from distill_helpers.cli import main
from distill_helpers.labels import (
    SoftLabelCache,
    learn_answers,
    own_labels,
    write_cache,
)
from distill_helpers.losses import (
    chunk_likelihood_loss,
    first_pieces_loss,
    hard_label_loss,
    mapped_vocabulary_loss,
    shared_beginnings_loss,
    sorted_probabilities_loss,
)
from distill_helpers.trainers import CROSS, SoftLabelTrainer, training_arguments


@pytest.fixture(scope="module")
def small():
    return byte_level_bpe()


@pytest.fixture(scope="module")
def large():
    tokenizer = byte_level_bpe(400)
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    return tokenizer


def rows_of(tokenizer, count=8):
    """Texts of unequal lengths; in every other row the first half is a prompt."""
    rows = []
    for number in range(count):
        text = TEXTS[number % 3][5 * number : 5 * number + 20 + 3 * number]
        ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        masked = len(ids) // 2 if number % 2 else 0
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return Dataset.from_list(rows)


def trainer(student, teacher, tokenizer, other, rows, **options):
    chosen = {"steps": 1, "batch_size": 8, "disable_tqdm": True, "logging_steps": 1}
    for name in ("steps", "batch_size", "gradient_accumulation_steps"):
        if name in options:
            chosen[name] = options.pop(name)
    return SoftLabelTrainer(
        student,
        teacher=teacher,
        tokenizer=tokenizer,
        teacher_tokenizer=other,
        args=training_arguments(machine.get_profile("smoke"), **chosen | SGD),
        train_dataset=rows,
        **options,
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("cross", CROSS)
def test_one_step_is_the_gradient_of_the_loss(small, large, cross, fused):
    """One SGD step over four micro-batches, against the loss over all rows."""
    rows = rows_of(small)
    made = trainer(
        tiny(small, seed=1), tiny(large, seed=2), small, large, rows,
        cross=cross, alpha=0.7, temperature=2.0, fused=fused,
        batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    made.train()
    student, teacher = tiny(small, seed=1), tiny(large, seed=2)
    pair = data.align_tokenizers(small, large)
    collate = data.AlignedCollator(data.collator_for(small), data.collator_for(large))
    batch = collate(list(data.align_rows(rows, pair)))
    logits = student(batch["input_ids"], batch["attention_mask"]).logits
    with torch.no_grad():
        theirs = teacher(
            batch["teacher_input_ids"], batch["teacher_attention_mask"]
        ).logits
    both = (batch["chunks"], batch["teacher_chunks"])
    if cross in ("chunks", "words"):
        soft = chunk_likelihood_loss(
            logits, theirs, batch["labels"], batch["teacher_input_ids"], *both,
            temperature=2.0,
            word_starts=pair.word_starts if cross == "words" else None,
        )  # fmt: skip
    elif cross == "mapped":
        soft = mapped_vocabulary_loss(
            logits, theirs, batch["labels"], *both, pair.twins, temperature=2.0
        )
    elif cross == "pieces":
        soft = first_pieces_loss(
            logits, theirs, batch["labels"], batch["teacher_input_ids"], *both,
            pair.first_pieces, temperature=2.0,
        )  # fmt: skip
    elif cross == "shared":
        soft = shared_beginnings_loss(
            logits, theirs, batch["labels"], batch["teacher_input_ids"], *both,
            *pair.beginnings, temperature=2.0,
        )  # fmt: skip
    else:
        soft = sorted_probabilities_loss(
            logits, theirs, batch["labels"], *both, temperature=2.0
        )
    hard = hard_label_loss(logits, batch["labels"])
    (0.7 * soft.loss + 0.3 * hard).backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= SGD["learning_rate"] * parameter.grad
    start = weights(tiny(small, seed=1))
    assert (weights(student) - start).abs().max() > 1e-3
    torch.testing.assert_close(
        weights(made.model), weights(student), rtol=1e-4, atol=1e-5
    )
    # The teacher is as it was, and the log tells the parts of the whole step.
    assert torch.equal(weights(teacher), weights(made.objective.teacher.model))
    log = made.state.log_history[0]
    assert log["soft"] == pytest.approx(soft.loss.item(), rel=1e-4)
    assert log["hard"] == pytest.approx(hard.item(), rel=1e-4)
    assert log["compared"] == pytest.approx(soft.compared.item())
    assert log["unaligned"] == 0
    assert 0.5 < log["compared"] <= 1
    assert ("covered" in log) is (cross in ("mapped", "pieces", "shared"))
    if "covered" in log:
        assert log["covered"] == pytest.approx(soft.covered.item(), rel=1e-4)


@pytest.mark.parametrize("cross", ["mapped", "pieces", "shared"])
def test_with_one_tokenizer_these_trainers_are_the_plain_one(small, cross):
    rows = rows_of(small)
    plain, mapped = (
        trainer(
            *(tiny(small, seed=seed) for seed in (1, 2)),
            *(small, small, rows),
            **{"steps": 3, "batch_size": 4, "temperature": 2.0} | options,
        )
        for options in ({}, {"cross": cross})
    )
    plain.train()
    mapped.train()
    torch.testing.assert_close(
        weights(mapped.model), weights(plain.model), rtol=1e-4, atol=1e-5
    )
    assert mapped.state.log_history[0]["covered"] == pytest.approx(1)


@pytest.mark.parametrize("cross", ["chunks", "mapped", "pieces", "shared"])
def test_a_student_comes_nearer_to_its_teacher(small, large, cross):
    rows = rows_of(small)
    made = trainer(
        tiny(small, seed=1), tiny(large, seed=2), small, large, rows,
        cross=cross, steps=25, temperature=30.0 if cross == "chunks" else 1.0,
        eval_dataset={"same": rows},
    )  # fmt: skip
    before = made.evaluate()["eval_same_loss"]
    made.train()
    after = made.evaluate()["eval_same_loss"]
    assert 0 < after < 0.8 * before


def test_rows_that_cannot_be_aligned_teach_the_labels_alone(small, large, caplog):
    rows = [dict(row) for row in rows_of(small, 4)]
    # No UTF-8 text, inside of a row: no tokenizer could write it.
    broken = small.convert_tokens_to_ids(["Ã", "Ã"])
    whole = rows[0]["input_ids"]
    rows[0]["input_ids"] = rows[0]["labels"] = [*whole[:3], *broken, *whole[3:]]
    with caplog.at_level(logging.WARNING):
        made = trainer(
            tiny(small, seed=1), tiny(large, seed=2), small, large,
            Dataset.from_list(rows), cross="chunks", alpha=0.5, batch_size=4,
        )  # fmt: skip
    assert "1 of 4 rows cannot be aligned" in caplog.text
    made.train()
    log = made.state.log_history[0]
    assert log["unaligned"] == 1
    assert log["compared"] < 0.9
    nothing = trainer(
        tiny(small, seed=1), tiny(large, seed=2), small, large,
        Dataset.from_list(rows[:1]), cross="mapped", batch_size=1,
    )  # fmt: skip
    nothing.train()
    assert torch.equal(weights(nothing.model), weights(tiny(small, seed=1)))


CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_answers_behind_the_teacher_s_own_template(small, large):
    chat = copy.deepcopy(large)
    chat.chat_template = CHAT
    labels = own_labels(["Who?", "What?"] * 2, ["Emma.", "A truth"] * 2)
    pair = data.align_tokenizers(small, chat)
    rows = data.align_rows(
        learn_answers(labels, small), pair, learn_answers(labels, chat)
    )
    made = trainer(
        tiny(small, seed=1), tiny(chat, seed=2), small, chat, rows, cross="chunks",
        batch_size=4,
    )  # fmt: skip
    assert made.train_dataset is rows
    made.train()
    assert made.state.log_history[0]["compared"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross": "letters"}, "cross='letters' must be one of shared, pieces, chunks"),
        ({"cross": "chunks", "other": None}, "needs teacher_tokenizer="),
        ({"cross": "mapped", "divergence": "jsd"}, "divergence='jsd' has no meaning"),
        ({}, r"different tokenizers.*cross='chunks'.*hard labels"),
        ({"cross": "chunks", "packed": True}, "position_ids.*one to a row"),
    ],
)
def test_what_is_refused(small, large, options, message):
    options = dict(options)
    rows = rows_of(small)
    if options.pop("packed", False):
        rows = data.pack_examples(rows, 64)
    other = options.pop("other", large)
    with pytest.raises(ValueError, match=message):
        trainer(tiny(small, seed=1), tiny(large, seed=2), small, other, rows, **options)


@pytest.mark.parametrize("cross", CROSS)
def test_a_cache_of_the_teacher_s_rows_stands_for_the_teacher(
    small, large, cross, tmp_path
):
    rows = data.align_rows(rows_of(small), data.align_tokenizers(small, large))
    theirs = Dataset.from_dict({"input_ids": rows["teacher_input_ids"]})
    write_cache(tiny(large, seed=2), theirs, tmp_path, tokenizer=large, scheme="full")
    store = SoftLabelCache.open(tmp_path, tokenizer=large, dataset=theirs)
    # Whatever the temperature: all of each distribution is there.
    live, stored = (
        trainer(
            *(tiny(small, seed=1), teacher, small, large, rows),
            **{"cross": cross, "temperature": 3.0, "steps": 2},
        )
        for teacher in (tiny(large, seed=2), store)
    )
    live.train()
    stored.train()
    assert (weights(live.model) - weights(tiny(small, seed=1))).abs().max() > 1e-4
    torch.testing.assert_close(
        weights(stored.model), weights(live.model), rtol=1e-3, atol=1e-4
    )


def test_a_cache_of_a_part_is_refused(small, large, tmp_path):
    rows = data.align_rows(rows_of(small), data.align_tokenizers(small, large))
    theirs = Dataset.from_dict({"input_ids": rows["teacher_input_ids"]})
    write_cache(tiny(large, seed=2), theirs, tmp_path, tokenizer=large, scheme="hybrid")
    store = SoftLabelCache.open(tmp_path, tokenizer=large, dataset=theirs)
    made = trainer(tiny(small, seed=1), store, small, large, rows, cross="chunks")
    with pytest.raises(ValueError, match=r"whole is needed.*scheme='full'"):
        made.train()


def test_ids_that_the_teacher_does_not_have_are_named(small, large):
    narrow = tiny(small, seed=2)
    made = trainer(
        tiny(small, seed=1), narrow, small, large, rows_of(small), cross="chunks"
    )
    with pytest.raises(ValueError, match="teacher"):
        made.train()


def test_the_command_line_trains_across(large, tmp_path, capsys):
    folders = {}
    for name, tokenizer, seed in (("a", byte_level_bpe(), 1), ("b", large, 2)):
        folders[name] = str(tmp_path / name)
        tiny(tokenizer, seed=seed).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(TEXTS * 4), encoding="utf-8")
    line = [
        "train", "soft", "--text", str(text),
        "--student", folders["a"], "--teacher", folders["b"],
        "--rows", "8", "--length", "32", "--steps", "2", "--profile", "smoke",
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(line) == 1
    assert "--cross chunks" in capsys.readouterr().err
    assert main([*line, "--cross", "chunks"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    hard = [one if one != "soft" else "hard" for one in line]
    assert main([*hard, "--cross", "chunks"]) == 1
    assert "cross='chunks' is for a live teacher" in capsys.readouterr().err
