"""The yardsticks, against sums by hand, closed forms and constructed cases."""

import dataclasses
import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny_models import byte_level_bpe, ragged_rows, random_rows, tiny
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, Whitespace
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from distill_helpers import evaluation
from distill_helpers.data import pack, token_bytes
from distill_helpers.evaluation import scores
from distill_helpers.models import build_student
from distill_helpers.tasks import three_sums


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


@pytest.fixture(scope="module")
def model(bpe):
    return tiny(bpe, seed=1)


@pytest.fixture(scope="module")
def rows(bpe):
    return ragged_rows(11, len(bpe), seed=2)


class FixedLogits(nn.Module):
    """A model whose distribution over the next token does not depend on the text."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, input_ids, **_):
        @dataclasses.dataclass
        class Output:
            logits: torch.Tensor

        return Output(self.logits.expand(*input_ids.shape, -1).clone())


def by_hand(model, rows, tokenizer):
    """Row by row, without padding, in float64: NLL, hits, counted tokens, bytes."""
    sizes = token_bytes(tokenizer)
    nll, hits, tokens, size = 0.0, 0, 0, 0
    for row in rows:
        labels = row.get("labels", row["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        log_p = logits.double().log_softmax(-1)
        for position in range(1, len(labels)):
            label = labels[position]
            if label == -100:
                continue
            nll -= float(log_p[position - 1, label])
            hits += int(log_p[position - 1].argmax()) == label
            tokens += 1
            size += int(sizes[label])
    return nll, hits, tokens, size


def test_nll_accuracy_and_bits_per_byte_by_hand(model, rows, bpe):
    nll, hits, tokens, size = by_hand(model, rows, bpe)
    found = evaluation.evaluate(model, rows, bpe, batch_size=4)
    assert found.tokens == tokens
    assert found.bytes == size
    assert found.nll == pytest.approx(nll / tokens, rel=1e-5)
    assert found.accuracy == hits / tokens
    assert found.bits_per_byte == pytest.approx(nll / math.log(2) / size, rel=1e-5)
    assert found.kl_to_teacher is None
    assert found.agreement is None


def test_held_out_nll_is_the_same_number(model, rows, bpe):
    found = evaluation.evaluate(model, rows, bpe)
    assert evaluation.held_out_nll(model, rows, bpe) == pytest.approx(found.nll, 1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_do_not_matter(model, rows, bpe, batch_size):
    found = evaluation.evaluate(
        model, rows, bpe, teacher=tiny(bpe, seed=5), batch_size=batch_size
    )
    once = evaluation.evaluate(model, rows, bpe, teacher=tiny(bpe, seed=5))
    for name, value in dataclasses.asdict(once).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5), name


def test_bits_per_byte_of_a_uniform_model_is_known(bpe):
    text = "Grüße 🙂, said Emma."
    packed = pack([text], bpe, len(bpe(text)["input_ids"]))
    found = evaluation.evaluate(FixedLogits(torch.zeros(len(bpe))), packed, bpe)
    first = int(token_bytes(bpe)[packed[0]["input_ids"][0]])
    assert found.bytes == len(text.encode()) - first  # nothing predicts the first
    assert found.nll == pytest.approx(math.log(len(bpe)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(
        found.tokens * math.log2(len(bpe)) / found.bytes, rel=1e-5
    )


def test_bits_per_byte_without_bytes_is_nan(bpe):
    end = bpe.eos_token_id
    only_ends = Dataset.from_dict({"input_ids": [[end, end, end]]})
    found = evaluation.evaluate(FixedLogits(torch.zeros(len(bpe))), only_ends, bpe)
    assert (found.tokens, found.bytes) == (2, 0)
    assert math.isnan(found.bits_per_byte)


def test_a_model_is_like_itself(model, rows, bpe):
    found = evaluation.evaluate(model, rows, bpe, teacher=model)
    assert found.kl_to_teacher == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1


def test_kl_and_agreement_by_hand(model, rows, bpe):
    teacher = tiny(bpe, seed=9)
    kl, same, tokens = 0.0, 0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_s = model(input_ids=ids).logits[0].double().log_softmax(-1)
            log_t = teacher(input_ids=ids).logits[0].double().log_softmax(-1)
        for position, label in list(enumerate(row["labels"]))[1:]:
            if label != -100:
                s, t = log_s[position - 1], log_t[position - 1]
                kl += float((t.exp() * (t - s)).sum())
                same += int(s.argmax()) == int(t.argmax())
                tokens += 1
    found = evaluation.evaluate(model, rows, bpe, teacher=teacher, batch_size=3)
    assert found.kl_to_teacher == pytest.approx(kl / tokens, rel=1e-4)
    assert found.agreement == same / tokens
    assert kl / tokens > 0.1  # else the comparison would say little


def test_kl_is_forward_from_the_teacher():
    tokenizer = three_sums.build_tokenizer()
    student = FixedLogits([0.0] * 16)
    teacher = FixedLogits([30.0] + [0.0] * 15)  # sure of one token
    found = evaluation.evaluate(
        student, random_rows(2, 5, 16), tokenizer, teacher=teacher
    )
    assert found.kl_to_teacher == pytest.approx(math.log(16), rel=1e-4)


def test_padded_heads_are_cut(bpe):
    width = len(bpe)
    logits = torch.linspace(-1, 1, width)
    rows = random_rows(3, 8, width)
    padded = FixedLogits(torch.cat([logits, torch.full((20,), 50.0)]))
    plain = FixedLogits(logits)
    assert evaluation.evaluate(padded, rows, bpe, teacher=plain) == (
        evaluation.evaluate(plain, rows, bpe, teacher=padded)
    )


def test_expected_calibration_error_of_a_constructed_case():
    # The model says token 2 with 80 %; it is right in 3 of 5 places: |0.8 − 0.6|.
    tokenizer = three_sums.build_tokenizer()
    p = torch.full((16,), 0.2 / 15)
    p[2] = 0.8
    rows = Dataset.from_dict({"input_ids": [[9, 2, 2, 5, 2, 7]]})
    found = evaluation.evaluate(FixedLogits(p.log()), rows, tokenizer)
    assert found.accuracy == pytest.approx(0.6)
    assert found.ece == pytest.approx(0.2, abs=1e-6)


def test_expected_calibration_error_weighs_bins_by_their_tokens():
    # Two kinds of places: after a 3 the model says 2 with 90 %, else 4 with 50 %.
    tokenizer = three_sums.build_tokenizer()

    class TwoKinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, **_):
            sure = torch.full((16,), 0.1 / 15)
            sure[2] = 0.9
            unsure = torch.full((16,), 0.5 / 15)
            unsure[4] = 0.5
            after_three = (input_ids == 3).unsqueeze(-1)

            class Output:
                logits = torch.where(after_three, sure.log(), unsure.log())

            return Output

    # After 3: 2, 5 (right half the time: |0.9 − 0.5|, two places). Else: 3, 4, 4, 3,
    # of which two are right (|0.5 − 0.5|, four places).
    rows = Dataset.from_dict({"input_ids": [[7, 4, 4, 3, 2, 3, 5]]})
    found = evaluation.evaluate(TwoKinds(), rows, tokenizer)
    assert found.ece == pytest.approx((2 * 0.4 + 4 * 0.0) / 6, abs=1e-6)


def test_certainty_falls_into_the_last_bin():
    tokenizer = three_sums.build_tokenizer()
    sure = FixedLogits([0.0, 0.0, 200.0] + [0.0] * 13)
    rows = Dataset.from_dict({"input_ids": [[2, 2, 2]]})
    assert evaluation.evaluate(sure, rows, tokenizer).ece == pytest.approx(0)


class ByLastToken(nn.Module):
    """A model whose distribution hangs on the last token alone, by a table."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids, **_):
        @dataclasses.dataclass
        class Output:
            logits: torch.Tensor

        return Output(self.logits[input_ids].clone())


