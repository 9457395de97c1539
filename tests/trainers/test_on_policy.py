"""The student's own text: what is written, what is learned from it, what it costs."""

import math
import random

import pytest
import torch
from datasets import Dataset
from small_architectures import lora, random_model, tokenizer_with_gaps
from tiny_models import byte_level_bpe, tiny
from training_runs import SGD, BreakOff, bf16_profile

from distill_helpers import machine
from distill_helpers.data import join_row, mask_prompts, prompt_of
from distill_helpers.evaluation import evaluate, measure_exposure
from distill_helpers.losses import token_divergence
from distill_helpers.models import (
    RememberingTeacher,
    build_student,
    checkpoint_activations,
    generate_batch,
)
from distill_helpers.studies.shared_task import worked
from distill_helpers.tasks import three_sums
from distill_helpers.tasks.teachers import load_tiny_teacher
from distill_helpers.trainers import (
    OnPolicyTrainer,
    SoftLabelTrainer,
    training_arguments,
)

PROMPTS = ["It is a truth", "However little", "Emma", "a single man in", "of a wife"]
ANSWERS = [" universally", " known the feelings", " Woodhouse, handsome", " p", "."]


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


@pytest.fixture
def rows(bpe):
    return mask_prompts(PROMPTS * 4, ANSWERS * 4, bpe)


def made(bpe, rows, kind=OnPolicyTrainer, *, folder=None, batch_size=4, **options):
    more = {
        name: options.pop(name)
        for name in (
            "gradient_accumulation_steps",
            "learning_rate",
            "save_steps",
            "seed",
            "steps",
        )
        if name in options
    }
    if folder is not None:
        more |= {"output_dir": str(folder), "save_strategy": "steps"}
    if kind is OnPolicyTrainer:
        options.setdefault("max_new_tokens", 6)
    options.setdefault("teacher", tiny(bpe, seed=0))
    profile = options.pop("profile", machine.get_profile("smoke"))
    return kind(
        options.pop("student", tiny(bpe, seed=1)),
        args=training_arguments(
            profile,
            batch_size=batch_size,
            disable_tqdm=True,
            **{"steps": 3, **SGD, **more},
        ),
        train_dataset=rows,
        tokenizer=bpe,
        **options,
    )


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def steps_of(trainer, monkeypatch):
    """What the objective gets, batch by batch."""
    seen = []
    objective = trainer.objective

    def watched(model, inputs, num_items):
        seen.append(({name: x.clone() for name, x in inputs.items()}, int(num_items)))
        return objective(model, inputs, num_items)

    monkeypatch.setattr(trainer, "objective", watched)
    trainer.train()
    return seen


# --- what is learned from -----------------------------------------------------------


def test_no_share_is_the_soft_label_trainer(bpe, rows):
    mine = made(bpe, rows, on_policy_share=0.0, divergence="jsd", beta=0.3)
    plain = made(bpe, rows, SoftLabelTrainer, alpha=1.0, divergence="jsd", beta=0.3)
    mine.train()
    plain.train()
    assert torch.equal(weights(mine), weights(plain))


