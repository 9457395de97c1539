"""Students with adapters in every trainer, and the teacher that they are without."""

import pytest
import torch
from datasets import Dataset
from small_architectures import random_model
from tiny_models import byte_level_bpe, ragged_rows, random_rows, tiny
from training_runs import SGD, BreakOff, bf16_profile
from transformers import TrainingArguments

from distill_helpers import machine
from distill_helpers.data import (
    DataError,
    add_teacher_prompts,
    collator_for,
    mask_prompts,
    pack_examples,
)
from distill_helpers.labels import SoftLabelCache, write_cache
from distill_helpers.models import (
    AdaptersOff,
    RememberingTeacher,
    adapters_off,
    add_adapters,
    merge_adapters,
)
from distill_helpers.trainers import (
    CoDistillationTrainer,
    HardLabelTrainer,
    OnPolicyTrainer,
    SoftLabelTrainer,
    training_arguments,
)

KINDS = ["hard", "soft", "on_policy", "together"]
# The name changed within transformers 5.
TWICE = "activation_checkpointing"
if not hasattr(TrainingArguments, TWICE):
    TWICE = "gradient_checkpointing"
# Of tiny models of width 32: the widest input of a linear layer.
FULL = 96


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def arguments(profile=None, **options):
    chosen = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    chosen |= {"disable_tqdm": True, "weight_decay": 0.0}
    profile = profile or machine.get_profile("smoke")
    return training_arguments(profile, **chosen | options)


def make(kind, student, bpe, *, teacher=None, rows=None, args=None, **options):
    rows = rows or ragged_rows(8, len(bpe), shortest=6)
    common = {"tokenizer": bpe, "args": args or arguments(), **options}
    if kind == "hard":
        return HardLabelTrainer(student, train_dataset=rows, **common)
    teacher = teacher or tiny(bpe, seed=2)
    if kind == "soft":
        return SoftLabelTrainer(student, teacher=teacher, train_dataset=rows, **common)
    if kind == "together":
        models = {"student": student, "other": teacher}
        return CoDistillationTrainer(models, train_dataset=rows, **common)
    if "labels" in rows.column_names:
        rows = rows.map(lambda row: {"labels": [-100, -100, *row["labels"][2:]]})
    return OnPolicyTrainer(
        student,
        teacher=teacher,
        train_dataset=rows,
        **{"max_new_tokens": 4, "sampling_temperature": 0} | common,
    )


def values(model, *, learned=True):
    named = model.named_parameters()
    chosen = [p.detach().flatten() for _, p in named if p.requires_grad == learned]
    return torch.cat(chosen)


def losses(made):
    return [log["loss"] for log in made.state.log_history if "loss" in log]


# --- every trainer ------------------------------------------------------------------


@torch.no_grad()
def identities(student):
    """Adapters whose A is an identity and stays so: B is what a layer has learned."""
    for name, parameter in student.named_parameters():
        if ".lora_A." in name:
            parameter.copy_(torch.eye(*parameter.shape))
            parameter.requires_grad_(False)
    return student


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_rank_it_is_full_training(bpe, kind):
    """With A = 1 and alpha = rank, B has the gradient of W, and so AdamW's steps."""
    whole = tiny(bpe, seed=1)
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name.endswith("_proj.weight"))
    student = add_adapters(tiny(bpe, seed=1), rank=FULL, alpha=FULL)
    identities(student)
    found = []
    for model in (whole, student):
        made = make(kind, model, bpe)
        made.train()
        found.append(losses(made))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    before = values(tiny(bpe, seed=1), learned=True)
    merged = values(merge_adapters(student))
    whole.requires_grad_(True)
    assert (values(whole) - before).abs().max() > 1e-2
    torch.testing.assert_close(merged, values(whole), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_learn_and_activations_may_be_computed_twice(bpe, kind):
    found = []
    for reentrant in (None, True, False):
        student = add_adapters(tiny(bpe, seed=1), rank=2, train=["norm"])
        frozen, start = values(student, learned=False), values(student)
        twice = {
            TWICE: reentrant is not None,
            f"{TWICE}_kwargs": {"use_reentrant": reentrant},
        }
        made = make(kind, student, bpe, args=arguments(**SGD | twice))
        made.train()
        assert torch.equal(values(student, learned=False), frozen)
        assert (values(student) - start).abs().max() > 1e-4
        if kind != "together":
            groups = made.optimizer.param_groups
            assert sum(p.numel() for g in groups for p in g["params"]) == len(start)
        found.append(values(student))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "train"),
    [*((kind, []) for kind in KINDS), ("soft", ["lm_head"]), ("hard", ["norm"])],
)
def test_a_run_goes_on_where_it_was(bpe, tmp_path, kind, train):
    """Bit for bit, with a tied head that is trained whole as well."""

    def run(folder, *, resume=False, callbacks=()):
        student = add_adapters(tiny(bpe, seed=1), rank=2, dropout=0.1, train=train)
        teacher = add_adapters(tiny(bpe, seed=2)) if kind == "together" else None
        args = arguments(output_dir=folder, save_steps=2)
        made = make(
            kind, student, bpe, teacher=teacher, args=args, callbacks=list(callbacks)
        )
        made.train(resume_from_checkpoint=resume)
        return values(student)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", callbacks=[BreakOff(3)])
    saved = {file.name for file in (tmp_path / "part").rglob("*.safetensors")}
    assert saved == {"adapter_model.safetensors"}
    assert torch.equal(run(tmp_path / "part", resume=True), whole)