# Places near both edges of all fifteen bins: so little above the lower edge, and so
# little below the upper one. Edges of 14 or 16 bins lie elsewhere, nearly all of them.
NEAR = 0.005
CONFIDENCES = [edge for b in range(15) for edge in (b / 15 + NEAR, (b + 1) / 15 - NEAR)]
# Every other bin's guesses are right. In a bin of wrong ones the gap of its two places
# is the sum of their confidences, (2b + 1) / 15: 120 / 15 over the bins 0, 2, …, 14.
# In one of right ones it is 2 less that: 14 − 105 / 15 over 1, 3, …, 13. Together 15,
# over 30 places; bins that take from a neighbour would let right and wrong cancel.
BY_BINS = [b % 2 == 1 for b in range(15) for _ in range(2)]
# In every bin the lower guess is wrong, the upper right: |(2b + 1) / 15 − 1|, which is
# |2b − 14| / 15, and 2 · (2 + 4 + … + 14) / 15 = 112 / 15 over all; finer bins would
# have nothing that cancels.
WITHIN_BINS = [upper for _ in range(15) for upper in (False, True)]


@pytest.mark.parametrize(
    ("right", "ece"), [(BY_BINS, 0.5), (WITHIN_BINS, 112 / 15 / 30)]
)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("batch_size", [7, 30])
def test_expected_calibration_error_has_fifteen_equal_bins(
    bpe, right, ece, temperature, batch_size
):
    guess, other = 1, 2
    p = torch.full((len(bpe), len(bpe)), 1 / len(bpe), dtype=torch.float64)
    states = [100 + place for place in range(30)]
    for state, confidence in zip(states, CONFIDENCES, strict=True):
        p[state] = (1 - confidence) / (len(bpe) - 1)
        p[state, guess] = confidence
    # The calibration is that of what the model says at the temperature asked for.
    model = ByLastToken((temperature * p.log()).float())
    rows = [
        {"input_ids": [state, guess if good else other]}
        for state, good in zip(states, right, strict=True)
    ]
    found = evaluation.evaluate(
        model, rows, bpe, temperature=temperature, batch_size=batch_size
    )
    assert found.tokens == 30
    assert found.accuracy == sum(right) / 30
    assert found.ece == pytest.approx(ece, abs=1e-5)