def test_the_student_s_text_stands_behind_the_prompt(bpe, rows, monkeypatch):
    trainer = made(bpe, rows, steps=1, sampling_temperature=0.0)
    before = tiny(bpe, seed=1).eval()
    ((batch, num_items),) = steps_of(trainer, monkeypatch)
    prompts = {tuple(ids) for ids in bpe(PROMPTS)["input_ids"]}
    counted = 0
    for ids, labels, mask in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        size = int(mask.sum())
        row = {"input_ids": ids[:size].tolist(), "labels": labels[:size].tolist()}
        prompt = prompt_of(row)
        written = row["labels"][len(prompt) :]
        assert tuple(prompt) in prompts
        assert 1 <= len(written) <= 6
        assert written == row["input_ids"][len(prompt) :]
        assert labels[size:].eq(-100).all()
        counted += len(written)
        # What the model before the step finds likeliest, token by token.
        with torch.no_grad():
            guesses = before(torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        assert guesses[len(prompt) - 1 : -1].tolist() == written
    assert num_items == counted


def test_rows_that_keep_their_answers_keep_their_masks(bpe, monkeypatch):
    """As those of a conversation, in which the other's turns are not learned."""
    ids, labels = [5, 6, 7, 8, 9, 10], [-100, -100, 7, -100, 9, 10]
    rows = Dataset.from_dict({"input_ids": [ids] * 64, "labels": [labels] * 64})
    trainer = made(bpe, rows, on_policy_share=0.5, batch_size=64, steps=1)
    ((batch, num_items),) = steps_of(trainer, monkeypatch)
    kept = [row[:6].tolist() for row in batch["labels"]]
    assert 16 < kept.count(labels) < 48
    own = batch["labels"][[row != labels for row in kept]]
    assert num_items == 3 * kept.count(labels) + int(own.ne(-100).sum())


def test_the_loss_is_the_divergence_at_the_written_tokens(bpe, rows, monkeypatch):
    trainer = made(bpe, rows, steps=1, divergence="reverse_kl", temperature=2.0)
    trainer.args.logging_steps = 1
    ((batch, num_items),) = steps_of(trainer, monkeypatch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    student, teacher = tiny(bpe, seed=1), tiny(bpe, seed=0)
    with torch.no_grad():
        every = token_divergence(
            student(**inputs).logits[:, :-1],
            teacher(**inputs).logits[:, :-1],
            kind="reverse_kl",
            temperature=2.0,
        )
    expected = 4 * every[batch["labels"][:, 1:] != -100].sum() / num_items
    logged = next(e["soft"] for e in trainer.state.log_history if "soft" in e)
    assert logged == pytest.approx(float(expected), rel=1e-5)


def test_texts_are_drawn_as_the_student_s_softmax_says(bpe):
    """Many answers to one prompt: how often each first token comes."""
    rows = mask_prompts(["It is"] * 512, ["."] * 512, bpe)
    options = {"sampling_temperature": 0.2, "batch_size": 512, "steps": 1}
    trainer = made(bpe, rows, max_new_tokens=1, **options)
    (batch,), _ = trainer.get_batch_samples(
        iter(trainer.get_train_dataloader()), 1, "cpu"
    )
    first = batch["input_ids"][:, -1]
    with torch.no_grad():
        prompt = torch.tensor([bpe("It is")["input_ids"]])
        p = (trainer.model(prompt).logits[0, -1] / 0.2).softmax(-1)
    likely = p > 0.05
    assert likely.sum() >= 3
    found = torch.bincount(first, minlength=len(p))[likely] / 512
    assert torch.allclose(found, p[likely], atol=0.07)


def test_a_share_of_the_rows_keeps_its_answers(bpe, monkeypatch):
    rows = mask_prompts(["It is"] * 400, [" Emma"] * 400, bpe)
    trainer = made(
        bpe, rows, on_policy_share=0.25, batch_size=200, steps=2, max_new_tokens=3
    )
    kept = torch.tensor([*bpe(" Emma")["input_ids"], bpe.eos_token_id])
    shares = []
    for batch, _ in steps_of(trainer, monkeypatch):
        size = len(bpe("It is")["input_ids"])
        same = (batch["input_ids"][:, size : size + len(kept)] == kept).all(1)
        shares.append(1 - float(same.float().mean()))
    assert shares == pytest.approx([0.25, 0.25], abs=0.1)


# --- the same draws, however a step is run ------------------------------------------


def test_micro_batches_change_nothing(bpe, rows):
    whole = made(bpe, rows)
    parts = made(bpe, rows, batch_size=2, gradient_accumulation_steps=2)
    whole.train()
    parts.train()
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_seeds_decide(bpe, rows, monkeypatch):
    def texts(**options):
        seen = steps_of(made(bpe, rows, **options), monkeypatch)
        return [batch["input_ids"].tolist() for batch, _ in seen]

    first = texts(seed=5)
    assert texts(seed=5) == first
    assert texts(seed=6) != first


def test_no_step_and_no_row_repeats_another_s_draws(bpe, monkeypatch):
    prompts = mask_prompts(["It is"] * 8, ["."] * 8, bpe)
    trainer = made(bpe, prompts, steps=2, learning_rate=0.0)
    seen = steps_of(trainer, monkeypatch)
    texts = [tuple(row) for batch, _ in seen for row in batch["input_ids"].tolist()]
    assert len(set(texts)) == len(texts)


def test_a_resumed_run_writes_what_it_would_have(bpe, rows, tmp_path):
    whole = made(bpe, rows, steps=4)
    whole.train()
    first = made(bpe, rows, steps=4, folder=tmp_path, save_steps=2)
    first.args.max_steps = 2
    first.train()
    second = made(bpe, rows, steps=4, folder=tmp_path, save_steps=2)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    torch.testing.assert_close(weights(second), weights(whole), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["bf16", "checkpointing", "uneven"])
def test_it_trains(bpe, rows, name):
    student = tiny(bpe, seed=1)
    if name == "checkpointing":
        checkpoint_activations(student)
    options = {
        "bf16": {"profile": bf16_profile()},
        "checkpointing": {"student": student},
        # 20 rows, 3 to a batch, two batches a step: the last step of an epoch is short.
        "uneven": {"batch_size": 3, "gradient_accumulation_steps": 2, "steps": 8},
    }[name]
    trainer = made(bpe, rows, **options)
    before = weights(trainer).clone()
    trainer.train()
    assert torch.isfinite(weights(trainer)).all()
    assert (weights(trainer) - before).abs().max() > 1e-3


def test_a_student_writes_no_token_that_only_its_head_has(bpe, rows, monkeypatch):
    """Heads are padded, and not alike: the teacher could not even read such a token."""
    student, teacher = tiny(bpe, seed=1), tiny(bpe, seed=0)
    student.resize_token_embeddings(len(bpe) + 64)
    trainer = made(bpe, rows, student=student, teacher=teacher, teacher_tokenizer=bpe)
    for batch, _ in steps_of(trainer, monkeypatch):
        assert batch["input_ids"].max() < len(bpe)


def test_a_text_ends_where_the_teacher_would_end_it(bpe, rows):
    teacher = tiny(bpe, seed=0)
    teacher.generation_config.eos_token_id = [7, *range(20, 200)]
    trainer = made(bpe, rows, teacher=teacher, max_new_tokens=30)
    batch = trainer._rewritten(next(iter(trainer.get_train_dataloader())), 0)
    for labels in batch["labels"]:
        written = labels[labels != -100]
        assert len(written) < 30
        assert 20 <= written[-1] < 200 or written[-1] in (7, bpe.eos_token_id)


def test_a_remembering_teacher_is_not_made_to_remember(bpe, rows):
    remembering = RememberingTeacher(tiny(bpe, seed=0))
    trainer = made(bpe, rows, teacher=remembering)
    trainer.train()
    assert remembering._rows == {}


def test_evaluation_reads_the_rows_own_answers(bpe, rows):
    mine = made(bpe, rows, divergence="reverse_kl", eval_dataset=rows)
    plain = made(
        bpe, rows, SoftLabelTrainer, divergence="reverse_kl", eval_dataset=rows
    )
    assert mine.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_writing_leaves_global_random_states_alone(bpe, rows):
    trainer = made(bpe, rows)
    loader = iter(trainer.get_train_dataloader())
    batch = next(loader)
    states = torch.random.get_rng_state(), random.getstate()
    trainer._rewritten(batch, 0)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]


# --- learning -----------------------------------------------------------------------


def test_what_was_written_is_logged(bpe, rows, monkeypatch):
    trainer = made(bpe, rows)
    trainer.args.logging_steps = 1
    seen = steps_of(trainer, monkeypatch)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == len(seen) == 3
    for entry, (batch, num_items) in zip(log, seen, strict=True):
        ends = (batch["labels"] == bpe.eos_token_id).any(1)
        assert entry["written_tokens"] == pytest.approx(num_items / 4)
        assert entry["ended"] == pytest.approx(float(ends.float().mean()))
        assert entry["writing_seconds"] > 0
        assert "hard" not in entry


def test_what_a_broken_step_wrote_is_not_logged_with_the_next_run(bpe, rows):
    teacher = tiny(bpe, seed=0)
    teacher.generation_config.eos_token_id = list(range(20, 200))  # lengths differ
    # Weights that stay write the same texts again.
    trainer = made(bpe, rows, teacher=teacher, steps=2, learning_rate=0.0)
    trainer.args.logging_steps = 1
    interrupt = BreakOff(1)

    def logged():
        log = trainer.state.log_history
        return [entry["written_tokens"] for entry in log if "loss" in entry]

    trainer.train()
    undisturbed = logged()
    assert undisturbed[0] != undisturbed[1]
    trainer.add_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(interrupt)
    trainer.train()
    assert logged() == undisturbed


@pytest.mark.slow
def test_a_student_learns_from_its_own_sums():
    """It comes closer to the teacher's answers, though it never reads one."""
    teacher = load_tiny_teacher("sums")
    student = build_student(teacher.tokenizer, layers=2, width=64, seed=0)
    rows = worked(three_sums.problems(300, seed=1), teacher.tokenizer)
    trainer = OnPolicyTrainer(
        student,
        teacher=teacher.model,
        max_new_tokens=12,
        divergence="forward_kl",
        args=training_arguments(
            machine.get_profile("smoke"),
            steps=60,
            batch_size=32,
            learning_rate=4e-3,
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        tokenizer=teacher.tokenizer,
    )
    held_out = worked(three_sums.problems(100, seed=2), teacher.tokenizer)

    def distance():
        found = evaluate(student, held_out, teacher.tokenizer, teacher=teacher.model)
        return found.kl_to_teacher

    before = distance()
    trainer.train()
    assert distance() < 0.8 * before


# --- refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"on_policy_share": 1.5}, "on_policy_share=1.5"),
        ({"sampling_temperature": -1.0}, "sampling_temperature=-1.0"),
        ({"sampling_temperature": math.nan}, "sampling_temperature=nan"),
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"cross": "pieces"}, "cross='pieces' needs rows that are aligned"),
        ({"teacher": "a cache"}, "teacher must be a model"),
        ({"divergence": "hellinger"}, "hellinger"),
    ],
)
def test_what_cannot_be(bpe, rows, options, message):
    with pytest.raises(ValueError, match=message):
        made(bpe, rows, **options)


