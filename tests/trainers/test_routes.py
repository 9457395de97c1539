"""Several teachers: each row learns from its own, and from nobody else."""

import pytest
import torch
from datasets import IterableDataset
from tiny_models import byte_level_bpe, ragged_rows, tiny
from training_runs import trainer, weights

from distill_helpers.data import DataError, collator_for, pack_examples
from distill_helpers.labels import SoftLabelCache, write_cache
from distill_helpers.losses import soft_label_loss
from distill_helpers.models import RememberingTeacher, build_student

SGD = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "weight_decay": 0.0}
SGD |= {"lr_scheduler_type": "constant", "warmup_steps": 0}
NAMES = ("maths", "prose")
# Neither half of the rows, nor of the tokens.
WHO = ["prose", "maths", "prose", "prose", "maths", "prose", "prose", "prose"]


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


def rows_of(bpe, who=WHO, **options):
    return ragged_rows(len(who), len(bpe), **options).add_column("domain", list(who))


def teachers(bpe):
    return {name: tiny(bpe, seed=seed) for seed, name in enumerate(NAMES, 2)}


def routed(bpe, *, rows=None, column="domain", teacher=None, **options):
    objective = {"teacher_column": column} | options.pop("objective", {})
    return trainer(
        rows=rows_of(bpe) if rows is None else rows,
        teacher=teachers(bpe) if teacher is None else teacher,
        objective=objective,
        **options,
    )


def by_hand(bpe, student, rows, alpha=0.7):
    """Each teacher's part apart, on rows of its own, and the mean over all tokens."""
    parts, counts = [], []
    for name, teacher in teachers(bpe).items():
        own = [row for row in rows if row["domain"] == name]
        batch = collator_for(bpe)(own)
        labels = batch.pop("labels")
        with torch.no_grad():
            said = teacher(**batch).logits
        counts.append(int((labels[:, 1:] != -100).sum()))
        logits = student(**batch).logits
        part = soft_label_loss(logits, said, labels, alpha=alpha, temperature=2.0)
        parts.append(part.loss)
    assert 0 < counts[0] < counts[1]
    total = sum(one * count for one, count in zip(parts, counts, strict=True))
    return total / sum(counts)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("micro", [8, 2])
def test_the_loss_is_the_sum_of_the_parts_weighted_by_their_tokens(bpe, fused, micro):
    made = routed(
        bpe,
        objective={"fused": fused},
        steps=1,
        batch_size=micro,
        gradient_accumulation_steps=8 // micro,
        **SGD,
    )
    made.train()
    student = tiny(bpe, seed=1)
    loss = by_hand(bpe, student, rows_of(bpe))
    loss.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= SGD["learning_rate"] * parameter.grad
    assert made.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    start = weights(tiny(bpe, seed=1))
    assert (weights(student) - start).abs().max() > 0.01
    torch.testing.assert_close(
        weights(made.model), weights(student), rtol=1e-4, atol=1e-5
    )


def test_without_a_count_the_batch_s_own_positions_count(bpe):
    """As in an evaluation, or in a loop of one's own."""
    made = routed(bpe, eval_rows=rows_of(bpe), batch_size=8)
    batch = made.data_collator(list(rows_of(bpe)))
    found = made.objective(made.model, batch, None)
    wanted = by_hand(bpe, tiny(bpe, seed=1), rows_of(bpe))
    torch.testing.assert_close(found["loss"], wanted, rtol=1e-5, atol=1e-6)
    mixed = 0.7 * found["soft"] + 0.3 * found["hard"]
    torch.testing.assert_close(found["loss"].detach(), mixed, rtol=1e-5, atol=1e-6)
    assert made.evaluate()["eval_loss"] == pytest.approx(wanted.item(), rel=1e-4)


