"""The tiny teachers that ship are as good as the recipe asks for."""

import json
from pathlib import Path

import pytest

from distill_helpers.data import pack
from distill_helpers.evaluation import evaluate
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import load_tiny_teacher

RECORDED = Path(__file__).resolve().parents[2] / "results" / "pretraining.json"


@pytest.mark.slow
def test_the_prose_teacher_is_at_least_as_good_as_2000_steps():
    reference = json.loads(RECORDED.read_text(encoding="utf-8"))
    teacher, tokenizer = load_tiny_teacher("prose")
    found = evaluate(teacher, pack(austen("test"), tokenizer, 64), tokenizer)
    assert found.tokens == reference["tokens"]
    assert found.bits_per_byte <= reference["bits_per_byte"]