def test_rows_without_a_prompt_are_refused(bpe):
    rows = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]] * 8})
    with pytest.raises(ValueError, match="has no prompt"):
        made(bpe, rows).train()


@pytest.mark.parametrize("labels", [[-100, 4, 5], [3, 4, 5]])
def test_one_token_is_no_prompt(labels):
    with pytest.raises(ValueError, match="two tokens or more"):
        prompt_of({"input_ids": [3, 4, 5], "labels": labels})


def test_prompts_alone_are_for_a_student_that_writes_every_answer(bpe):
    ids = bpe(PROMPTS * 4)["input_ids"]
    rows = Dataset.from_dict(
        {"input_ids": ids, "labels": [[-100] * len(row) for row in ids]}
    )
    trainer = made(bpe, rows)
    trainer.train()
    assert trainer.state.global_step == 3
    with pytest.raises(ValueError, match="no answer to keep"):
        made(bpe, rows, on_policy_share=0.5).train()


def test_packed_rows_are_refused(bpe, rows):
    from distill_helpers.data import pack_examples

    with pytest.raises(ValueError, match="pack_examples"):
        made(bpe, pack_examples(rows, 32)).train()


# --- rows ---------------------------------------------------------------------------


def test_a_row_is_a_prompt_and_an_answer():
    row = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}
    assert join_row([1, 2], [3, 4]) == row
    assert prompt_of(row) == [1, 2]


