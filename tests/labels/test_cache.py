"""Caches of soft labels: what is stored, what is trusted, what survives a kill."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny_models import byte_level_bpe, ragged_rows, random_rows, tiny
from training_runs import SGD, trainer, weights
from transformers import AutoModelForCausalLM
from versions import NEEDS_TIED_WEIGHTS_ON_DISK

from distill_helpers.data import DataError, collator_for, pack
from distill_helpers.labels.cache import SoftLabelCache
from distill_helpers.labels.cache_files import CacheError
from distill_helpers.labels.cache_writer import write_cache
from distill_helpers.labels.schemes import SCHEMES, Scheme
from distill_helpers.losses import Hidden, SparseTargets, soft_label_loss
from distill_helpers.models import load_model
from distill_helpers.tasks.prose import austen
from distill_helpers.tasks.teachers import prepare_packaged_teacher

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


@pytest.fixture(scope="module")
def teacher(bpe):
    model = tiny(bpe, seed=2).requires_grad_(False)
    model.lm_head.weight.mul_(3)  # sure of something, as a trained teacher is
    return model


def written(path, teacher, rows, bpe, **options):
    return write_cache(teacher, rows, path, tokenizer=bpe, progress=False, **options)


def content(path: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.iterdir())
        if file.name != ".lock"
    }


def logits_of(teacher, ids):
    with torch.no_grad():
        return teacher(input_ids=torch.tensor([ids])).logits[0].float()


# --- what is stored -----------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_of_each_scheme(scheme, bpe, teacher, tmp_path):
    """Exact for "full"; right on average for draws; off for good where k is cut."""
    rows = random_rows(6, 30, len(bpe))
    batch = collator_for(bpe)(list(rows))
    student = tiny(bpe, seed=1)
    hidden = student.model(batch["input_ids"]).last_hidden_state.detach()
    head = student.lm_head.weight
    logits = teacher(input_ids=batch["input_ids"]).logits
    exact = torch.autograd.grad(
        soft_label_loss(hidden @ head.T, logits, batch["labels"]).loss, head
    )[0]

    total = torch.zeros_like(exact)
    seeds = range(1 if scheme in ("full", "top_k", "tail_bucket") else 24)
    for seed in seeds:
        cache = written(
            tmp_path / str(seed), teacher, rows, bpe, scheme=scheme, seed=seed
        )
        targets = cache.lookup(batch["input_ids"], batch["attention_mask"])
        loss = soft_label_loss(Hidden(hidden, head), targets, batch["labels"]).loss
        total += torch.autograd.grad(loss, head)[0]
    error = float((total / len(seeds) - exact).norm() / exact.norm())
    low, high = {
        "full": (0, 2e-3),
        "top_k": (0.2, 2),
        "tail_bucket": (0.05, 1),
        "sampled": (0, 0.2),
        "hybrid": (0, 0.2),
    }[scheme]
    assert low <= error < high


def test_bytes_per_token_is_the_size_on_disk(bpe, teacher, tmp_path):
    rows = random_rows(64, 40, len(bpe))
    cache = written(tmp_path, teacher, rows, bpe)
    size = sum(f.stat().st_size for f in tmp_path.glob("shard-*"))
    assert cache.bytes_per_token == pytest.approx(size / (64 * 39))
    assert cache.bytes_per_token < cache.scheme.bytes_per_position + 2


def test_one_distribution_per_predicted_token(bpe, teacher, tmp_path):
    rows = ragged_rows(9, len(bpe))
    written(tmp_path, teacher, rows, bpe)
    header = json.loads((tmp_path / "cache.json").read_text())
    assert header["dataset"]["positions"] == sum(len(r) - 1 for r in rows["input_ids"])


# --- alignment ----------------------------------------------------------------------


def test_rows_are_found_in_any_order_and_padding(bpe, teacher, tmp_path):
    rows = ragged_rows(12, len(bpe), shortest=2, longest=20)
    cache = written(tmp_path, teacher, rows, bpe, scheme="full", batch_size=5)
    for order in ([3, 1, 2], [11, 0], list(range(11, -1, -1))):
        batch = collator_for(bpe)([rows[i] for i in order])
        found = cache.lookup(batch["input_ids"], batch["attention_mask"])
        for row, index in enumerate(order):
            ids = rows[index]["input_ids"]
            wanted = logits_of(teacher, ids)[:-1].log_softmax(-1)
            torch.testing.assert_close(
                found[row, : len(ids) - 1], wanted, rtol=0, atol=0.02
            )


def test_draws_do_not_depend_on_order_or_batches(bpe, teacher, tmp_path):
    rows = random_rows(10, 12, len(bpe))
    one = written(tmp_path / "a", teacher, rows, bpe, batch_size=4)
    two = written(tmp_path / "b", teacher, rows.select(range(9, -1, -1)), bpe)
    ids = torch.tensor(rows["input_ids"][:])
    a, b = one.lookup(ids), two.lookup(ids)
    counted = torch.arange(120) % 12 != 11
    same = (a.ids == b.ids)[counted].float().mean()
    assert same > 0.995  # a sum that rounds elsewhere may move a draw


def test_a_row_that_was_not_written_is_refused(bpe, teacher, tmp_path):
    rows = random_rows(4, 12, len(bpe))
    cache = written(tmp_path, teacher, rows, bpe)
    other = random_rows(1, 12, len(bpe), seed=9)
    with pytest.raises(CacheError, match="row 0 of the batch is not in the cache"):
        cache.lookup(torch.tensor(other["input_ids"][:]))
    with pytest.raises(CacheError, match="row 0 of the dataset"):
        SoftLabelCache.open(tmp_path, dataset=other)


# --- what is refused ----------------------------------------------------------------


def test_another_tokenizer_or_template_is_refused(bpe, teacher, tmp_path):
    written(tmp_path, teacher, random_rows(4, 12, len(bpe)), bpe)
    with pytest.raises(CacheError, match="another tokenizer"):
        SoftLabelCache.open(tmp_path, tokenizer=byte_level_bpe(299))
    changed = byte_level_bpe()
    changed.chat_template = "{{ messages }}"
    with pytest.raises(CacheError, match="another chat template"):
        SoftLabelCache.open(tmp_path, tokenizer=changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "tail_bucket"}, "scheme="),
        ({"top_k": 4}, "scheme="),
        ({"temperature": 2.0}, "temperature=1.0"),
        ({"seed": 1}, "seed=0"),
        ({"batch_size": 3}, "batch_size=8"),
    ],
)
def test_resuming_with_other_options_is_refused(
    change, message, bpe, teacher, tmp_path
):
    rows = random_rows(4, 12, len(bpe))
    written(tmp_path, teacher, rows, bpe)
    with pytest.raises(CacheError, match=message):
        written(tmp_path, teacher, rows, bpe, **change)
    written(tmp_path, teacher, rows, bpe, resume=False, **change)


def test_resuming_with_another_teacher_or_order_is_refused(bpe, teacher, tmp_path):
    rows = random_rows(4, 12, len(bpe))
    written(tmp_path, teacher, rows, bpe)
    with pytest.raises(CacheError, match="teacher="):
        written(tmp_path, tiny(bpe, seed=3), rows, bpe)
    with pytest.raises(CacheError, match="dataset="):
        written(tmp_path, teacher, rows.select([1, 0, 2, 3]), bpe)


def test_a_damaged_or_missing_shard_is_named(bpe, teacher, tmp_path):
    written(tmp_path, teacher, random_rows(4, 12, len(bpe)), bpe)
    shard = tmp_path / "shard-00000.safetensors"
    good = shard.read_bytes()
    flipped = bytearray(good)
    flipped[-3] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(CacheError, match=r"shard-00000.* is damaged"):
        SoftLabelCache.open(tmp_path)
    shard.write_bytes(good[:-1])
    with pytest.raises(CacheError, match="bytes instead of"):
        SoftLabelCache.open(tmp_path)
    shard.unlink()
    with pytest.raises(CacheError, match="is missing"):
        SoftLabelCache.open(tmp_path)


def test_a_wrong_count_of_positions_is_refused(bpe, teacher, tmp_path):
    written(tmp_path, teacher, random_rows(4, 12, len(bpe)), bpe)
    file = tmp_path / "cache.json"
    header = json.loads(file.read_text())
    header["dataset"]["positions"] += 4  # as if L distributions had been meant
    file.write_text(json.dumps(header))
    with pytest.raises(CacheError, match="has L - 1; delete the folder"):
        SoftLabelCache.open(tmp_path)


def test_what_is_no_cache_is_refused(tmp_path):
    with pytest.raises(CacheError, match="holds no soft-label cache"):
        SoftLabelCache.open(tmp_path)
    for data, message in [
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b'{"format": 0}', "has format 0"),
    ]:
        (tmp_path / "cache.json").write_bytes(data)
        # Writing again would only read it again.
        with pytest.raises(CacheError, match=f"{message}.* delete the folder"):
            SoftLabelCache.open(tmp_path)


def test_verify_finds_another_teacher_and_a_shifted_cache(bpe, teacher, tmp_path):
    rows = random_rows(6, 20, len(bpe))
    cache = written(tmp_path, teacher, rows, bpe)
    found = cache.verify(teacher, rows.select([1, 4]), tokenizer=bpe)
    assert (found.rows, found.positions) == (2, 38)
    assert found.largest_gap < 1e-3
    with pytest.raises(CacheError, match="other weights"):
        cache.verify(tiny(bpe, seed=5), rows, tokenizer=bpe)

    from safetensors.numpy import load_file, save_file

    shard = tmp_path / "shard-00000.safetensors"
    columns = load_file(shard)
    columns["entropy"] = np.roll(columns["entropy"], 1)
    save_file(columns, shard)
    shifted = SoftLabelCache(tmp_path, cache.header)
    with pytest.raises(CacheError, match=r"one position too (later|earlier)"):
        shifted.verify(teacher, rows, tokenizer=bpe)


def test_verify_bears_what_half_precision_rounds_otherwise(tmp_path):
    """Another kernel reads the same weights: single positions move, and draws."""
    model, tokenizer = load_model(
        prepare_packaged_teacher(), dtype=torch.bfloat16, frozen=True
    )
    rows = pack(austen("test"), tokenizer, 64).select(range(3))
    cache = write_cache(model, rows, tmp_path, tokenizer=tokenizer, progress=False)
    model.set_attn_implementation("eager")
    assert cache.verify(model, rows, tokenizer=tokenizer).largest_gap > 0.05
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += 0.05 * weight.std() * noise.to(weight.dtype)
    with pytest.raises(CacheError, match="other weights"):
        cache.verify(model, rows.select([0]), tokenizer=tokenizer)


def test_verify_reads_in_eval_mode_and_passes_over_single_tokens(
    bpe, teacher, tmp_path
):
    rows = Dataset.from_list(
        [{"input_ids": [5]}, *random_rows(3, 20, len(bpe)).select_columns("input_ids")]
    )
    cache = written(tmp_path, teacher, rows, bpe)
    noisy = copy.deepcopy(teacher)
    for layer in noisy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    found = cache.verify(noisy.train(), rows, tokenizer=bpe)
    assert noisy.training
    assert found.rows == 3
    assert found.largest_gap < 1e-3


def test_a_gap_that_is_no_number_does_not_pass(bpe, teacher, tmp_path):
    from safetensors.numpy import load_file, save_file

    rows = random_rows(3, 20, len(bpe))
    cache = written(tmp_path, teacher, rows, bpe)
    shard = tmp_path / "shard-00000.safetensors"
    columns = load_file(shard)
    columns["entropy"][7] = np.nan
    save_file(columns, shard)
    with pytest.raises(CacheError, match="is not of this teacher"):
        SoftLabelCache(tmp_path, cache.header).verify(teacher, rows, tokenizer=bpe)


class RulesOut(torch.nn.Module):
    """A teacher that forbids one token, as suppressed tokens are."""

    def __init__(self, teacher, token, value):
        super().__init__()
        self.inner, self.token, self.value = teacher, token, value
        self.config, self.dtype = teacher.config, teacher.dtype
        self.name_or_path = "rules-out"

    def forward(self, **inputs):
        found = self.inner(**inputs)
        found.logits[..., self.token] = self.value
        return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_token_that_is_ruled_out_has_no_share_in_the_entropy(
    scheme, bpe, teacher, tmp_path
):
    rows = random_rows(3, 12, len(bpe))
    forbids = RulesOut(teacher, 7, -torch.inf)
    cache = written(tmp_path, forbids, rows, bpe, scheme=scheme)
    ids = rows[0]["input_ids"]
    logits = logits_of(teacher, ids)[:-1]
    logits[:, 7] = -torch.inf
    wanted = torch.distributions.Categorical(logits=logits).entropy()
    place = cache._shards[0].get_tensor("entropy")[: len(ids) - 1]
    torch.testing.assert_close(torch.from_numpy(place), wanted, rtol=0, atol=1e-5)
    assert cache.verify(forbids, rows, tokenizer=bpe).largest_gap < 1e-4


def test_logits_that_are_no_numbers_are_not_stored(bpe, teacher, tmp_path):
    forbids = RulesOut(teacher, 7, torch.nan)
    with pytest.raises(ValueError, match="the teacher's logits hold NaN"):
        written(tmp_path, forbids, random_rows(3, 12, len(bpe)), bpe)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("scheme", ["hybrid", "full"])
def test_outputs_that_only_pad_a_head_are_left_out(
    scheme, plain, bpe, teacher, tmp_path
):
    """So that a student whose head is padded less can learn from the same cache."""
    wide = copy.deepcopy(teacher)
    wide.resize_token_embeddings(len(bpe) + 24)
    with torch.no_grad():
        wide.lm_head.weight[len(bpe) :] = wide.lm_head.weight[:24]
    if not plain:
        wide = RulesOut(wide, 7, 0.0)
    rows = random_rows(4, 12, len(bpe))
    cache = written(tmp_path, wide, rows, bpe, scheme=scheme)
    assert cache.vocabulary == len(bpe)
    ids = rows[0]["input_ids"]
    if plain:
        logits = logits_of(wide, ids)[:-1, : len(bpe)]
        wanted = torch.distributions.Categorical(logits=logits).entropy()
        place = cache._shards[0].get_tensor("entropy")[: len(ids) - 1]
        torch.testing.assert_close(torch.from_numpy(place), wanted, rtol=0, atol=1e-5)
    made = trainer(teacher=cache, rows=rows, steps=1, objective={"temperature": 1.0})
    made.train()
    assert made.state.global_step == 1


def test_rows_that_cannot_be_stored(bpe, teacher, tmp_path):
    packed = {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": [0, 1, 0]}
    with pytest.raises(ValueError, match="rows come from pack_examples"):
        written(tmp_path, teacher, Dataset.from_list([packed]), bpe)
    padded = {"input_ids": [1, 2, 3, 0], "attention_mask": [1, 1, 1, 0]}
    with pytest.raises(DataError, match="rows are padded"):
        written(tmp_path, teacher, Dataset.from_list([padded]), bpe)


def test_a_kill_costs_a_part_of_any_cache(bpe, teacher, tmp_path):
    """Small ones are cut into shards as well."""
    rows = random_rows(600, 30, len(bpe))
    cache = written(tmp_path / "a", teacher, rows, bpe, scheme="full", batch_size=20)
    assert len(cache.header["shards"]) > 5
    # And a cache that was cut otherwise is the same cache.
    some = {"scheme": "full", "batch_size": 20, "shard_bytes": 40_000}
    again = written(tmp_path / "a", teacher, rows, bpe, **some)
    assert again.header == cache.header


def test_rows_of_another_tokenizer_are_not_stored(bpe, teacher, tmp_path):
    rows = Dataset.from_list([{"input_ids": [1, 2, len(bpe)]}])
    with pytest.raises(ValueError, match="were they made with another tokenizer"):
        written(tmp_path, teacher, rows, bpe)


def test_options_out_of_range(bpe, teacher, tmp_path):
    rows = random_rows(2, 6, len(bpe))
    for change, message in [
        ({"scheme": "best"}, "scheme='best'"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 300}, "top_k=300"),
        ({"samples": 0}, "samples=0"),
        ({"temperature": 0}, "temperature=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            written(tmp_path, teacher, rows, bpe, **change)
    with pytest.raises(ValueError, match="needs input_ids"):
        written(tmp_path, teacher, Dataset.from_dict({"text": ["a"]}), bpe)
    with pytest.raises(ValueError, match="no row of two tokens"):
        written(tmp_path, teacher, Dataset.from_dict({"input_ids": [[1]]}), bpe)


def test_too_small_a_disk_is_said_before_the_work(bpe, teacher, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(CacheError, match="GB free; choose another scheme"):
        written(tmp_path, teacher, random_rows(4, 12, len(bpe)), bpe)


# --- interruption -------------------------------------------------------------------

WRITE = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tiny_models import byte_level_bpe, ragged_rows, tiny
from distill_helpers.labels.cache_writer import write_cache
bpe = byte_level_bpe()
print("ready", flush=True)
write_cache(
    tiny(bpe, seed=2), ragged_rows(400, len(bpe), longest=40), sys.argv[1],
    tokenizer=bpe, shard_bytes=20_000, batch_size=4, progress=False,
)
"""