@pytest.mark.parametrize(
    ("true_temperature", "fitted"),
    [
        # Halfway between two of the temperatures that are tried, in the middle and
        # beside the ends; and beyond the ends, where the nearest end is the answer.
        *((2**power, 2**power) for power in (-1.875, -0.125, 0.125, 0.625, 1.875)),
        (0.1, 0.25),
        (20.0, 4.0),
    ],
)
def test_fit_temperature_between_and_beyond_what_is_tried(true_temperature, fitted):
    """Labels as often as the model says: the best temperature has no noise."""
    tokenizer = three_sums.build_tokenizer()
    counts = torch.tensor([2 ** (token // 2) for token in range(16)])
    ids = torch.arange(16).repeat_interleave(counts).tolist()
    rows = [{"input_ids": [0, *ids]}]
    model = FixedLogits((counts / counts.sum()).log() * true_temperature)
    found = evaluation.fit_temperature(model, rows, tokenizer)
    assert found == pytest.approx(fitted, rel=0.01)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.0, 3.2])
def test_fit_temperature_recovers_a_known_one(true_temperature):
    """Labels drawn from p; the model's logits are log p times T: dividing helps."""
    tokenizer = three_sums.build_tokenizer()
    torch.manual_seed(0)
    log_p = torch.randn(16).log_softmax(-1)
    ids = torch.multinomial(log_p.exp(), 40_000, replacement=True).view(400, 100)
    rows = Dataset.from_dict({"input_ids": ids.tolist()})
    model = FixedLogits(log_p * true_temperature)
    fitted = evaluation.fit_temperature(model, rows, tokenizer, batch_size=400)
    assert fitted == pytest.approx(true_temperature, rel=0.06)
    # And it is the best of what can be had, by evaluate() itself.
    best = evaluation.evaluate(model, rows, tokenizer, temperature=fitted)
    assert best.temperature == fitted
    for other in (fitted * 0.8, fitted * 1.25):
        worse = evaluation.evaluate(model, rows, tokenizer, temperature=other)
        assert worse.nll > best.nll


def test_fit_temperature_on_a_real_model_with_a_scaled_head():
    tokenizer = byte_level_bpe()
    model = tiny(tokenizer, seed=3)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, len(tokenizer), (64, 33), generator=generator)
    with torch.no_grad():
        p = model(input_ids=ids).logits[:, :-1].softmax(-1)
    drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(64, 32)
    labels = torch.cat([ids[:, :1], drawn], 1)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    assert evaluation.fit_temperature(model, rows, tokenizer) == pytest.approx(
        1, rel=0.08
    )
    head = model.lm_head.weight.detach().clone()
    model.lm_head.weight = nn.Parameter(head * 2)  # untied: only the head doubles
    assert evaluation.fit_temperature(model, rows, tokenizer) == pytest.approx(
        2, rel=0.08
    )


