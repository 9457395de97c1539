"""Options become models, plans and trainers."""

from dataclasses import replace

import pytest
import torch
from tiny_models import byte_level_bpe, tiny
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from distill_helpers import machine
from distill_helpers.cli.configs import PlanOptions, TrainOptions
from distill_helpers.cli.runs import (
    build_trainer,
    planned_models,
    resolve_student,
    resolve_teacher,
)
from distill_helpers.data import DataError
from distill_helpers.labels import prompt_ids
from distill_helpers.machine import get_profile
from distill_helpers.tasks.questions import write_questions
from distill_helpers.tasks.teachers import load_tiny_teacher


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A model of one's own whose name begins like those that ship with the course."""
    tokenizer = byte_level_bpe()
    for part in (tiny(tokenizer, layers=3), tokenizer):
        part.save_pretrained(tmp_path / "tiny-mine")
    monkeypatch.chdir(tmp_path)
    return "tiny-mine"


def test_a_folder_may_be_called_tiny(own_folder):
    teacher = resolve_teacher(own_folder, get_profile("smoke"))
    assert teacher.model.config.num_hidden_layers == 3
    planned, _ = planned_models(PlanOptions(teacher=own_folder), get_profile("smoke"))
    assert planned.num_hidden_layers == 3


def test_the_tiny_teachers_keep_their_names(own_folder):
    (prose, _), (sums, _) = (
        resolve_teacher(f"tiny-{name}", get_profile("smoke"))
        for name in ("prose", "sums")
    )
    assert (prose.config.hidden_size, sums.config.hidden_size) == (192, 128)


def test_a_fresh_student_is_planned_as_it_is_built():
    profile = get_profile("smoke")
    teacher = resolve_teacher("tiny-prose", profile)
    built, _ = resolve_student("fresh:2x96", teacher, profile, seed=0)
    options = PlanOptions(teacher="tiny-prose", student="fresh:2x96")
    planned = planned_models(options, profile)
    for config, model in zip(planned, (teacher.model, built), strict=True):
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "tie_word_embeddings",
        ):
            assert getattr(config, name) == getattr(model.config, name), name


def test_a_pruned_student_is_planned_as_it_is_built(tmp_path):
    """Also where its layers differ: every fourth of SmolLM3 has no RoPE."""
    tokenizer = byte_level_bpe()
    config = SmolLM3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    for part in (SmolLM3ForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path)
    profile = get_profile("smoke")
    options = PlanOptions(teacher=str(tmp_path), student="pruned:5")
    _, planned = planned_models(options, profile)
    teacher = resolve_teacher(str(tmp_path), profile)
    built, _ = resolve_student("pruned:5", teacher, profile, seed=0)
    # Layers 0, 1, 2, 6 and 7 stay, and 3 and 7 have no RoPE.
    for found in (planned, built.config):
        assert found.num_hidden_layers == 5
        assert found.no_rope_layers == [1, 1, 1, 1, 0]
    with pytest.raises(
        ValueError, match="must look like pruned:20, with 2 to 8 layers"
    ):
        planned_models(PlanOptions(teacher=str(tmp_path), student="pruned:9"), profile)


def test_each_process_loads_onto_a_gpu_of_its_own(monkeypatch, tmp_path):
    """Before anything is loaded: else all models lie on the first GPU for a while."""

    class Placed(Exception):
        pass

    def set_device(index):
        raise Placed(index)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "cuda_dtype", lambda: torch.float16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setenv("LOCAL_RANK", "1")
    options = TrainOptions(teacher="tiny-prose", profile="gpu", output=str(tmp_path))
    with pytest.raises(Placed, match="1"):
        build_trainer("hard", options)
    # Processes that train on the CPU leave the GPUs alone.
    on_cpu = TrainOptions(teacher="nowhere", profile="smoke", output=str(tmp_path))
    with pytest.raises(RuntimeError, match="'nowhere' is no folder"):
        build_trainer("hard", on_cpu)


TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


@pytest.fixture
def told(tmp_path):
    """Options of soft labels of three answers, the last of them too long."""
    for name, template in (("teacher", TEMPLATE), ("student", None)):
        tokenizer = byte_level_bpe()
        tokenizer.chat_template = template
        for part in (tiny(tokenizer, seed=len(name)), tokenizer):
            part.save_pretrained(tmp_path / name)
    prompts, answers = ["one?", "two?", "three? " * 20], [" yes", " no", " no"]
    given = {
        "answers": write_questions(tmp_path / "learn.jsonl", prompts, answers),
        "told": write_questions(
            tmp_path / "told.jsonl", [f"Be brief. {one}" for one in prompts], answers
        ),
        "teacher": tmp_path / "teacher",
        "student": tmp_path / "student",
        "output": tmp_path / "run",
    }
    return TrainOptions(
        **{name: str(path) for name, path in given.items()},
        plain_prompts=True,
        length=32,
        batch_size=2,
        steps=2,
        profile="smoke",
    )


def test_soft_labels_of_answers_are_those_behind_the_teachers_prompt(told):
    trainer = build_trainer("soft", told, disable_tqdm=True)
    teacher = resolve_teacher(told.teacher, get_profile("smoke"))
    assert len(trainer.train_dataset) == 2
    total = count = 0
    for row, question, answer in zip(
        trainer.train_dataset, ("one?", "two?"), (" yes", " no"), strict=True
    ):
        message = {"role": "user", "content": f"Be brief. {question}"}
        answer_ids = teacher.tokenizer(answer + "<end>")["input_ids"]
        read = prompt_ids([message], teacher.tokenizer) + answer_ids
        plain = teacher.tokenizer(question)["input_ids"] + answer_ids
        assert row["teacher_input_ids"] == read
        assert row["input_ids"] == plain
        n = len(answer_ids)
        with torch.no_grad():
            log_q, log_p = (
                model(torch.tensor([ids])).logits[0, -n - 1 : -1].log_softmax(-1)
                for model, ids in ((trainer.model, plain), (teacher.model, read))
            )
        total += float((log_p.exp() * (log_p - log_q)).sum())
        count += n
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    assert float(loss) == pytest.approx(total / count, rel=1e-4)


def test_soft_labels_of_answers_across_tokenizers(told):
    student = load_tiny_teacher("prose")
    student.model.save_pretrained(told.student)
    student.tokenizer.save_pretrained(told.student)
    trainer = build_trainer("soft", told, disable_tqdm=True)
    teacher = resolve_teacher(told.teacher, get_profile("smoke")).tokenizer
    first = trainer.train_dataset[0]
    assert teacher.decode(first["teacher_input_ids"]) == (
        "u:Be brief. one?<end>a: yes<end>"
    )
    assert student.tokenizer.decode(first["input_ids"]) == "one? yes<end>"
    assert set(first["chunks"]) == {-1, 0, 1}  # the word, and the end
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("hard", {}, r"told=… is for a live teacher's soft labels"),
        ("soft", {"answers": ""}, r"told=… is for a live teacher's soft labels"),
        ("soft", {"cache": "somewhere"}, r"told=… is for a live teacher's soft"),
        ("soft", {"told": ""}, r"answers=… are hard labels; .* told=… holds the same"),
        ("soft", {"length": 4}, r"length=4 is too small for .*learn\.jsonl"),
    ],
)
def test_told_needs_the_answers_and_a_live_teacher(told, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(kind, replace(told, **changes))


def test_told_holds_the_same_answers(told, tmp_path):
    write_questions(tmp_path / "told.jsonl", ["a", "b", "c"], [" yes", " no", " yes"])
    with pytest.raises(DataError, match=r"told=.* must hold the answers of .*learn"):
        build_trainer("soft", told)