def _writer(path):
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), str(TESTS)],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def write_whole(path):
    with _writer(path) as process:
        assert process.wait() == 0


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(tmp_path):
    whole = tmp_path / "whole"
    write_whole(whole)
    files = len(content(whole))
    assert files > 5
    cut = tmp_path / "cut"
    # By progress, not by the clock: how far a writer gets in a time depends on the day.
    for share in (0.1, 0.4, 0.4, 0.8):
        process = _writer(cut)
        process.stdout.readline()
        while len(list(cut.glob("*"))) < share * files:
            assert process.poll() is None, "it was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with pytest.raises(CacheError, match=r"unfinished|no soft-label cache"):
        SoftLabelCache.open(cut)
    write_whole(cut)
    assert content(cut) == content(whole)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("left", [None, 100])
def test_a_shard_that_is_lost_is_written_again(finished, left, bpe, teacher, tmp_path):
    """As where a folder on a Drive kept its header, and not all of its files."""
    rows = ragged_rows(40, len(bpe))
    options = {"batch_size": 4, "shard_bytes": 1}
    whole = written(tmp_path / "whole", teacher, rows, bpe, **options)
    assert len(whole.header["shards"]) == 10
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    if not finished:
        header = whole.header | {"complete": False}
        header["shards"] = header["shards"][:7]
        (cut / "cache.json").write_text(json.dumps(header))
    lost = cut / "shard-00004.safetensors"
    if left is None:
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:left])
    written(cut, teacher, rows, bpe, **options)
    assert content(cut) == content(tmp_path / "whole")


