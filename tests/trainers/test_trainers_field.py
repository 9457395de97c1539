"""The trainers with models, rows and checkpoints as people bring them."""

import copy
from functools import partial

import peft
import pytest
import torch
import training_runs
from datasets import Dataset, IterableDataset
from small_architectures import (
    composite,
    dispatched,
    lora,
    random_model,
    tokenizer_with_gaps,
)
from tiny_models import byte_level_bpe, ragged_rows, random_rows, tiny
from training_runs import SGD, weights

from distill_helpers import machine
from distill_helpers.data import mask_prompts
from distill_helpers.losses import soft_label_loss
from distill_helpers.models import RememberingTeacher
from distill_helpers.trainers import (
    CoDistillationTrainer,
    HardLabelTrainer,
    OnPolicyTrainer,
    SoftLabelTrainer,
    training_arguments,
)

KINDS = ["hard", "soft", "on_policy", "together"]


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def arguments(**options):
    chosen = {"steps": 1, "batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1}
    return training_arguments(
        machine.get_profile("smoke"), **chosen | {"disable_tqdm": True} | options
    )


def make(kind, student, tokenizer, rows, *, teacher=None, args=None, **options):
    """A trainer of any kind; the teacher reads the same rows, as a partner does."""
    common = {"tokenizer": tokenizer, "train_dataset": rows, "args": args}
    common["args"] = args or arguments()
    if kind == "hard":
        return HardLabelTrainer(student, **common, **options)
    if teacher is None:
        teacher = tiny(tokenizer, seed=2)
    if kind == "soft":
        return SoftLabelTrainer(student, teacher=teacher, **common, **options)
    if kind == "together":
        models = {"student": student, "teacher": teacher}
        return CoDistillationTrainer(models, **common, **options)
    return OnPolicyTrainer(
        student, teacher=teacher, **{"max_new_tokens": 4} | common | options
    )


def rows_of(kind, length, vocabulary, count=4):
    """Random rows; for a student that writes, prompts of that length."""
    rows = random_rows(count, length, vocabulary)
    if kind != "on_policy":
        return rows
    return rows.map(lambda row: {"labels": [-100] * len(row["input_ids"])})


# --- weights in two models ----------------------------------------------------------


def by_reference(student, teacher):
    student.model.embed_tokens = teacher.model.embed_tokens


def by_memory(student, teacher):
    theirs = teacher.model.norm.weight.data
    student.model.norm.weight = torch.nn.Parameter(theirs)


def by_layers(student, teacher):
    student.model.layers[1] = teacher.model.layers[0]


def by_view(student, teacher):
    theirs = teacher.model.layers[1].mlp.up_proj.weight
    mine = student.model.layers[1].mlp.up_proj
    mine.weight = torch.nn.Parameter(theirs.detach()[:])


@pytest.mark.parametrize(
    ("share", "name"),
    [
        (by_reference, "model.embed_tokens.weight"),
        (by_memory, "model.norm.weight"),
        (by_layers, r"model.layers.1\.self_attn.q_proj.weight"),
        (by_view, "model.layers.1.mlp.up_proj.weight"),
    ],
)
@pytest.mark.parametrize("kind", ["soft", "on_policy", "together"])
def test_weights_that_two_models_learn_are_refused(bpe, kind, share, name):
    student, teacher = tiny(bpe, seed=1), tiny(bpe, seed=2)
    share(student, teacher)
    for given in (
        [teacher]
        if kind == "together"
        else [
            teacher,
            RememberingTeacher(teacher),
        ]
    ):
        message = (
            rf"the student and the teacher share {name}.*copy\.deepcopy\(teacher\)"
        )
        with pytest.raises(ValueError, match=message):
            make(kind, student, bpe, rows_of(kind, 6, 300), teacher=given)
    for model in (student, teacher):
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["soft", "on_policy"])
def test_the_base_of_a_student_with_adapters_is_no_teacher(bpe, kind):
    base = random_model("Llama", len(bpe))
    student = lora(base)
    learned = [p for p in student.parameters() if p.requires_grad]
    with pytest.raises(ValueError, match=r"share .*lora_A.*carries the student's adap"):
        make(kind, student, bpe, rows_of(kind, 6, 300), teacher=base)
    assert all(parameter.requires_grad for parameter in learned)
    apart = random_model("Llama", len(bpe))
    make(kind, student, bpe, rows_of(kind, 6, 300), teacher=apart).train()


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_adapters_on_one_base_are_refused(bpe):
    base = random_model("Llama", len(bpe))
    one, other = lora(base), lora(base, target_modules=["v_proj"])
    with pytest.raises(ValueError, match=r"the student and the teacher share .*lora_A"):
        make("together", one, bpe, random_rows(4, 6, 300), teacher=other)
    with pytest.raises(ValueError, match=r"share .*lora_A"):
        make("soft", one, bpe, random_rows(4, 6, 300), teacher=other)


