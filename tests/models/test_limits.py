"""What a model can read, held against what happens when it is tried."""

import accelerate
import pytest
import torch
from small_architectures import composite, dispatched, lora, random_model

from distill_helpers.models import (
    Readers,
    RememberingTeacher,
    check_ids,
    check_length,
    input_rows,
    is_dispatched,
    output_width,
    reading_device,
    tabled_positions,
    text_config,
    unwrapped,
)

VOCABULARY = 50


def longest_read(model, most=24):
    """The longest row that a model reads without an error; ``None`` for any."""
    for length in range(10, most):
        try:
            with torch.no_grad():
                model(input_ids=torch.full((2, length), 5), use_cache=False)
        except (IndexError, RuntimeError):
            return length - 1
    return None


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("GPT2", 16),
        ("GPTJ", 16),
        ("GPTNeo", 16),
        ("OPT", 16),
        ("Bart", 16),
        ("Mpt", 16),
        ("Roberta", 14),
        ("XGLM", None),
        ("Bloom", None),
        ("Mamba", None),
        ("Llama", None),
    ],
)
def test_positions_are_those_that_can_be_read(kind, wanted, caplog):
    model = random_model(kind, VOCABULARY, positions=16)
    assert longest_read(model) == wanted
    assert tabled_positions(model) == wanted
    if wanted is None:
        check_length("student", model, 17)
        return
    check_length("student", model, wanted)
    message = (
        f"a row has {wanted + 1} tokens, and the teacher has no more than {wanted} p"
    )
    with pytest.raises(ValueError, match=message):
        check_length("teacher", model, wanted + 1)
    assert not caplog.records


def test_a_model_that_computes_its_positions_is_warned_of(caplog):
    model = random_model("Llama", VOCABULARY, positions=16)
    check_length("student", model, 16)
    assert not caplog.records
    check_length("student", model, 17)
    assert "17 tokens, and the student was made for at most 16 positions" in caplog.text


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "OPT"])
def test_ids_are_those_that_have_an_embedding(kind):
    model = random_model(kind, VOCABULARY)
    check_ids("student", model, VOCABULARY - 1)
    message = (
        r"a row has the id 50, so there must be 51 embeddings, and the student has 50"
    )
    with pytest.raises(ValueError, match=message):
        check_ids("student", model, VOCABULARY)
    model.resize_token_embeddings(60)
    assert (input_rows(model), output_width(model)) == (60, 60)


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral3", "Llava"])
def test_models_with_a_text_part_are_asked_for_that(kind):
    model = composite(kind, VOCABULARY)
    assert not hasattr(model.config, "vocab_size")
    assert text_config(model) is model.config.text_config
    assert (input_rows(model), output_width(model)) == (VOCABULARY, VOCABULARY)
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 2]])).logits.shape[-1] == VOCABULARY


@pytest.mark.parametrize(
    "wrap",
    [
        lora,
        torch.nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.nn.DataParallel(lora(model)),
    ],
    ids=["peft", "parallel", "compiled", "both"],
)
def test_wrappers_can_read_what_the_model_inside_can(wrap):
    model = random_model("OPT", VOCABULARY, positions=16)
    wrapped = wrap(model)
    assert unwrapped(wrapped) is model
    assert (input_rows(wrapped), output_width(wrapped)) == (VOCABULARY, VOCABULARY)
    assert tabled_positions(wrapped) == 16


def test_a_module_that_says_nothing_is_not_judged():
    model = torch.nn.Linear(3, 3)
    assert text_config(model) is output_width(model) is input_rows(model) is None
    check_ids("student", model, 10**6)
    check_length("student", model, 10**6)
    remembering = RememberingTeacher(random_model("Llama", VOCABULARY))
    assert output_width(remembering) == VOCABULARY


# --- batches ------------------------------------------------------------------------


def batch(length, highest=5):
    return {"input_ids": torch.full((2, length), highest)}


def test_every_reader_of_a_batch_is_asked():
    short = random_model("GPT2", VOCABULARY, positions=16)
    few = random_model("Llama", 40)
    readers = Readers({"student": short, "teacher": few})
    readers.check_batch(batch(16, 39))
    with pytest.raises(ValueError, match="the student has no more than 16 positions"):
        readers.check_batch(batch(17))
    with pytest.raises(ValueError, match="41 embeddings, and the teacher has 40"):
        readers.check_batch(batch(5, 40))
    with pytest.raises(ValueError, match="pad token has the id 40"):
        readers.check_pad(40)
    readers.check_batch({"input_ids": torch.zeros(1, 0, dtype=torch.long)})
    readers.check_batch({"something": "else"})


def test_packed_examples_count_from_their_own_beginnings():
    readers = Readers({"student": random_model("GPT2", VOCABULARY, positions=16)})
    places = torch.arange(16).repeat(2, 2)
    readers.check_batch(batch(32) | {"position_ids": places})
    with pytest.raises(ValueError, match="a row has 17 tokens"):
        readers.check_batch(batch(32) | {"position_ids": places + 1})


def test_a_risk_is_named_once(caplog):
    readers = Readers({"student": random_model("Llama", VOCABULARY, positions=16)})
    for length in (17, 17, 12, 17):
        readers.check_batch(batch(length))
    assert len(caplog.records) == 1


# --- where --------------------------------------------------------------------------


def test_only_a_model_in_several_places_is_dispatched(tmp_path):
    model = random_model("Llama", VOCABULARY)
    assert not is_dispatched(model)
    assert not is_dispatched(dispatched(model, tmp_path / "one"))
    spread = dispatched(model, tmp_path / "two", "model.embed_tokens")
    assert spread.device.type == "meta"
    offloaded = accelerate.cpu_offload(
        random_model("GPT2", VOCABULARY), torch.device("cpu")
    )
    for one in (spread, lora(spread), RememberingTeacher(spread), offloaded):
        assert is_dispatched(one)
        assert reading_device(one) == torch.device("cpu")