def test_two_writers_do_not_meet(bpe, teacher, tmp_path):
    from filelock import FileLock

    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(CacheError, match="another process is writing"),
    ):
        written(tmp_path, teacher, random_rows(2, 6, len(bpe)), bpe)


def test_a_finished_cache_is_returned_at_once(bpe, teacher, tmp_path):
    rows = random_rows(4, 12, len(bpe))
    written(tmp_path, teacher, rows, bpe)
    before = content(tmp_path)
    broken = copy.deepcopy(teacher)
    broken.forward = None  # would fail if it were called
    written(tmp_path, broken, rows, bpe)
    assert content(tmp_path) == before


# --- training -----------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_training_from_a_full_cache_equals_the_live_teacher(
    alpha, bpe, teacher, tmp_path
):
    rows = ragged_rows(24, len(bpe))
    cache = written(tmp_path, teacher, rows, bpe, scheme="full", temperature=2.0)
    objective = {"alpha": alpha, "temperature": 2.0}
    live = trainer(rows=rows, teacher=teacher, objective=objective, **SGD)
    live.train()
    stored = trainer(rows=rows, teacher=cache, objective=objective, **SGD)
    stored.train()
    start = weights(tiny(bpe, seed=1))
    moved = weights(live.model) - start
    # fp16 rounds a log-probability of -8 to a four-thousandth.
    error = (weights(stored.model) - weights(live.model)).norm() / moved.norm()
    assert error < 0.01


