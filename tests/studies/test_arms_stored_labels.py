"""What the arms of ``stored_labels`` and ``reused_draws`` learn from."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from watched_training import PLAIN, run_of, same_rows, settings_of, watching

from distill_helpers.labels import scheme_for
from distill_helpers.models import build_student, weights_hash
from distill_helpers.studies import reused_draws, soft_labels, stored_labels
from distill_helpers.tasks.teachers import load_tiny_teacher

# Arm: scheme, tokens kept, draws, and the bytes a token in docs/results.md.
STORED = {
    "top-12": ("top_k", 12, 0, 52),
    "tail bucket of 16": ("tail_bucket", 16, 0, 68),
    "50 draws": ("sampled", 0, 50, 104),
    "hybrid 4 + 12": ("hybrid", 4, 12, 44),
    "hybrid 8 + 24": ("hybrid", 8, 24, 84),
}
LIVE = {"labels": 0, "full": 98_308}
# Fewer sequences than the study has: the teacher has less to store.
FEW = "32"


@pytest.fixture(scope="module")
def teacher_hash():
    return weights_hash(load_tiny_teacher("prose").model)


@pytest.fixture(scope="module")
def ran(pair):
    """One step of an arm of ``stored_labels``: its only training, and its row."""

    @lru_cache
    def run(arm):
        with pytest.MonkeyPatch.context() as patch, watching() as trainings:
            patch.setattr(stored_labels, "load_pair", lambda: pair)
            row = stored_labels.STUDY.run(run_of(arm, FEW))
        (training,) = trainings
        return training, row

    return run


def test_every_arm_of_the_table_is_held_here():
    assert {*STORED, *LIVE} == {*stored_labels.STUDY.arms}
    assert stored_labels.STUDY.settings == ("800",)
    assert {"full", "12 draws", "hybrid 8 + 24"} == {*reused_draws.STUDY.arms}


@pytest.mark.parametrize("arm", stored_labels.STUDY.arms)
def test_student_rows_and_steps_are_those_of_soft_labels(arm, ran, pair):
    training, _ = ran(arm)
    assert training.settings == settings_of(300, 16)
    assert same_rows(training.rows, pair.train.shuffle(seed=3).select(range(int(FEW))))
    student = build_student(pair.tokenizer, layers=2, width=96, seed=3)
    assert training.begins == weights_hash(student)


@pytest.mark.parametrize("arm", STORED)
def test_stored_arms_learn_what_their_name_says_was_kept(arm, ran, pair, teacher_hash):
    training, _ = ran(arm)
    assert training.kind == "SoftLabelTrainer"
    assert training.options == PLAIN
    assert training.teacher is None, "a live teacher beside the stored labels"
    name, top_k, samples, _ = STORED[arm]
    header = training.store.header
    assert header["scheme"] == {
        "name": name,
        "top_k": top_k,
        "samples": samples,
        "vocabulary": len(pair.tokenizer),
    }
    assert header["teacher"]["weights"] == teacher_hash
    assert (header["temperature"], header["seed"]) == (1.0, 3)
    assert header["dataset"]["positions"] == int(FEW) * 63


def test_the_arms_that_store_nothing(ran, teacher_hash):
    training, _ = ran("labels")
    assert training.kind == "HardLabelTrainer"
    training, _ = ran("full")
    assert training.kind == "SoftLabelTrainer"
    assert training.options == PLAIN
    assert training.teacher == teacher_hash


@pytest.mark.parametrize("arm", stored_labels.STUDY.arms)
def test_bytes_are_those_that_are_written(arm, ran, pair):
    training, row = ran(arm)
    published = LIVE[arm] if arm in LIVE else STORED[arm][3]
    assert row["bytes_per_token_real"] == published
    if arm in STORED:
        # What lay on the disk, with headers and an index of a few rows.
        assert row["bytes_per_token"] == pytest.approx(
            training.store.bytes_per_token, abs=2
        )
    elif arm == "full":
        whole = scheme_for("full", len(pair.tokenizer))
        assert row["bytes_per_token"] == whole.bytes_per_position
    else:
        assert row["bytes_per_token"] == 0


@pytest.fixture(scope="module")
def read_again(pair):
    """A smaller ``reused_draws``: 3 epochs of 4 steps of 4 rows, lookups watched.

    Gives the training, the caches that were read, one a step, and all batches.
    """

    @lru_cache
    def run(arm, setting):
        caches, batches = [], []
        real = stored_labels.SoftLabelCache.lookup

        def lookup(self, input_ids, attention_mask=None):
            caches.append(self)
            batches.append(input_ids.clone())
            return real(self, input_ids, attention_mask)

        with pytest.MonkeyPatch.context() as patch, watching(12) as trainings:
            patch.setattr(reused_draws, "load_pair", lambda: pair)
            patch.setattr(reused_draws, "STEPS", 12)
            patch.setattr(reused_draws, "BATCH_SIZE", 4)
            patch.setattr(soft_labels, "BATCH_SIZE", 4)
            patch.setattr(reused_draws, "EPOCHS", 3)
            patch.setattr(stored_labels.SoftLabelCache, "lookup", lookup)
            reused_draws.STUDY.run(run_of(arm, setting))
        (training,) = trainings
        return training, caches, batches

    return run


def test_what_reused_draws_are_in_full_size():
    """Twelve epochs of 400 rows are as many steps as one of 4,800."""
    assert reused_draws.EPOCHS == 12
    assert (reused_draws.STEPS, reused_draws.BATCH_SIZE) == (300, 16)
    assert reused_draws.STORED["12 draws"] == {"scheme": "sampled", "samples": 12}
    assert reused_draws.STORED["hybrid 8 + 24"] == {
        "scheme": "hybrid",
        "top_k": 8,
        "samples": 24,
    }


@pytest.mark.parametrize("setting", reused_draws.STUDY.settings)
@pytest.mark.parametrize("arm", reused_draws.STUDY.arms)
def test_rows_come_once_or_again_and_again(arm, setting, read_again, pair):
    training, caches, batches = read_again(arm, setting)
    assert training.settings == settings_of(300, 4)
    count = 48 if setting == "1 epoch" else 16
    assert same_rows(training.rows, pair.train.shuffle(seed=3).select(range(count)))
    assert training.kind == "SoftLabelTrainer"
    assert training.options == PLAIN
    if arm == "full":
        assert not caches
        return
    assert len(batches) == 12
    seen = [tuple(ids) for batch in batches for ids in batch.tolist()]
    assert len(set(seen)) == count
    # An epoch is whole before the next begins.
    assert set(seen[:count]) == set(seen)


@pytest.mark.parametrize("setting", reused_draws.STUDY.settings)
@pytest.mark.parametrize("arm", ["12 draws", "hybrid 8 + 24"])
def test_draws_are_new_in_every_epoch_or_stay(arm, setting, read_again, teacher_hash):
    _, caches, _ = read_again(arm, setting)
    fresh = setting == "12 epochs, fresh draws"
    numbers = [list(dict.fromkeys(map(id, caches))).index(id(one)) for one in caches]
    assert numbers == ([0] * 4 + [1] * 4 + [2] * 4 if fresh else [0] * 12)
    kept = {"12 draws": (0, 12), "hybrid 8 + 24": (8, 24)}[arm]
    for cache in caches[::4]:
        scheme = cache.header["scheme"]
        assert (scheme["top_k"], scheme["samples"]) == kept
        assert cache.header["teacher"]["weights"] == teacher_hash
    seeds = {cache.header["seed"] for cache in caches}
    assert len(seeds) == (3 if fresh else 1)


def test_other_seeds_draw_other_tokens(pair, tmp_path):
    """Else new draws in every epoch would be the old ones."""
    rows = pair.train.select(range(2))
    ids = torch.tensor(rows["input_ids"][:])
    drawn = [
        stored_labels.store(
            pair, rows, tmp_path / str(seed), reused_draws.STORED["12 draws"], seed
        )
        .lookup(ids)
        .ids
        for seed in (36, 37)
    ]
    assert (drawn[0] != drawn[1]).float().mean() > 0.3


def test_the_full_distribution_has_nothing_to_draw(read_again, teacher_hash):
    for setting in reused_draws.STUDY.settings:
        training, _, _ = read_again("full", setting)
        assert training.teacher == teacher_hash