# --- the teacher is the student without its adapters --------------------------------


def taught_by_itself(kind, student, bpe, **options):
    return make(kind, student, bpe, teacher=AdaptersOff(student), **options)


@pytest.mark.parametrize("kind", ["soft", "on_policy"])
@pytest.mark.parametrize("options", [{}, {"fused": False}, {"divergence": "jsd"}])
def test_it_teaches_what_a_second_copy_would(bpe, kind, options):
    found = []
    for own in (True, False):
        student = add_adapters(tiny(bpe, seed=1), rank=4, dropout=0.1)
        with torch.no_grad():  # as if it had learned something
            for name, parameter in student.named_parameters():
                if ".lora_B." in name:
                    parameter.add_(0.1)
        teacher = AdaptersOff(student) if own else tiny(bpe, seed=1)
        made = make(kind, student, bpe, teacher=teacher, **options)
        made.train()
        found.append((losses(made), values(student)))
    assert found[0][0] == found[1][0]
    assert min(found[0][0]) > 1e-3
    assert torch.equal(found[0][1], found[1][1])


def test_at_first_it_has_nothing_to_teach(bpe):
    student = add_adapters(tiny(bpe, seed=1))
    made = taught_by_itself("soft", student, bpe, args=arguments(steps=1))
    made.train()
    assert losses(made)[0] == pytest.approx(0, abs=1e-6)


def test_in_half_precision_gradients_reach_the_adapters(bpe):
    """Autocast remembers weights that it has cast; not those of the teacher's call."""
    student = add_adapters(tiny(bpe, seed=1), train=["lm_head"])
    teacher = tiny(bpe, seed=1)
    found = []
    for one in (AdaptersOff(student), teacher):
        student.load_state_dict(
            add_adapters(tiny(bpe, seed=1), train=["lm_head"]).state_dict()
        )
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05)
        args = arguments(bf16_profile(), **SGD, steps=2)
        made = make("soft", student, bpe, teacher=one, args=args)
        assert made.args.bf16
        start = values(student)
        made.train()
        found.append(values(student) - start)
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1])


def test_a_teacher_that_is_not_this_student_is_refused(bpe):
    student, other = add_adapters(tiny(bpe, seed=1)), add_adapters(tiny(bpe, seed=2))
    for kind in ("soft", "on_policy"):
        with pytest.raises(ValueError, match="AdaptersOff of another model"):
            make(kind, student, bpe, teacher=AdaptersOff(other))
        with pytest.raises(ValueError, match=r"share .*lora_A.*AdaptersOff\(student\)"):
            make(kind, student, bpe, teacher=student.get_base_model())
    teacher = AdaptersOff(student)
    student.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"learns .*norm.weight, which is not part"):
        make("soft", student, bpe, teacher=teacher)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "on_policy"])
def test_taught_by_itself_it_goes_on_where_it_was(bpe, tmp_path, kind):
    def run(folder, *, resume=False, callbacks=()):
        student = add_adapters(tiny(bpe, seed=1), rank=2, dropout=0.1)
        made = taught_by_itself(
            kind,
            student,
            bpe,
            rows=more_for_the_teacher(bpe),
            args=arguments(output_dir=folder, save_steps=2),
            callbacks=list(callbacks),
        )
        made.train(resume_from_checkpoint=resume)
        return values(student)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", callbacks=[BreakOff(3)])
    assert torch.equal(run(tmp_path / "part", resume=True), whole)


# --- the teacher sees something more ------------------------------------------------

QUESTIONS = ["She was ", "It is a truth: ", "He: ", "Emma, "]
ANSWERS = ["handsome", "a man", "in want of a wife", "rich and clever"]
RULE = "Answer as a family in possession of a good fortune would. "


def more_for_the_teacher(bpe):
    return add_teacher_prompts(
        mask_prompts(QUESTIONS, ANSWERS, bpe),
        mask_prompts([RULE + one for one in QUESTIONS], ANSWERS, bpe),
    )