@pytest.mark.parametrize("scheme", ["hybrid", "tail_bucket"])
def test_a_head_that_is_not_plain_learns_the_same(scheme, bpe, teacher, tmp_path):
    rows = ragged_rows(24, len(bpe))
    cache = written(tmp_path, teacher, rows, bpe, scheme=scheme)
    found = []
    for fused in (True, False):
        objective = {"alpha": 0.7, "temperature": 1.0, "fused": fused}
        made = trainer(rows=rows, teacher=cache, objective=objective, **SGD)
        made.train()
        found.append(weights(made.model))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_what_a_cache_cannot_serve_is_refused(bpe, teacher, tmp_path):
    cache = written(tmp_path, teacher, random_rows(4, 12, len(bpe)), bpe)
    with pytest.raises(ValueError, match=r"taken at 1\.0"):
        trainer(teacher=cache, objective={"temperature": 2.0})
    with pytest.raises(ValueError, match="only 'forward_kl'"):
        trainer(
            teacher=cache, objective={"temperature": 1.0, "divergence": "reverse_kl"}
        )


def test_value_equals_the_full_loss_on_average(bpe, teacher, tmp_path):
    rows = random_rows(40, 40, len(bpe))
    cache = written(tmp_path, teacher, rows, bpe)
    batch = collator_for(bpe)(list(rows))
    student = tiny(bpe, seed=1)
    with torch.no_grad():
        hidden = student.model(batch["input_ids"]).last_hidden_state
        logits = teacher(input_ids=batch["input_ids"]).logits
        targets = cache.lookup(batch["input_ids"])
        assert isinstance(targets, SparseTargets)
        head = student.lm_head.weight
        ours = soft_label_loss(Hidden(hidden, head), targets, batch["labels"])
        full = soft_label_loss(hidden @ head.T, logits, batch["labels"])
    assert float(ours.soft) == pytest.approx(float(full.soft), rel=0.03)


