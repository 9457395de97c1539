"""Models that learn from one another, compared with what can be worked out alone."""

import json
import math

import peft
import pytest
import torch
from small_architectures import composite, lora, random_model
from tiny_models import byte_level_bpe, ragged_rows, tiny
from training_runs import SGD, BreakOff, bf16_profile, trainer, weights
from transformers import AutoModelForCausalLM, GenerationConfig, TrainingArguments

from distill_helpers import losses, machine
from distill_helpers.data import collator_for
from distill_helpers.evaluation import churn, compare, evaluate, together
from distill_helpers.trainers import (
    HardLabelTrainer,
    MixSchedule,
    co_distillation,
    training_arguments,
)

LABELS = MixSchedule(0.0)


def trained(*arguments, **options):
    made = trainer(*arguments, **options)
    made.train()
    return made


def model_of(made, name):
    return made.partners.models[name]


def peers(count, **objective):
    """As many peers as asked for, on one batch of rows, one step of plain SGD."""
    tokenizer = byte_level_bpe()
    models = {f"peer{i}": tiny(tokenizer, seed=i) for i in range(count)}
    rows = ragged_rows(4, len(tokenizer))
    made = co_distillation.CoDistillationTrainer(
        models,
        tokenizer=tokenizer,
        train_dataset=rows,
        args=training_arguments(
            machine.get_profile("smoke"),
            steps=1,
            batch_size=4,
            disable_tqdm=True,
            **SGD,
        ),
        **objective,
    )
    return made, collator_for(tokenizer)(list(rows))


# --- what flows, and what does not --------------------------------------------------


@pytest.mark.parametrize("optimizer", [{}, SGD])
def test_a_one_way_teacher_trains_as_if_it_were_alone(optimizer):
    """Its optimizer, its clipping and its gradients know nothing of the student."""
    options = {"steps": 6, "max_grad_norm": 0.05, **optimizer, "logging_steps": 1}
    both = trained(kind="together", **options)
    template = trainer(kind="hard", **options)
    alone = HardLabelTrainer(
        tiny(byte_level_bpe(), seed=2),
        args=template.args,
        train_dataset=template.train_dataset,
        tokenizer=byte_level_bpe(),
    )
    alone.train()
    torch.testing.assert_close(
        weights(model_of(both, "teacher")), weights(alone.model), rtol=1e-5, atol=1e-6
    )
    curves = [
        [round(entry[name], 4) for entry in made.state.log_history if "loss" in entry]
        for made, name in ((both, "teacher_hard"), (alone, "loss"))
    ]
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)


def test_the_first_step_of_the_student_is_that_of_a_frozen_teacher():
    both = trained(kind="together", steps=1, **SGD)
    frozen = trained(
        kind="soft", steps=1, objective={"alpha": 0.7, "temperature": 1.0}, **SGD
    )
    moved = weights(frozen.model) - weights(trainer(kind="soft").model)
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(
        weights(model_of(both, "student")), weights(frozen.model), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "mix", [{}, {"divergence": "reverse_kl"}, {"divergence": "jsd", "temperature": 2.0}]
)
def test_three_peers_learn_from_the_mean_of_the_others(fused, mix):
    """One step against the loss written out in plain PyTorch."""
    made, batch = peers(3, schedule=MixSchedule(0.6), fused=fused, **mix)
    by_hand = {f"peer{i}": tiny(byte_level_bpe(), seed=i) for i in range(3)}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = {name: model(**inputs).logits for name, model in by_hand.items()}
    for name, model in by_hand.items():
        parts = [
            losses.soft_label_loss(
                logits[name], logits[other].detach(), batch["labels"], alpha=0.6, **mix
            ).loss
            for other in by_hand
            if other != name
        ]
        (sum(parts) / 2).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= SGD["learning_rate"] * parameter.grad
    made.train()
    for name, model in by_hand.items():
        torch.testing.assert_close(
            weights(model_of(made, name)), weights(model), rtol=1e-4, atol=1e-6
        )


def test_micro_batches_change_nothing():
    whole = trained(kind="together", batch_size=8, **SGD)
    split = trained(kind="together", batch_size=2, gradient_accumulation_steps=4, **SGD)
    torch.testing.assert_close(
        weights(split.model), weights(whole.model), rtol=1e-4, atol=1e-6
    )


def test_every_model_is_clipped_on_its_own():
    """The teacher's step is as long whatever the student's gradients are."""
    small = {**SGD, "max_grad_norm": 1e-3, "steps": 1, "learning_rate": 1.0}
    made = trainer(kind="together", **small)
    before = {name: weights(m) for name, m in made.partners.models.items()}
    before = {name: value.clone() for name, value in before.items()}
    made.train()
    for name, model in made.partners.models.items():
        step = (weights(model) - before[name]).norm()
        assert float(step) == pytest.approx(1e-3, rel=1e-2)