def seen_by(models):
    """What each teacher reads from now on, row by row, padding taken off."""
    seen = {name: [] for name in models}

    def note(name):
        def hook(_, args, inputs):
            if inputs.get("attention_mask") is None:
                return  # made-up tokens: the model is tried out
            lengths = inputs["attention_mask"].sum(1).tolist()
            ids = inputs["input_ids"].tolist()
            seen[name] += [row[:n] for row, n in zip(ids, lengths, strict=True)]

        return hook

    for name, model in models.items():
        model.register_forward_pre_hook(note(name), with_kwargs=True)
    return seen


def test_a_teacher_reads_its_own_rows_alone(bpe):
    models = teachers(bpe)
    made = routed(bpe, teacher=models, steps=2, batch_size=4)
    seen = seen_by(models)
    made.train()
    for name in NAMES:
        own = [row["input_ids"] for row in rows_of(bpe) if row["domain"] == name]
        assert sorted(seen[name]) == sorted(own)


def test_a_batch_may_be_one_teacher_s_alone(bpe):
    models = teachers(bpe)
    seen = seen_by(models)
    rows = rows_of(bpe, ["prose"] * 4)
    made = routed(bpe, rows=rows, teacher=models, steps=1, batch_size=4, **SGD)
    made.train()
    alone = trainer(rows=rows, teacher=teachers(bpe)["prose"], steps=1, **SGD)
    alone.train()
    assert not seen["maths"]
    assert torch.equal(weights(made.model), weights(alone.model))


def test_packed_rows_have_one_teacher_each(bpe):
    """Packed by teacher, and then joined, they teach what the examples teach."""
    from datasets import concatenate_datasets

    rows = rows_of(bpe)
    parts = []
    for name in NAMES:
        own = pack_examples(rows.filter(lambda row, n=name: row["domain"] == n), 60)
        parts.append(own.add_column("domain", [name] * len(own)))
    packed = concatenate_datasets(parts)
    assert len(packed) < len(rows)
    one, two = (
        routed(bpe, rows=some, steps=1, batch_size=len(some), **SGD)
        for some in (rows, packed)
    )
    one.train()
    two.train()
    torch.testing.assert_close(
        weights(two.model), weights(one.model), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(DataError, match=r"train_dataset has the columns .*domain"):
        routed(bpe, rows=pack_examples(rows, 60))


def test_one_of_the_teachers_may_be_a_cache(bpe, tmp_path):
    """Stored exactly, it teaches as it would live."""
    models = teachers(bpe)
    rows = rows_of(bpe)
    own = rows.filter(lambda row: row["domain"] == "maths")
    plain = own.remove_columns("domain")
    write_cache(
        models["maths"],
        plain,
        tmp_path / "cache",
        tokenizer=bpe,
        scheme="full",
        temperature=2.0,
    )
    cache = SoftLabelCache.open(tmp_path / "cache", tokenizer=bpe, dataset=plain)
    made = routed(bpe, teacher=models | {"maths": cache}, batch_size=8)
    batch = made.data_collator(list(rows))
    wanted = by_hand(bpe, tiny(bpe, seed=1), rows)
    found = made.objective(made.model, batch, None)["loss"]
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-4)


# --- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chemistry", "Maths", None])
@pytest.mark.parametrize("where", ["train", "eval", "one of two"])
def test_an_unknown_teacher_is_refused_before_training(bpe, name, where):
    bad = rows_of(bpe, [*WHO[:5], name])
    given = {"rows": bad} if where == "train" else {"eval_rows": bad}
    if where == "one of two":
        given = {"eval_rows": {"a": rows_of(bpe), "b": bad}}
    words = rf"row 5 of .* has {name!r} in the column 'domain'.*'maths', 'prose'"
    with pytest.raises(DataError, match=words):
        routed(bpe, **given)