def test_temperature_changes_the_student_alone(model, rows, bpe):
    hot = evaluation.evaluate(model, rows, bpe, teacher=model, temperature=2.0)
    assert hot.kl_to_teacher > 1e-3
    assert hot.agreement == 1
    assert hot.temperature == 2.0


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_bad_temperatures_are_refused(model, rows, bpe, temperature):
    with pytest.raises(ValueError, match=r"temperature=.* must be a positive number"):
        evaluation.evaluate(model, rows, bpe, temperature=temperature)


@pytest.mark.parametrize(
    "measure",
    [evaluation.evaluate, evaluation.held_out_nll, evaluation.fit_temperature],
)
@pytest.mark.parametrize(
    "rows",
    [
        {"input_ids": [[3, 4, 5]], "labels": [[-100, -100, -100]]},
        {"input_ids": [[3, 4, 5]], "labels": [[3, -100, -100]]},
        {"input_ids": [[3], [4]]},
        {"input_ids": []},
    ],
)
def test_nothing_to_count_is_an_error(measure, rows):
    tokenizer = three_sums.build_tokenizer()
    with pytest.raises(ValueError, match="no position that counts"):
        measure(FixedLogits(torch.zeros(16)), Dataset.from_dict(rows), tokenizer)


def test_masked_rows_beside_others_change_nothing(model, bpe):
    ids = [[3, 4, 5, 6], [9, 8, 7, 6]]
    one = Dataset.from_dict({"input_ids": ids[:1], "labels": ids[:1]})
    two = Dataset.from_dict({"input_ids": ids, "labels": [ids[0], [-100] * 4]})
    first = evaluation.evaluate(model, one, bpe)
    both = evaluation.evaluate(model, two, bpe)
    assert both.tokens == first.tokens == 3
    assert both.nll == pytest.approx(first.nll, rel=1e-6)


def test_dropout_is_off_and_the_mode_comes_back(bpe, rows):
    model, teacher = tiny(bpe, seed=1), tiny(bpe, seed=2)
    for network in (model, teacher):
        for layer in network.model.layers:
            layer.self_attn.attention_dropout = 0.5
    calm = evaluation.evaluate(model, rows, bpe, teacher=teacher)
    model.train()
    teacher.train()
    assert evaluation.evaluate(model, rows, bpe, teacher=teacher) == calm
    assert model.training
    assert teacher.training


def test_the_mode_comes_back_after_an_error(bpe):
    model = tiny(bpe).train()
    strange = Dataset.from_dict({"input_ids": [[1, 9999]]})
    with pytest.raises(ValueError, match="id 9999"):
        evaluation.evaluate(model, strange, bpe)
    assert model.training


# --- rows as they come --------------------------------------------------------------

YARDSTICKS = [
    evaluation.held_out_nll,
    evaluation.fit_temperature,
    lambda *arguments, **options: evaluation.evaluate(*arguments, **options).nll,
]


@pytest.mark.parametrize("measure", YARDSTICKS)
def test_streams_and_lists_are_measured_like_datasets(measure, model, rows, bpe):
    right = measure(model, rows, bpe, batch_size=4)
    streams = (
        rows.to_iterable_dataset(),
        IterableDataset.from_generator(lambda: iter(rows.to_list())),
        rows.to_list(),
        iter(rows.to_list()),
    )
    for some in streams:
        assert measure(model, some, bpe, batch_size=4) == right