def test_it_runs_under_autocast():
    made = trained(kind="together", profile=bf16_profile(), steps=2)
    assert weights(made.model).isfinite().all()
    assert weights(made.model).dtype == torch.float32


# --- the schedule -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "weight_at"),
    [
        (MixSchedule(0.5), {0: 0.5, 1: 0.5}),
        (MixSchedule(0.8, warm_up=0.5), {0: 0, 0.49: 0, 0.5: 0.8, 1: 0.8}),
        (MixSchedule(0.8, ramp=0.5), {0: 0, 0.25: 0.4, 0.5: 0.8, 1: 0.8}),
        (MixSchedule(0.8, warm_up=0.2, ramp=0.4), {0.1: 0, 0.4: 0.4, 0.9: 0.8}),
    ],
)
def test_schedules(schedule, weight_at):
    for progress, weight in weight_at.items():
        assert schedule.weight(progress) == pytest.approx(weight)


def test_confidence_follows_the_partner():
    schedule = MixSchedule(0.8, confidence=True)
    know_nothing = math.log(300)
    assert schedule.weight(0.5, know_nothing, 300) == 0
    assert schedule.weight(0.5, 2 * know_nothing, 300) == 0
    assert schedule.weight(0.5, know_nothing / 4, 300) == pytest.approx(0.6)
    assert schedule.weight(0.5, 0.0, 300) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha=1\.5"),
        ({"ramp": -0.1}, r"ramp=-0\.1"),
        ({"warm_up": 0.6, "ramp": 0.6}, "not add up to more than 1"),
    ],
)
def test_schedules_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        MixSchedule(**options)


def test_without_a_partner_s_word_both_train_alone():
    both = trained(kind="together", objective={"schedule": LABELS}, **SGD)
    alone = trained(kind="hard", **SGD)
    torch.testing.assert_close(
        weights(model_of(both, "student")), weights(alone.model), rtol=1e-5, atol=1e-6
    )


def test_the_log_names_every_model_s_parts():
    made = trained(
        kind="together",
        steps=4,
        logging_steps=1,
        objective={"schedule": MixSchedule(0.8, ramp=0.5)},
    )
    entries = [entry for entry in made.state.log_history if "loss" in entry]
    assert len(entries) == 4
    # Logged after the step, when the next one's weight holds.
    assert [entry["student_alpha"] for entry in entries] == pytest.approx(
        [0.4, 0.8, 0.8, 0.8]
    )
    assert "student_soft" not in entries[0]
    assert entries[-1]["student_soft"] > 0
    assert "teacher_soft" not in entries[-1]
    expected = entries[-1]["teacher_hard"]
    expected += 0.2 * entries[-1]["student_hard"] + 0.8 * entries[-1]["student_soft"]
    assert entries[-1]["loss"] == pytest.approx(expected, abs=2e-3)


def test_a_part_that_joins_late_is_averaged_over_its_own_steps():
    options = {"kind": "together", "steps": 4}
    objective = {"schedule": MixSchedule(0.8, warm_up=0.25)}
    single, double = (
        trained(objective=objective, logging_steps=n, **options).state.log_history
        for n in (1, 2)
    )
    assert "student_soft" not in single[0]
    assert double[0]["student_soft"] == pytest.approx(single[1]["student_soft"])
    both = (single[0]["student_hard"] + single[1]["student_hard"]) / 2
    assert double[0]["student_hard"] == pytest.approx(both)


def test_confidence_rises_while_the_teacher_learns():
    made = trained(
        kind="together",
        steps=8,
        logging_steps=1,
        learning_rate=1e-2,
        objective={"schedule": MixSchedule(0.8, confidence=True)},
    )
    alphas = [e["student_alpha"] for e in made.state.log_history if "loss" in e]
    assert alphas[0] < 0.1
    assert alphas[-1] > alphas[0]


# --- stale partners -----------------------------------------------------------------