@pytest.mark.parametrize("kind", ["Llama", "OPT", "GPT2"])
def test_frozen_modules_may_be_shared(bpe, kind):
    """And each model reads them in a mode of its own."""
    teacher = random_model(kind, len(bpe), seed=2)
    layers = teacher.base_model if kind != "OPT" else teacher.model.decoder
    layers = layers.h if kind == "GPT2" else layers.layers
    for module in layers.modules():
        for name in ("dropout", "attention_dropout", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    layers[0].requires_grad_(False)
    student = copy.deepcopy(teacher)
    mine = student.model.decoder if kind == "OPT" else student.base_model
    (mine.h if kind == "GPT2" else mine.layers)[0] = layers[0]
    wanted = copy.deepcopy(teacher).eval()
    frozen = layers[0].state_dict()
    made = make("soft", student, bpe, random_rows(4, 6, 300), teacher=teacher)
    made.train()
    assert {m.training for m in layers[0].modules()} == {True}
    reader = made.objective.teacher.model
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(reader(ids).logits, wanted(ids).logits)
    theirs = {parameter.data_ptr() for parameter in reader.parameters()}
    assert theirs >= {tensor.data_ptr() for tensor in frozen.values()}
    learning = [p for p in student.parameters() if p.requires_grad]
    assert len(learning) > len(list(student.parameters())) // 3


# --- configurations with a text part ------------------------------------------------


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral3", "Llava"])
@pytest.mark.parametrize("compared", [False, True])
def test_a_composite_teacher_and_student(bpe, kind, compared):
    rows = random_rows(2, 8, len(bpe))
    student, teacher = (composite(kind, len(bpe), seed=seed) for seed in (1, 2))
    ids = torch.tensor(rows["input_ids"][:])
    with torch.no_grad():
        wanted = soft_label_loss(
            student(input_ids=ids).logits, teacher(input_ids=ids).logits, ids, alpha=0.5
        )
    options = {"teacher_tokenizer": bpe} if compared else {}
    made = make("soft", student, bpe, rows, teacher=teacher, alpha=0.5, **options)
    made.train()
    found = made.state.log_history[0]
    assert found["loss"] == pytest.approx(float(wanted.loss), rel=1e-4)
    assert found["soft"] == pytest.approx(float(wanted.soft), rel=1e-4)


@pytest.mark.parametrize("kind", ["hard", "on_policy", "together"])
def test_the_other_trainers_take_them_too(bpe, kind):
    student, teacher = (composite("Gemma3", len(bpe), seed=seed) for seed in (1, 2))
    rows, args = rows_of(kind, 6, 300), arguments(**SGD)
    made = make(kind, student, bpe, rows, teacher=teacher, args=args)
    before = weights(student).clone()
    made.train()
    assert not torch.equal(weights(student), before)


def test_heads_of_two_widths_are_found_there_too(bpe):
    student, teacher = tiny(bpe), composite("Mistral3", len(bpe) + 20)
    message = "head has 320 outputs and the student's 300; pass teacher_tokenizer="
    with pytest.raises(ValueError, match=message):
        make("soft", student, bpe, random_rows(2, 6, 300), teacher=teacher)


def test_nor_are_its_experts_forgotten(bpe):
    student = composite("Llava", len(bpe))
    student.config.text_config.output_router_logits = True
    with pytest.raises(ValueError, match="balances the experts"):
        make("hard", student, bpe, random_rows(2, 6, 300))


# --- teachers in several places -----------------------------------------------------


@pytest.mark.parametrize("kind", ["soft", "on_policy"])
@pytest.mark.parametrize("part", ["model.embed_tokens", "model.layers.1", "lm_head"])
def test_a_dispatched_teacher_is_read_where_it_is(bpe, tmp_path, kind, part):
    teacher = random_model("Llama", len(bpe), seed=2)
    spread = dispatched(teacher, tmp_path, part)
    rows, found = rows_of(kind, 6, 300), []
    for given in (teacher, spread):
        student = tiny(bpe, seed=1)
        make(kind, student, bpe, rows, teacher=given, args=arguments(**SGD)).train()
        found.append(weights(student))
    assert not torch.equal(found[0], weights(tiny(bpe, seed=1)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dispatched_student_is_refused(bpe, tmp_path, kind):
    spread = dispatched(random_model("Llama", len(bpe)), tmp_path, "model.layers.0")
    with pytest.raises(
        ValueError, match=r"student'? is dispatched over several devices"
    ):
        make(kind, spread, bpe, rows_of(kind, 6, 300))


# --- ids and positions that a model has not -----------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_pad_token_without_an_embedding_is_found_at_once(kind):
    padded = byte_level_bpe()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    models = [tiny(byte_level_bpe(), seed=seed) for seed in (1, 2)]
    if kind == "together":  # whose heads are to be as wide as the tokenizer
        models = [
            random_model("Llama", 301, seed=1),
            random_model("Llama", 301, seed=2),
        ]
        models[1].set_input_embeddings(torch.nn.Embedding(300, 32))
    with pytest.raises(ValueError, match=r"pad token has the id 300.* has 300"):
        make(kind, models[0], padded, rows_of(kind, 6, 300), teacher=models[1])


def test_nor_may_the_teacher_lack_it():
    padded = byte_level_bpe()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    student, teacher = tiny(padded), tiny(byte_level_bpe())
    options = {"teacher": teacher, "teacher_tokenizer": padded}
    with pytest.raises(ValueError, match="301 embeddings, and the teacher has 300"):
        make("soft", student, padded, random_rows(4, 6, 300), **options)


def plain_collator(rows):
    """As others write one: no mask, and the first label kept."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row.get("labels", row["input_ids"]) for row in rows])
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("collator", [None, plain_collator])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_an_id_too_high(bpe, kind, collator):
    made = make(
        kind, tiny(bpe), bpe, rows_of(kind, 6, 400, count=8), data_collator=collator
    )
    with pytest.raises(ValueError, match=r"id 3\d\d.*the student has 300"):
        made.train()


@pytest.mark.parametrize(
    ("architecture", "who", "collator", "kind"),
    [("GPT2", "student", None, kind) for kind in KINDS]
    + [("OPT", "student", plain_collator, kind) for kind in KINDS]
    + [("GPTJ", "teacher", None, kind) for kind in KINDS[1:]]
    + [("OPT", "teacher", plain_collator, kind) for kind in KINDS[1:]],
)
def test_rows_longer_than_the_positions(bpe, kind, architecture, who, collator):
    models = {"student": tiny(bpe, seed=1), "teacher": tiny(bpe, seed=2)}
    models[who] = random_model(architecture, len(bpe), seed=3, positions=16)
    # A student adds four tokens of its own.
    fits, longer = (length - 4 * (kind == "on_policy") for length in (16, 17))
    options = {"teacher": models["teacher"], "data_collator": collator}
    student = models["student"]
    make(kind, student, bpe, rows_of(kind, fits, 300), **options).train()
    made = make(kind, student, bpe, rows_of(kind, longer, 300), **options)
    message = f"a row has 17 tokens, and the {who} has no more than 16 positions"
    with pytest.raises(ValueError, match=message):
        made.train()


def test_an_evaluation_s_rows_are_looked_at_too(bpe):
    student = random_model("GPT2", len(bpe), positions=16)
    made = make("hard", student, bpe, random_rows(4, 16, 300))
    with pytest.raises(ValueError, match=r"17 tokens.*16 positions"):
        made.evaluate(random_rows(4, 17, 300))


# --- nothing to learn ---------------------------------------------------------------


def padding_alone(rows):
    """A batch whose rows are empty, as one column of padding."""
    shape = (len(rows), 1)
    return {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("architecture", "fused"),
    [("Llama", True), ("GPT2", False), ("OPT", True), ("Mamba", False)],
)
def test_a_batch_of_nothing_changes_nothing(bpe, kind, architecture, fused):
    student, teacher = (
        random_model(architecture, len(bpe), seed=seed) for seed in (1, 2)
    )
    before = weights(student).clone()
    rows = Dataset.from_dict({"input_ids": [[]] * 4, "labels": [[]] * 4})
    made = make(
        kind,
        student,
        bpe,
        rows,
        teacher=teacher,
        args=arguments(**SGD, steps=2),
        data_collator=padding_alone,
        fused=fused,
    )
    made.train()
    assert [log["loss"] for log in made.state.log_history if "loss" in log] == [0, 0]
    assert torch.equal(weights(student), before)


def test_an_empty_row_is_not_answered(bpe):
    rows = Dataset.from_dict(
        {"input_ids": [[5, 6, 7], [], [8, 9]], "labels": [[-100] * 3, [], [-100] * 2]}
    )
    made = make("on_policy", tiny(bpe), bpe, rows, args=arguments(batch_size=3))
    batch = made.data_collator(list(rows))
    written = made._rewritten(batch, 0)
    answers = (written["labels"] != -100).sum(1)
    assert (answers > 0).tolist() == [True, False, True]


# --- models that do not predict the next token --------------------------------------


@pytest.mark.parametrize(
    ("kind", "who"),
    [
        ("hard", "student"),
        ("soft", "student"),
        ("soft", "teacher"),
        ("on_policy", "teacher"),
        ("together", "teacher"),
    ],
)
def test_a_trunk_is_found_when_the_trainer_is_made(bpe, kind, who):
    models = {"student": random_model("GPT2", len(bpe)), "teacher": tiny(bpe, seed=2)}
    models[who] = models[who].base_model
    with pytest.raises(TypeError, match=f"{who}.* has no output head"):
        make(
            kind,
            models["student"],
            bpe,
            rows_of(kind, 6, 300),
            teacher=models["teacher"],
        )


# --- checkpoints to go on from ------------------------------------------------------


def cut_off(folder, kind, **options):
    chosen = {"kind": kind, "steps": 4, "save_steps": 2} | options
    made = training_runs.trainer(
        folder, callbacks=[training_runs.BreakOff(3)], **chosen
    )
    with pytest.raises(KeyboardInterrupt):
        made.train()
    return training_runs.trainer(folder, **chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_alone_are_not_gone_on_from(tmp_path, kind):
    again = cut_off(tmp_path, kind, save_only_model=True)
    message = (
        r"checkpoint-2 has no optimizer\.pt.*save_only_model=True.*save_only_model"
    )
    for resume in (True, str(tmp_path / "checkpoint-2")):
        with pytest.raises(ValueError, match=message):
            again.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
@pytest.mark.parametrize("kind", ["hard", "together"])
def test_nor_is_a_checkpoint_that_lost_a_file(tmp_path, kind, name):
    again = cut_off(tmp_path, kind)
    (tmp_path / "checkpoint-2" / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}"):
        again.train(resume_from_checkpoint=True)


def test_a_finished_run_s_weights_are_enough(tmp_path):
    options = {"kind": "soft", "steps": 2, "save_steps": 2, "save_only_model": True}
    done = training_runs.trainer(tmp_path, **options)
    done.train()
    again = training_runs.trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again.model), weights(done.model))


def native(model):
    settings = {"target_modules": ["q_proj"], "init_lora_weights": False}
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=2, **settings))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("adapt", [lora, native, partial(lora, use_dora=True)])
def test_a_student_with_adapters_goes_on_where_it_was(bpe, tmp_path, adapt):
    def run(folder, *, resume=False, callbacks=()):
        student = adapt(random_model("Llama", len(bpe)))
        args = arguments(output_dir=folder, steps=4, save_steps=2, learning_rate=1e-2)
        rows = random_rows(8, 6, 300)
        made = make("soft", student, bpe, rows, args=args, callbacks=list(callbacks))
        made.train(resume_from_checkpoint=resume)
        return weights(student)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", callbacks=[training_runs.BreakOff(3)])
    assert torch.equal(run(tmp_path / "part", resume=True), whole)


@pytest.mark.parametrize("kind", ["hard", "soft", "together"])
def test_what_learns_beside_its_adapters_would_not_be_saved(bpe, tmp_path, kind):
    student = lora(random_model("Llama", len(bpe)), modules_to_save=["lm_head"])
    rows, saving = random_rows(4, 6, 300), arguments(output_dir=tmp_path)
    make(kind, student, bpe, rows, args=saving)
    student.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"student learns .*norm\.weight.* not saved"):
        make(kind, student, bpe, rows, args=saving)
    make(kind, student, bpe, rows)


# --- ids with gaps, streams ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft", "together"])
def test_an_end_behind_a_gap_is_learned(kind):
    """One step equals one on the model's own logits, at the width of the ids."""
    tokenizer = tokenizer_with_gaps()
    rows = mask_prompts(["the cat", "the dog"], ["sat on", "ran on"], tokenizer)
    student, teacher = (
        random_model("Llama", 48, seed=1),
        random_model("Llama", 56, seed=2),
    )
    ids, labels = (torch.tensor(rows[name][:]) for name in ("input_ids", "labels"))
    assert (labels == 41).any(1).all()
    with torch.no_grad():
        ours, theirs = student(ids).logits, teacher(ids).logits
    wanted = soft_label_loss(ours[..., :42], theirs[..., :42], labels, alpha=0.5)
    nll = torch.nn.functional.cross_entropy(
        ours[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    options = {"teacher_tokenizer": tokenizer, "alpha": 0.5} if kind == "soft" else {}
    if kind == "together":
        options = {"teacher": teacher}
        made = CoDistillationTrainer(
            {"student": student, "other": teacher},
            teacher="other",
            tokenizer=tokenizer,
            train_dataset=rows,
            args=arguments(),
        )
    else:
        made = make(kind, student, tokenizer, rows, teacher=teacher, **options)
    made.train()
    log = made.state.log_history[0]
    if kind == "hard":
        assert log["loss"] == pytest.approx(float(nll), rel=1e-4)
    else:
        name = "student_soft" if kind == "together" else "soft"
        assert log[name] == pytest.approx(float(wanted.soft), rel=1e-4)


@pytest.mark.parametrize("kind", ["hard", "soft", "together"])
def test_a_stream_trains_as_its_rows_do(bpe, kind):
    rows = ragged_rows(8, len(bpe)).to_list()
    found = []
    for data in (
        IterableDataset.from_generator(lambda: iter(rows)),
        Dataset.from_list(rows),
    ):
        student = tiny(bpe, seed=1)
        args = arguments(**SGD, steps=3, train_sampling_strategy="sequential")
        make(kind, student, bpe, data, args=args).train()
        found.append(weights(student))
    assert torch.equal(*found)