@torch.no_grad()
def divergence_by_hand(student, teacher, rows):
    """KL per learned token, each row and each model by itself."""
    found = []
    for row in rows:
        answer = [one for one in row["labels"] if one != -100]
        longer = [*row["teacher_prompt_ids"], *answer]
        p, q = (
            model(input_ids=torch.tensor([ids])).logits[0, -len(answer) - 1 : -1]
            for model, ids in ((teacher, longer), (student, row["input_ids"]))
        )
        p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        found += (p.exp() * (p - q)).sum(-1).tolist()
    return sum(found) / len(found)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("who", ["itself", "another", "remembering"])
def test_the_answer_s_tokens_are_compared(bpe, who, fused):
    rows = more_for_the_teacher(bpe)
    student, teacher = add_adapters(tiny(bpe, seed=1)), tiny(bpe, seed=1)
    if who != "itself":
        teacher = tiny(bpe, seed=2)
    expected = divergence_by_hand(student, teacher, rows)
    given = {"itself": AdaptersOff(student), "another": teacher}.get(who)
    made = make(
        "soft",
        student,
        bpe,
        rows=rows,
        teacher=given or RememberingTeacher(teacher),
        fused=fused,
        args=arguments(steps=1, batch_size=4),
    )
    made.train()
    assert expected > 1e-3
    assert made.objective.student.fused == fused
    if who != "remembering":  # that one has no head
        assert made.objective.teacher.reader.fused == fused
    near = 1e-2 if who == "remembering" else 1e-4  # it keeps fp16
    assert losses(made)[0] == pytest.approx(expected, rel=near)


def test_what_the_prompt_does_moves_into_the_adapters(bpe):
    rows = more_for_the_teacher(bpe)
    student, teacher = add_adapters(tiny(bpe, seed=1)), tiny(bpe, seed=1)
    before = divergence_by_hand(student, teacher, rows)
    args = arguments(steps=40, batch_size=4)
    taught_by_itself("soft", student, bpe, rows=rows, args=args).train()
    assert divergence_by_hand(student.eval(), teacher, rows) < 0.3 * before
    with adapters_off(student):
        assert divergence_by_hand(student, teacher, rows) == pytest.approx(before)


@pytest.mark.parametrize("prompts_alone", [False, True])
def test_it_reads_what_the_student_wrote_behind_its_own_prompt(bpe, prompts_alone):
    rows = more_for_the_teacher(bpe)
    prompts = [bpe(one)["input_ids"] for one in QUESTIONS]
    longer = [bpe(RULE + one)["input_ids"] for one in QUESTIONS]
    if prompts_alone:
        alone, theirs = (
            Dataset.from_dict(
                {"input_ids": ids, "labels": [[-100] * len(one) for one in ids]}
            )
            for ids in (prompts, longer)
        )
        rows = add_teacher_prompts(alone, theirs)
    student = add_adapters(tiny(bpe, seed=1))
    args = arguments(steps=1, batch_size=4)
    made = taught_by_itself(
        "on_policy", student, bpe, rows=rows, args=args, divergence="forward_kl"
    )
    batch = made._rewritten(made.data_collator(list(rows)), 0)
    written = []
    for number in range(4):
        ids, theirs = (
            batch[f"{who}input_ids"][number][batch[f"{who}attention_mask"][number] == 1]
            for who in ("", "teacher_")
        )
        answer = ids[len(prompts[number]) :].tolist()
        assert answer
        assert ids.tolist() == prompts[number] + answer
        assert theirs.tolist() == longer[number] + answer
        labels = [-100] * len(prompts[number]) + answer
        written.append(
            {"input_ids": ids.tolist(), "labels": labels}
            | {"teacher_prompt_ids": longer[number]}
        )
    expected = divergence_by_hand(student, tiny(bpe, seed=1), written)
    made.train()
    assert losses(made)[0] == pytest.approx(expected, rel=1e-4)


def test_a_share_of_the_answers_may_stay(bpe):
    rows = more_for_the_teacher(bpe)
    student = add_adapters(tiny(bpe, seed=1))
    made = taught_by_itself("on_policy", student, bpe, rows=rows, on_policy_share=0.5)
    batch = made.data_collator(list(rows))
    found = made._rewritten(batch, 0)
    same = [
        torch.equal(
            found["labels"][i][found["labels"][i] != -100], labels[labels != -100]
        )
        for i, labels in enumerate(batch["labels"])
    ]
    assert True in same
    assert False in same
    where = same.index(True)
    for name in ("teacher_input_ids", "input_ids"):
        mask = name.replace("input_ids", "attention_mask")
        kept, given = (
            one[name][where][one[mask][where] == 1] for one in (found, batch)
        )
        assert torch.equal(kept, given)