def test_copies_are_refreshed_every_so_many_steps():
    made = trainer(kind="together", steps=4, objective={"exchange_every": 3}, **SGD)
    copies = made.partners.stale
    start = weights(copies["teacher"]).clone()
    seen = []

    class Look(co_distillation.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            fresh = torch.equal(weights(copies["teacher"]), weights(teacher))
            seen.append((fresh, torch.equal(weights(copies["teacher"]), start)))

    teacher = model_of(made, "teacher")
    made.add_callback(Look())
    made.train()
    assert seen == [(False, True), (False, True), (True, False), (False, False)]
    assert set(copies) == {"teacher"}, "nobody learns from the student"
    assert not any(p.requires_grad for p in copies.parameters())
    assert not any(module.training for module in copies.modules())


def test_a_stale_partner_teaches_what_it_knew():
    """Two steps from copies of the start: a frozen teacher's two steps."""
    stale = trained(kind="together", steps=2, objective={"exchange_every": 5}, **SGD)
    frozen = trained(
        kind="soft", steps=2, objective={"alpha": 0.7, "temperature": 1.0}, **SGD
    )
    torch.testing.assert_close(
        weights(model_of(stale, "student")),
        weights(frozen.model),
        rtol=1e-5,
        atol=1e-6,
    )


# --- saving and going on ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"exchange_every": 4},
        {"schedule": MixSchedule(0.8, ramp=0.3, confidence=True), "teacher": None},
    ],
)
def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path, objective):
    options = {"kind": "together", "objective": objective, "dropout": 0.1}
    whole = trained(tmp_path / "whole", **options, steps=6, save_steps=3)
    part = trainer(tmp_path / "part", **options, steps=6, save_steps=3)

    class Stop(co_distillation.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 4

    part.add_callback(Stop())
    part.train()
    resumed = trainer(tmp_path / "part", **options, steps=6, save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert torch.equal(resumed.partners.running_nll, whole.partners.running_nll)


def test_a_step_that_was_broken_off_counts_for_nothing(tmp_path):
    """On the same trainer: its part of the running loss is forgotten."""
    options = {"kind": "together", "steps": 6, "save_steps": 3, "batch_size": 2}
    options["objective"] = {"schedule": MixSchedule(0.8, confidence=True)}
    whole = trained(tmp_path / "whole", **options)
    made, interrupt = trainer(tmp_path / "part", **options), BreakOff(3)
    made.add_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    made.remove_callback(interrupt)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 6
    torch.testing.assert_close(
        made.partners.running_nll, whole.partners.running_nll, rtol=1e-5, atol=0
    )


def test_only_process_zero_writes(tmp_path, monkeypatch):
    """transformers 5.23 asks every process to save."""
    made = trainer(kind="together")
    monkeypatch.setattr(TrainingArguments, "should_save", False)
    made.save_model(tmp_path / "final")
    assert not (tmp_path / "final").exists()


def test_a_checkpoint_holds_models_that_load_by_themselves(tmp_path):
    made = trained(tmp_path, kind="together", steps=2)
    made.save_model(tmp_path / "final")
    for folder in (tmp_path / "final", tmp_path / "checkpoint-2"):
        for name in ("teacher", "student"):
            model = AutoModelForCausalLM.from_pretrained(folder / name)
            assert torch.equal(weights(model), weights(model_of(made, name)))
            tied = model.get_input_embeddings().weight is model.lm_head.weight
            assert tied == model.config.tie_word_embeddings
            assert (folder / name / "tokenizer.json").is_file()
    running = json.loads((tmp_path / "final" / "running_nll.json").read_text())
    assert set(running) == {"teacher", "student"}


def native(model, *, seed):
    """With adapters as transformers adds them, without PEFT's wrapper."""
    torch.manual_seed(seed)
    settings = {"target_modules": ["q_proj"], "init_lora_weights": False}
    model.add_adapter(peft.LoraConfig(r=2, **settings))
    return model


def two_adapters(model, *, seed):
    both = lora(model, seed=seed)
    more = {"target_modules": ["v_proj"], "init_lora_weights": False}
    both.add_adapter("more", peft.LoraConfig(r=3, task_type="CAUSAL_LM", **more))
    both.base_model.set_adapter(["default", "more"])
    return both


ADAPTED = {
    "lora": lora,
    "with its head": lambda m, seed: lora(m, seed=seed, modules_to_save=["lm_head"]),
    "two": two_adapters,
    "without a wrapper": native,
    "none": lambda model, seed: model,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other", "exchange_every"),
    [
        ("lora", "lora", 0),
        ("lora", "none", 3),
        ("with its head", "lora", 0),
        ("two", "none", 3),
        ("without a wrapper", "lora", 3),
    ],
)
def test_models_with_adapters_go_on_where_they_were(
    tmp_path, name, other, exchange_every
):
    tokenizer = byte_level_bpe()

    def run(folder, *, resume=False, **options):
        models = {
            "one": ADAPTED[name](random_model("Llama", len(tokenizer), seed=1), seed=1),
            "other": ADAPTED[other](
                random_model("OPT", len(tokenizer), seed=2), seed=2
            ),
        }
        made = co_distillation.CoDistillationTrainer(
            models,
            tokenizer=tokenizer,
            train_dataset=ragged_rows(8, len(tokenizer)),
            exchange_every=exchange_every,
            args=training_arguments(
                machine.get_profile("smoke"),
                steps=4,
                batch_size=4,
                save_steps=2,
                learning_rate=1e-2,
                output_dir=folder,
                disable_tqdm=True,
            ),
            **options,
        )
        start = weights(made.partners.models)
        made.train(resume_from_checkpoint=resume)
        return start, weights(made.partners.models)

    start, whole = run(tmp_path / "whole")
    assert (whole - start).abs().max() > 1e-3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", callbacks=[BreakOff(3)])
    assert torch.equal(run(tmp_path / "part", resume=True)[1], whole)


def test_models_that_the_run_did_not_have(tmp_path):
    trained(tmp_path, kind="together", steps=2, save_steps=1)
    again = trainer(tmp_path, kind="together", steps=4, objective={"exchange_every": 1})
    with pytest.raises(ValueError, match=r"has no stale.teacher.*exchange_every"):
        again.train(resume_from_checkpoint=True)


def test_a_saved_model_keeps_its_generation_settings(tmp_path):
    made = trainer(tmp_path, kind="together", steps=2)
    for model in made.partners.models.values():
        model.generation_config.eos_token_id = [0, 7]
        model.generation_config.repetition_penalty = 1.5
    made.train()
    made.save_model(tmp_path / "final")
    for folder in (tmp_path / "final", tmp_path / "checkpoint-2"):
        for name in ("teacher", "student"):
            found = GenerationConfig.from_pretrained(folder / name)
            assert (found.eos_token_id, found.repetition_penalty) == ([0, 7], 1.5)


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral3", "Llava"])
def test_models_that_read_pictures_too(tmp_path, kind):
    tokenizer = byte_level_bpe()
    models = {"a": composite(kind, 300, seed=1), "b": composite(kind, 300, seed=2)}
    rows = ragged_rows(4, len(tokenizer))
    batch = collator_for(tokenizer)(list(rows))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        one, other = (model(**inputs).logits for model in models.values())
    found = losses.soft_label_loss(one, other, batch["labels"], alpha=0.5)
    made = co_distillation.CoDistillationTrainer(
        models,
        tokenizer=tokenizer,
        train_dataset=rows,
        exchange_every=1,
        args=training_arguments(
            machine.get_profile("smoke"),
            steps=1,
            batch_size=4,
            learning_rate=1e-3,
            output_dir=tmp_path,
            disable_tqdm=True,
        ),
    )
    assert made.partners.running_nll.tolist() == pytest.approx([math.log(300)] * 2)
    made.train()
    log = made.state.log_history[0]
    assert log["a_soft"] == pytest.approx(float(found.soft), rel=1e-4)
    assert log["a_hard"] == pytest.approx(float(found.hard), rel=1e-4)
    made.train(resume_from_checkpoint=True)


# --- what cannot be -----------------------------------------------------------------


def build(models, **options):
    tokenizer = byte_level_bpe()
    template = trainer(kind="hard")
    return co_distillation.CoDistillationTrainer(
        {name: tiny(tokenizer, seed=seed) for name, seed in models.items()},
        args=template.args,
        train_dataset=template.train_dataset,
        tokenizer=tokenizer,
        **options,
    )


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"a": 1}, {}, "takes two or more"),
        ({"a": 1, "b": 1}, {}, "a and b begin with the same weights"),
        ({"a": 1, "b": 2}, {"teacher": "c"}, "teacher='c' is none of the models"),
        ({"a": 1, "b/c": 2}, {}, "cannot be that of a folder"),
        ({"a": 1, "stale": 2}, {}, "cannot be that of a folder"),
        ({"a": 1, "half": 2}, {}, "has the name 'half', which cannot be"),
        ({"a": 1, "b": 2}, {"exchange_every": -1}, "exchange_every=-1"),
    ],
)
def test_models_that_cannot_teach_each_other(models, options, message):
    with pytest.raises(ValueError, match=message):
        build(models, **options)