@pytest.mark.parametrize("measure", YARDSTICKS)
@pytest.mark.parametrize(
    ("some", "message"),
    [
        ({"input_ids": [[1, 2]]}, r"rows are a mapping of \['input_ids'\]"),
        ({"train": Dataset.from_dict({"input_ids": [[1, 2]]})}, r"rows\[\"test\"\]"),
        (["a text"], "rows hold a str"),
        ([{"text": "a text"}], "row 0 has no input_ids"),
        ([{"input_ids": [1, 2], "position_ids": [0, 1]}], "pack_examples"),
    ],
)
def test_what_are_no_rows_is_named(measure, some, message, model, bpe):
    with pytest.raises(ValueError, match=message):
        measure(model, some, bpe)


@pytest.mark.parametrize("measure", YARDSTICKS)
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_rows_without_tokens_or_labels_are_passed_over(measure, batch_size, model, bpe):
    ids = [[5, 6, 7, 8], [9, 10, 11]]
    holes = [[], ids[0], [], [], [12], ids[1], []]
    right = measure(model, [{"input_ids": row} for row in ids], bpe)
    some = Dataset.from_dict({"input_ids": holes})
    found = measure(model, some, bpe, batch_size=batch_size)
    assert found == pytest.approx(right, rel=1e-6)
    with pytest.raises(ValueError, match="batch_size=0"):
        measure(model, some, bpe, batch_size=0)


@pytest.mark.parametrize("measure", YARDSTICKS)
@pytest.mark.parametrize("name", ["assistant_masks", "completion_mask", "loss_mask"])
def test_masks_of_other_tools_say_what_counts(measure, name, model, bpe):
    ids, mask = [5, 6, 7, 8, 9], [1, 0, 1, 1, 0]
    masked = Dataset.from_dict({"input_ids": [ids], name: [mask], "text": ["a"]})
    labelled = [{"input_ids": ids, "labels": [-100, -100, 7, 8, -100]}]
    assert measure(model, masked, bpe) == measure(model, labelled, bpe)
    assert evaluation.evaluate(model, masked, bpe).tokens == 2


@pytest.mark.parametrize("measure", YARDSTICKS)
def test_ids_and_lengths_that_nobody_can_read_are_refused(measure, bpe):
    size = len(bpe)
    padded = byte_level_bpe()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny(bpe)
    uneven = [{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6]}]
    with pytest.raises(
        ValueError, match=rf"pad token has the id {size},.* has {size};"
    ):
        measure(model, uneven, padded)
    # Where nothing is padded, the token is not needed.
    even = [{"input_ids": [5, 6, 7]}]
    assert measure(model, even, padded) == measure(model, even, bpe)
    with pytest.raises(ValueError, match=rf"id {size + 4},.*the model has {size};"):
        measure(model, [{"input_ids": [5, size + 4]}], bpe)
    with pytest.raises(ValueError, match=rf"label {size}, and the highest id .*29"):
        measure(model, [{"input_ids": [5, 6], "labels": [5, size]}], bpe)


@pytest.mark.parametrize("measure", YARDSTICKS)
@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=16, vocab_size=300),
        OPTConfig(
            hidden_size=32,
            ffn_dim=48,
            word_embed_proj_dim=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=16,
            vocab_size=300,
        ),
    ],
)
def test_rows_longer_than_a_table_of_positions_are_refused(measure, config, bpe):
    short = AutoModelForCausalLM.from_config(config)
    fits, too_long = (random_rows(2, length, 300) for length in (16, 17))
    assert measure(short, fits, bpe) > 0
    with pytest.raises(ValueError, match=r"17 tokens, and the model .* 16 position"):
        measure(short, too_long, bpe)


def test_a_teacher_that_cannot_read_the_rows_is_named(model, bpe):
    narrow = build_student(bpe, layers=1, width=32)
    narrow.resize_token_embeddings(200)
    with pytest.raises(ValueError, match=r"id 250, .* the teacher has 200"):
        evaluation.evaluate(model, [{"input_ids": [1, 250]}], bpe, teacher=narrow)
    with pytest.raises(ValueError, match=r"heads of 300 and 200 outputs"):
        evaluation.evaluate(model, [{"input_ids": [1, 2]}], bpe, teacher=narrow)


