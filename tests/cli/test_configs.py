"""Options become models, plans and trainers."""

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
from distill_helpers.machine import get_profile


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