def test_a_stream_is_refused_at_the_row(bpe):
    def rows():
        yield from rows_of(bpe, ["maths", "chemistry"])

    made = routed(bpe, rows=IterableDataset.from_generator(rows), batch_size=2)
    with pytest.raises(DataError, match="a row has 'chemistry' in the column"):
        made.train()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"column": None}, "teacher_column is None"),
        ({"teacher": {}}, "holds 0 teachers"),
        ({"column": "subject"}, r"not teacher_column='subject'"),
        (
            {"objective": {"teacher_tokenizer": {"maths": None}}},
            "teacher_tokenizer names 'maths', and the teachers are 'maths', 'prose'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(bpe, change, words):
    with pytest.raises(ValueError, match=words):
        routed(bpe, **change)
    if "column" in change:
        with pytest.raises(ValueError, match="chooses among several teachers"):
            routed(bpe, teacher=tiny(bpe))


def test_the_vocabularies_of_all_teachers_are_checked(bpe):
    other = byte_level_bpe(320)
    strange = teachers(bpe) | {"prose": tiny(other)}
    with pytest.raises(ValueError, match="teacher 'prose': the teacher's head has"):
        routed(bpe, teacher=strange)
    tokenizers = {"maths": bpe, "prose": other}
    with pytest.raises(ValueError, match=r"teacher 'prose': .*different tokenizers"):
        routed(bpe, teacher=strange, objective={"teacher_tokenizer": tokenizers})
    # Heads that are padded to unequal widths are cut to the tokens that all have.
    wide = build_student(bpe, layers=1, width=16)
    wide.resize_token_embeddings(len(bpe) + 20)
    made = routed(
        bpe,
        teacher=teachers(bpe) | {"prose": wide},
        objective={"teacher_tokenizer": bpe},
        steps=1,
    )
    assert made.train().training_loss > 0


def test_a_student_cannot_be_one_of_its_teachers(bpe):
    made = trainer()
    with pytest.raises(ValueError, match="teacher 'prose': teacher and model are one"):
        type(made)(
            made.model,
            teacher={"maths": tiny(bpe), "prose": made.model},
            teacher_column="domain",
            args=made.args,
            train_dataset=rows_of(bpe),
            tokenizer=bpe,
        )


# --- on-policy ----------------------------------------------------------------------


def on_policy(bpe, models, *, share, rows):
    from distill_helpers.trainers import OnPolicyTrainer

    args = trainer(rows=rows, steps=1, batch_size=len(rows), **SGD).args
    return OnPolicyTrainer(
        tiny(bpe, seed=1),
        teacher=models,
        teacher_column="domain",
        max_new_tokens=5,
        on_policy_share=share,
        divergence="forward_kl",
        args=args,
        train_dataset=rows,
        tokenizer=bpe,
    )


def prompts_of(bpe):
    rows = rows_of(bpe, shortest=6)
    return rows.map(lambda row: {"labels": [-100] * 3 + row["input_ids"][3:]})


@pytest.mark.parametrize("remembering", [False, True])
def test_what_a_student_writes_is_judged_by_the_row_s_teacher(bpe, remembering):
    rows = prompts_of(bpe)
    models = teachers(bpe)
    given = models
    if remembering:
        given = {name: RememberingTeacher(one) for name, one in models.items()}
    made = on_policy(bpe, given, share=1.0, rows=rows)
    seen = seen_by(models)
    made.train()
    for name in NAMES:
        own = [row["input_ids"][:3] for row in rows if row["domain"] == name]
        assert sorted(row[:3] for row in seen[name]) == sorted(own)
        finished = [row["input_ids"] for row in rows]
        assert not [one for one in seen[name] if one in finished]  # its own words


def test_with_the_rows_own_answers_it_is_the_soft_loss(bpe):
    rows = prompts_of(bpe)
    one = on_policy(bpe, teachers(bpe), share=0.0, rows=rows)
    objective = {"alpha": 1.0, "temperature": 1.0}
    two = routed(bpe, rows=rows, steps=1, batch_size=8, objective=objective, **SGD)
    one.train()
    two.train()
    assert torch.equal(weights(one.model), weights(two.model))