# --- tokenizers of all kinds --------------------------------------------------------


def gapped(names=("<unk>", "the", "cat", "sat"), *, end=41):
    backend = Tokenizer(
        WordLevel({name: i for i, name in enumerate(names)} | {"<end>": end}, "<unk>")
    )
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", unk_token="<unk>"
    )


@pytest.mark.parametrize("measure", [YARDSTICKS[0], YARDSTICKS[2]])
@pytest.mark.parametrize(("outputs", "end"), [(42, 41), (48, 41), (64, 9)])
def test_ids_with_gaps_count(measure, outputs, end):
    tokenizer = gapped(end=end)
    logits = torch.linspace(-1, 2, outputs)
    rows = [{"input_ids": [1, 2, end]}, {"input_ids": [3, end]}]
    log_p = logits.double().log_softmax(-1)
    right = -float(log_p[2] + 2 * log_p[end]) / 3
    found = measure(FixedLogits(logits), rows, tokenizer)
    assert found == pytest.approx(right, rel=1e-5)


def test_a_padded_head_beside_a_teacher_is_cut_to_the_highest_id():
    tokenizer = gapped()
    teacher, student = torch.linspace(-1, 2, 42), torch.linspace(1, 0, 50)
    log_s, log_t = student[:42].log_softmax(-1), teacher.log_softmax(-1)
    found = evaluation.evaluate(
        FixedLogits(student),
        [{"input_ids": [1, 41]}],
        tokenizer,
        teacher=FixedLogits(teacher),
    )
    right = float((log_t.exp() * (log_t - log_s)).sum())
    assert found.kl_to_teacher == pytest.approx(right, rel=1e-5)
    assert found.nll == pytest.approx(-float(log_s[41]), rel=1e-5)


def test_bytes_that_cannot_be_told_are_nan_and_said(model, bpe, caplog):
    rows = [{"input_ids": [1, 2, 41]}]
    found = evaluation.evaluate(FixedLogits(torch.zeros(42)), rows, gapped())
    assert found.nll == pytest.approx(math.log(42), rel=1e-5)
    assert math.isnan(found.bits_per_byte)
    assert found.bytes == 0
    assert "bits per byte are nan: the bytes of a text cannot be told" in caplog.text


def test_unknown_tokens_make_bits_per_byte_nan(caplog):
    backend = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2, "!": 3}, "<unk>"))
    backend.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="!"
    )
    model = FixedLogits(torch.zeros(4))
    known = evaluation.evaluate(model, [{"input_ids": [1, 2, 1]}], tokenizer)
    assert known.bits_per_byte == pytest.approx(2, rel=1e-5)
    assert not caplog.text
    found = evaluation.evaluate(model, [{"input_ids": [1, 2, 0, 1]}], tokenizer)
    assert (math.isnan(found.bits_per_byte), found.tokens) == (True, 3)
    assert "unknown" in caplog.text


# --- block by block -----------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_hidden_layers=1,
            vocab_size=320,
        ),
        Gemma2Config(
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_hidden_layers=1,
            vocab_size=320,
        ),
        CohereConfig(
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_hidden_layers=1,
            vocab_size=320,
            logit_scale=0.5,
        ),
        GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=320),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("numbers", [1, 2**20])
def test_blocks_give_what_whole_logits_give(config, numbers, rows, bpe, monkeypatch):
    """Padded heads, scales and caps; by hand from the model's own logits."""
    monkeypatch.setitem(scores._BLOCK, "cpu", numbers)
    monkeypatch.setattr(scores, "_LEAST_ROWS", 3)
    torch.manual_seed(0)
    student, teacher = (AutoModelForCausalLM.from_config(config).eval() for _ in "12")
    nll = kl = 0.0
    same = tokens = 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            q, p = (
                one(input_ids=ids).logits[0, :-1, :300].double().log_softmax(-1)
                for one in (student, teacher)
            )
        counted = [i for i, label in enumerate(row["labels"][1:]) if label != -100]
        for place in counted:
            nll -= float(q[place, row["labels"][place + 1]])
            kl += float((p[place].exp() * (p[place] - q[place])).sum())
            same += int(p[place].argmax()) == int(q[place].argmax())
        tokens += len(counted)
    found = evaluation.evaluate(student, rows, bpe, teacher=teacher, batch_size=4)
    assert found.tokens == tokens
    assert found.nll == pytest.approx(nll / tokens, rel=1e-5)
    assert found.kl_to_teacher == pytest.approx(kl / tokens, rel=1e-3)
    assert found.agreement == same / tokens