def test_left_padding_is_no_prompt(bpe, rows):
    def left(batch):
        size = max(len(row["input_ids"]) for row in batch)
        pads = [size - len(row["input_ids"]) for row in batch]
        filled = {"input_ids": 0, "labels": -100}
        out = {
            name: torch.tensor(
                [[fill] * pad + row[name] for pad, row in zip(pads, batch, strict=True)]
            )
            for name, fill in filled.items()
        }
        mask = [[0] * pad + [1] * (size - pad) for pad in pads]
        return out | {"attention_mask": torch.tensor(mask)}

    trainer = made(bpe, rows, data_collator=left)
    batch = next(iter(trainer.get_train_dataloader()))
    written = trainer._rewritten(batch, 0)
    prompts = bpe(PROMPTS)["input_ids"]
    for ids, labels in zip(written["input_ids"], written["labels"], strict=True):
        before = ids[: (labels != -100).nonzero()[0, 0]].tolist()
        assert any(before[-len(prompt) :] == prompt for prompt in prompts)


# --- exposure bias ------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(bpe):
    return bpe(PROMPTS * 8)["input_ids"]


def test_a_copy_of_the_teacher_has_no_exposure_bias(bpe, asked):
    teacher = tiny(bpe, seed=0)
    found = measure_exposure(teacher, teacher, bpe, asked, max_new_tokens=8)
    assert found.excess == pytest.approx(0, abs=1e-6)
    assert max(found.student_prefix) == pytest.approx(0, abs=1e-6)
    assert found.student_repetition == found.teacher_repetition


def test_the_numbers_are_those_of_single_texts(bpe, asked):
    student, teacher = tiny(bpe, seed=1), tiny(bpe, seed=0)
    found = measure_exposure(
        student, teacher, bpe, asked[:6], max_new_tokens=5, seed=3, batch_size=4
    )
    sums = torch.zeros(5, dtype=torch.float64)
    count = torch.zeros(5)
    for index, prompt in enumerate(asked[:6]):
        seed = random.Random(f"3/{index}").getrandbits(62)
        (text,) = generate_batch(
            student, bpe, [prompt], max_new_tokens=5, temperature=1.0, seeds=[seed]
        )
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *text.ids]])
            both = token_divergence(student(ids).logits, teacher(ids).logits)[0]
        for place in range(len(text.ids)):
            sums[place] += both[len(prompt) - 1 + place]
            count[place] += 1
    expected = (sums / count)[: len(found.student_prefix)]
    torch.testing.assert_close(
        torch.tensor(found.student_prefix, dtype=torch.float64), expected, rtol=1e-4,
        atol=1e-6,
    )  # fmt: skip