def test_several_models_have_several_best_steps(tmp_path):
    with pytest.raises(ValueError, match="load_best_model_at_end=True"):
        trainer(
            tmp_path,
            kind="together",
            load_best_model_at_end=True,
            eval_strategy="steps",
            eval_rows=ragged_rows(4, 300),
        )


def test_why_equal_peers_are_refused():
    """What would happen: no divergence, ever, so no gradient from the partner."""
    model = tiny(byte_level_bpe(), seed=1)
    ids = torch.tensor([[3, 4, 5, 6]])
    logits = model(ids).logits
    result = losses.soft_label_loss(logits, logits.detach(), ids, alpha=1.0)
    result.loss.backward()
    assert float(result.loss.detach()) == 0
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-7


# --- what came of it ----------------------------------------------------------------


def test_compare_measures_each_pair_and_the_ensemble():
    tokenizer = byte_level_bpe()
    rows = ragged_rows(12, len(tokenizer))
    a, b = "qwen-2.5", "type"  # names that torch would refuse of modules
    models = {a: tiny(tokenizer, seed=1), b: tiny(tokenizer, seed=2)}
    found = compare(models, rows, tokenizer)
    alone = evaluate(models[a], rows, tokenizer, teacher=models[b])
    assert found.nll[a] == pytest.approx(alone.nll)
    assert found.kl[b, a] == pytest.approx(alone.kl_to_teacher)
    assert found.kl[b, a] != found.kl[a, b]
    assert found.agreement == pytest.approx(alone.agreement)
    with pytest.raises(ValueError, match="at least two"):
        compare({a: models[a]}, rows, tokenizer)
    assert churn(models[a], models[b], rows, tokenizer) == pytest.approx(
        1 - alone.agreement
    )
    # The mean of probabilities is never worse than the mean of the NLLs (Jensen).
    assert found.ensemble_nll < (found.nll[a] + found.nll[b]) / 2
    batch = collator_for(tokenizer)(list(rows))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        p = sum(model(**inputs).logits.softmax(-1) for model in models.values()) / 2
        ours = together.Ensemble(models)(**inputs).logits
    torch.testing.assert_close(ours.exp(), p, rtol=1e-5, atol=1e-7)