@pytest.mark.parametrize("measure", YARDSTICKS)
def test_logits_are_never_held_in_full(measure, model, bpe, monkeypatch):
    """No product with the head gives more rows than a block."""
    monkeypatch.setitem(scores._BLOCK, "cpu", 1)
    seen = []
    linear = nn.functional.linear

    def watched(states, weight, bias=None):
        if len(weight) == len(bpe):
            seen.append(states.shape[:-1].numel())
        return linear(states, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", watched)
    measure(model, random_rows(8, 20, len(bpe)), bpe, batch_size=8)
    assert max(seen) <= 8 * 3  # three positions of each row try the head
    assert sum(seen) >= 8 * 19


# --- generation ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def sums():
    tokenizer = three_sums.build_tokenizer()
    return tiny(tokenizer, seed=4), tokenizer


PROMPTS = ["1+2=", "10+20+30=", "7", "123+456+789=", "5=", "44+1="]


def greedy_by_hand(model, tokenizer, prompt, count):
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batched_generation_equals_one_by_one_by_hand(sums, batch_size):
    model, tokenizer = sums
    expected = [greedy_by_hand(model, tokenizer, prompt, 9) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    found = evaluation.generate(
        model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=batch_size
    )
    assert found == expected


def test_generation_needs_no_pad_token(bpe):
    model = tiny(bpe, seed=6)
    texts = ["It is", "a single man in want of"]
    assert evaluation.generate(model, bpe, texts, max_new_tokens=5) == [
        greedy_by_hand(model, bpe, text, 5) for text in texts
    ]


def test_generation_leaves_the_training_mode_alone(sums):
    model, tokenizer = sums
    model.train()
    evaluation.generate(model, tokenizer, ["1"], max_new_tokens=1)
    assert model.training
    model.eval()
    evaluation.generate(model, tokenizer, ["1"], max_new_tokens=1)
    assert not model.training


def test_exact_match_counts(sums):
    model, tokenizer = sums
    answers = evaluation.generate(model, tokenizer, PROMPTS, max_new_tokens=4)
    seen = {}

    def is_right(index, text):
        seen[index] = text
        return index in (0, 3, 5)

    share, count = evaluation.exact_match(
        model, tokenizer, PROMPTS, is_right, max_new_tokens=4, batch_size=2
    )
    assert (share, count) == (0.5, 6)
    assert [seen[index] for index in range(6)] == answers  # each with its own index


def test_exact_match_of_a_trained_sum_ends_at_the_end_token():
    """A model that always says ``;`` then ``7`` then ends."""
    tokenizer = three_sums.build_tokenizer()
    model = tiny(tokenizer)
    nexts = {tokenizer.convert_tokens_to_ids(a): b for a, b in [("=", ";"), (";", "7")]}

    def forward_hook(module, args, kwargs, output):
        last = kwargs["input_ids"][:, -1].tolist()
        for row, token in enumerate(last):
            follower = nexts.get(token, "<end>")
            output.logits[row, -1, tokenizer.convert_tokens_to_ids(follower)] = 99

    model.register_forward_hook(forward_hook, with_kwargs=True)
    right = evaluation.exact_match(
        model,
        tokenizer,
        ["1+2+4=", "30+4="],
        lambda _, text: text == ";7",
        max_new_tokens=10,
    )
    assert right == (1.0, 2)


def test_no_prompts_is_an_error(sums):
    model, tokenizer = sums
    with pytest.raises(ValueError, match="prompts is empty"):
        evaluation.exact_match(model, tokenizer, [], lambda *_: True, max_new_tokens=1)
    assert evaluation.generate(model, tokenizer, [], max_new_tokens=1) == []


def test_the_record_cannot_be_changed(model, rows, bpe):
    found = evaluation.evaluate(model, rows, bpe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nll = 0.0