def test_what_comes_first_has_the_same_prefix(bpe, asked):
    """Before anything is written, both stand behind the prompt."""
    found = measure_exposure(
        tiny(bpe, seed=1), tiny(bpe, seed=0), bpe, asked, max_new_tokens=4
    )
    assert found.student_prefix[0] == pytest.approx(found.teacher_prefix[0], rel=1e-5)
    assert found.counts[0] == len(asked)


def test_a_loop_is_repetition(bpe, asked):
    """A model of few words says them again."""
    looping = tiny(bpe, seed=2)
    with torch.no_grad():
        looping.model.embed_tokens.weight[5] *= 50
    found = measure_exposure(looping, tiny(bpe, seed=0), bpe, asked, max_new_tokens=24)
    assert found.student_repetition > 0.5 > found.teacher_repetition


def test_entropy_is_the_teacher_s(bpe, asked):
    flat = tiny(bpe, seed=0)
    with torch.no_grad():
        flat.model.norm.weight.zero_()
    found = measure_exposure(tiny(bpe, seed=1), flat, bpe, asked, max_new_tokens=4)
    assert found.student_entropy == pytest.approx(math.log(len(bpe)), rel=1e-5)
    assert found.teacher_entropy == pytest.approx(math.log(len(bpe)), rel=1e-5)


def test_no_prompts_are_refused(bpe):
    model = tiny(bpe)
    with pytest.raises(ValueError, match="prompts is empty"):
        measure_exposure(model, model, bpe, [], max_new_tokens=2)


def test_padding_of_a_batch_does_not_count(bpe, asked):
    """One batch or several: the numbers are the same."""
    models = tiny(bpe, seed=1), tiny(bpe, seed=0)
    one, many = (
        measure_exposure(*models, bpe, asked, max_new_tokens=4, batch_size=size)
        for size in (40, 3)
    )
    assert one.counts == many.counts
    assert one.excess == pytest.approx(many.excess, abs=1e-5)


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "OPT"])
def test_an_end_behind_a_gap_is_judged(kind):
    """By hand: KL and entropy at the one token of each text, its end."""
    tokenizer = tokenizer_with_gaps()
    student, teacher = (random_model(kind, 48, seed=seed) for seed in (1, 2))
    for model in (student, teacher):
        model.generation_config.eos_token_id = list(range(42))  # all texts are short
    prompts = [[1, 2, 3], [4, 5]]
    found = measure_exposure(student, teacher, tokenizer, prompts, max_new_tokens=1)
    kl, entropy = [], []
    for prompt in prompts:
        with torch.no_grad():
            log_p, log_q = (
                model(torch.tensor([prompt]))
                .logits[0, -1, :42]
                .double()
                .log_softmax(-1)
                for model in (teacher, student)
            )
        kl.append(float((log_p.exp() * (log_p - log_q)).sum()))
        entropy.append(float(-(log_p.exp() * log_p).sum()))
    assert found.student_prefix == pytest.approx([sum(kl) / 2], rel=1e-4)
    assert found.student_entropy == pytest.approx(sum(entropy) / 2, rel=1e-4)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_exposure_needs_positions_for_prompt_and_text(bpe, who):
    models = {"student": tiny(bpe, seed=1), "teacher": tiny(bpe, seed=0)}
    models[who] = random_model("GPT2", len(bpe), positions=12)
    measure_exposure(*models.values(), bpe, [[5] * 8], max_new_tokens=4)
    with pytest.raises(
        ValueError, match=f"13 tokens, and the {who} has no more than 12"
    ):
        measure_exposure(*models.values(), bpe, [[5] * 8], max_new_tokens=5)


def test_a_student_with_adapters_keeps_its_settings(bpe, rows):
    base = random_model("Llama", len(bpe), seed=1)
    base.generation_config.eos_token_id = [0, 7, 9]
    base.generation_config.repetition_penalty = 1.5
    own = base.generation_config
    trainer = made(bpe, rows, student=lora(base))
    trainer.train()
    assert base.generation_config is own
    assert (own.eos_token_id, own.repetition_penalty) == ([0, 7, 9], 1.5)