def test_a_padded_head_changes_nothing():
    tokenizer = byte_level_bpe()
    rows = ragged_rows(12, len(tokenizer))
    models = {"a": tiny(tokenizer, seed=1), "b": tiny(tokenizer, seed=2)}
    plain = compare(models, rows, tokenizer)
    models["b"].resize_token_embeddings(len(tokenizer) + 20, mean_resizing=False)
    wide = compare(models, rows, tokenizer)
    assert wide.ensemble_nll == pytest.approx(plain.ensemble_nll, rel=1e-6)


def test_a_model_does_not_churn_against_itself():
    tokenizer = byte_level_bpe()
    model = tiny(tokenizer, seed=1)
    assert churn(model, model, ragged_rows(4, len(tokenizer)), tokenizer) == 0


def test_checkpointed_activations_change_nothing():
    plain = trained(kind="together", steps=1, **SGD)
    # The name changed within transformers 5.
    new = hasattr(TrainingArguments, "activation_checkpointing")
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    again = trained(kind="together", steps=1, **{name: True}, **SGD)
    for name in ("teacher", "student"):
        torch.testing.assert_close(
            weights(model_of(plain, name)), weights(model_of(again, name))
        )
        assert model_of(again, name).model.layers[0].gradient_checkpointing


def test_columns_are_not_removed_for_several_models():
    tokenizer = byte_level_bpe()
    made = co_distillation.CoDistillationTrainer(
        {f"peer{i}": tiny(tokenizer, seed=i) for i in range(2)},
        tokenizer=tokenizer,
        train_dataset=ragged_rows(4, len(tokenizer)),
        args=TrainingArguments(use_cpu=True, report_to=[]),
    )
    assert "labels" in next(iter(made.get_train_dataloader()))


def test_a_model_of_another_vocabulary_is_refused():
    tokenizer = byte_level_bpe()
    narrow = tiny(tokenizer, seed=1)
    narrow.resize_token_embeddings(16)
    with pytest.raises(ValueError, match="other has 16 outputs and the tokenizer"):
        co_distillation.CoDistillationTrainer(
            {"one": tiny(tokenizer, seed=0), "other": narrow},
            tokenizer=tokenizer,
            train_dataset=ragged_rows(4, len(tokenizer)),
        )


def test_a_partner_that_cannot_learn_is_refused():
    tokenizer = byte_level_bpe()
    models = {name: tiny(tokenizer, seed=seed) for seed, name in enumerate("ab")}
    models["b"].requires_grad_(False)
    with pytest.raises(ValueError, match=r"b is frozen .* take SoftLabelTrainer"):
        co_distillation.CoDistillationTrainer(
            models, tokenizer=tokenizer, train_dataset=ragged_rows(4, len(tokenizer))
        )