def test_a_row_without_such_a_prompt_is_read_as_it_is(bpe):
    rows = more_for_the_teacher(bpe).to_list()
    del rows[1]["teacher_prompt_ids"]
    batch = collator_for(bpe)(rows)
    size = len(rows[1]["input_ids"])
    assert batch["teacher_input_ids"][1][:size].tolist() == rows[1]["input_ids"]
    assert int(batch["teacher_attention_mask"][1].sum()) == size


def test_shorter_prompts_and_whole_texts(bpe):
    """The teacher may see less; and a text may have no prompt of the student's."""
    rows = more_for_the_teacher(bpe).to_list()
    short = [row | {"teacher_prompt_ids": row["input_ids"][:1]} for row in rows]
    text = random_rows(4, 6, 300)["input_ids"][:]
    whole = [{"input_ids": ids, "teacher_prompt_ids": [7, 8, 9]} for ids in text]
    student = add_adapters(tiny(bpe, seed=1))
    teacher = tiny(bpe, seed=2)
    for given in (short, whole):
        labelled = [
            row if "labels" in row else row | {"labels": [-100, *row["input_ids"][1:]]}
            for row in given
        ]
        for row, source in zip(labelled, given, strict=True):
            if "labels" not in source:  # the first token is not learned, but read
                row["teacher_prompt_ids"] = [
                    *row["teacher_prompt_ids"],
                    row["input_ids"][0],
                ]
        expected = divergence_by_hand(student, teacher, labelled)
        made = make(
            "soft",
            student,
            bpe,
            rows=Dataset.from_list(given),
            teacher=teacher,
            args=arguments(steps=1, batch_size=4, learning_rate=0.0),
        )
        made.train()
        assert losses(made)[0] == pytest.approx(expected, rel=1e-4)


def test_the_teacher_s_rows_are_looked_at_too(bpe):
    rows = more_for_the_teacher(bpe)
    longest = max(
        len(r["teacher_prompt_ids"]) + sum(one != -100 for one in r["labels"])
        for r in rows
    )
    teacher = random_model("GPT2", len(bpe), positions=longest - 1)
    made = make("soft", tiny(bpe, seed=1), bpe, rows=rows, teacher=teacher)
    with pytest.raises(ValueError, match=rf"{longest} tokens, and the teacher has no"):
        made.train()
    student = random_model("GPT2", len(bpe), positions=longest - 1)
    make("soft", student, bpe, rows=rows, teacher=tiny(bpe, seed=2)).train()
    rows = rows.map(lambda _: {"teacher_prompt_ids": [5, 301]})
    made = make("soft", tiny(bpe, seed=1), bpe, rows=rows)
    with pytest.raises(ValueError, match="the teacher's row has the id 301"):
        made.train()


def test_rows_that_do_not_belong_together(bpe):
    rows = mask_prompts(QUESTIONS, ANSWERS, bpe)
    with pytest.raises(DataError, match="4 rows and 3 teacher_rows"):
        add_teacher_prompts(rows, rows.select(range(3)))
    others = mask_prompts(QUESTIONS, [*ANSWERS[:2], "a house", ANSWERS[3]], bpe)
    with pytest.raises(DataError, match="row 2: what is learned is not the same"):
        add_teacher_prompts(rows, others)
    with pytest.raises(DataError, match="row 0: what is learned"):
        add_teacher_prompts(rows, rows.map(lambda row: {"labels": row["input_ids"]}))


def test_what_cannot_use_them_refuses_them(bpe, tmp_path):
    rows = more_for_the_teacher(bpe)
    with pytest.raises(DataError, match="one prompt a row"):
        pack_examples(rows, 200)
    with pytest.raises(ValueError, match="a cache holds what a teacher says"):
        write_cache(tiny(bpe), rows, tmp_path / "cache", tokenizer=bpe)
    plain = rows.remove_columns("teacher_prompt_ids")
    write_cache(tiny(bpe), plain, tmp_path / "cache", tokenizer=bpe, progress=False)
    store = SoftLabelCache.open(tmp_path / "cache", tokenizer=bpe, dataset=plain)
    with pytest.raises(ValueError, match="stored soft labels know nothing"):
        make("soft", tiny(bpe), bpe, rows=rows, teacher=store).train()
    with pytest.raises(ValueError, match="models that learn together read the same"):
        make("together", tiny(bpe, seed=1), bpe, rows=rows).train()
    packed = [row | {"position_ids": [*range(len(row["input_ids"]))]} for row in rows]
    with pytest.raises(DataError, match="hold several examples"):
        collator_for(bpe)(packed)