def test_scheme_is_kept_with_the_cache(bpe, teacher, tmp_path):
    cache = written(tmp_path, teacher, random_rows(2, 6, len(bpe)), bpe, samples=5)
    assert cache.scheme == Scheme("hybrid", 8, 5, len(bpe))


# --- teachers and rows of other kinds -----------------------------------------------


def test_a_stream_is_refused_with_a_way_on(bpe, teacher, tmp_path):
    rows = random_rows(4, 8, len(bpe))
    unknown = IterableDataset.from_generator(lambda: iter(list(rows)))
    for stream in (unknown, rows.to_iterable_dataset()):
        with pytest.raises(
            ValueError, match=r"dataset is a stream .*Dataset\.from_list"
        ):
            written(tmp_path / "cache", teacher, stream, bpe)
    as_it_says = Dataset.from_list(list(unknown))
    assert written(tmp_path / "cache", teacher, as_it_says, bpe).header["complete"]


@NEEDS_TIED_WEIGHTS_ON_DISK
def test_a_dispatched_teacher_is_read_where_it_is(bpe, tmp_path):
    tiny(bpe, seed=2).save_pretrained(tmp_path / "model")
    load = AutoModelForCausalLM.from_pretrained
    rows = random_rows(4, 8, len(bpe))
    whole = written(tmp_path / "a", load(tmp_path / "model"), rows, bpe, scheme="full")
    for number, first in enumerate(("cpu", "disk")):
        places = {"model.embed_tokens": first, "lm_head": first}
        places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
        places |= {"model.norm": "cpu", "model.rotary_emb": "cpu"}
        spread = load(
            tmp_path / "model",
            device_map=places,
            offload_folder=str(tmp_path / f"disk{number}"),
        )
        found = written(tmp_path / f"b{number}", spread, rows, bpe, scheme="full")
        ids = torch.tensor(rows["input_ids"])
        assert torch.equal(found.lookup(ids), whole.lookup(ids))
        # The same weights elsewhere are the same teacher.
        assert found.header["teacher"]["weights"] == whole.header["teacher"]["weights"]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_a_quantised_teacher_is_another_teacher(dtype, bpe, teacher, tmp_path):
    rows = random_rows(4, 8, len(bpe))
    smaller = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(teacher), {torch.nn.Linear}, dtype=dtype
    )
    found = written(tmp_path / "small", smaller, rows, bpe, scheme="full")
    ids = torch.tensor(rows["input_ids"])
    with torch.no_grad():  # in one batch, for its largest number sets the scale
        expected = smaller(input_ids=ids).logits.log_softmax(-1)
    assert (found.lookup(ids) - expected)[:, :-1].abs().max() < 2e-2
    with pytest.raises(CacheError, match="holds a cache with teacher="):
        written(tmp_path / "small", teacher, rows, bpe, scheme="full")


def test_a_teacher_whose_last_rows_were_trained_is_another_teacher(
    bpe, teacher, tmp_path
):
    rows = random_rows(4, 8, len(bpe))
    written(tmp_path / "cache", teacher, rows, bpe)
    after = copy.deepcopy(teacher)
    after.model.embed_tokens.weight[-1] += 0.1
    with pytest.raises(CacheError, match="holds a cache with teacher="):
        written(tmp_path / "cache", after, rows, bpe)
