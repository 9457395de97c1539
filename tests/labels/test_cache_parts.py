"""Caches in parts: what several processes write is what one writes, byte for byte."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil

import pytest
from filelock import FileLock
from tiny_models import byte_level_bpe, ragged_rows, tiny

from distill_helpers.labels import CacheError, SoftLabelCache, merge_cache, write_cache


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


@pytest.fixture(scope="module")
def teacher(bpe):
    return tiny(bpe, seed=2).requires_grad_(False)


@pytest.fixture(scope="module")
def rows(bpe):
    return ragged_rows(42, len(bpe), shortest=2, longest=20)


@pytest.fixture(scope="module", params=["hybrid", "sampled"])
def whole(request, bpe, teacher, rows, tmp_path_factory):
    """The cache of one process: eleven shards of four rows, the last one shorter."""
    path = tmp_path_factory.mktemp("whole")
    cache = written(path, teacher, rows, bpe, scheme=request.param)
    assert [shard["rows"] for shard in cache.header["shards"]] == [4] * 10 + [2]
    return path


def written(path, teacher, rows, bpe, **options):
    small = {"batch_size": 4, "shard_bytes": 1, "progress": False}
    return write_cache(teacher, rows, path, tokenizer=bpe, **(small | options))


def scheme_of(path):
    return json.loads((path / "cache.json").read_text())["scheme"]["name"]


def content(path):
    """Every file below a folder, whatever its name, except for locks."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def in_parts(path, teacher, rows, bpe, order, count, **options):
    for index in order:
        written(path, teacher, rows, bpe, part=(index, count), **options)


def broken(teacher):
    """The same weights; fails if it is called."""
    found = copy.deepcopy(teacher)
    found.forward = None
    return found


# --- the same bytes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "count"), [((0,), 1), ((2, 0, 1), 3), (range(16), 16)]
)
def test_parts_are_joined_to_the_bytes_of_one_process(
    order, count, whole, bpe, teacher, rows, tmp_path
):
    in_parts(tmp_path, teacher, rows, bpe, order, count, scheme=scheme_of(whole))
    assert not (tmp_path / "cache.json").exists()
    cache = merge_cache(tmp_path)
    assert content(tmp_path) == content(whole)
    assert not list(tmp_path.glob("part-*"))
    assert cache.verify(teacher, rows, tokenizer=bpe).rows == 42


def test_a_part_is_a_folder_that_can_be_carried(bpe, teacher, rows, tmp_path):
    """Written where the others are not, and copied: machines that share no disk."""
    one = written(tmp_path / "one", teacher, rows, bpe)
    folders = [
        written(tmp_path / name, teacher, rows, bpe, part=(index, 2))
        for index, name in enumerate("ab")
    ]
    for folder in folders:
        shutil.copytree(folder, tmp_path / "all" / folder.name)
    assert len(list(folders[0].glob("shard-*"))) == 6
    assert len(list(folders[1].glob("shard-*"))) == 5
    merge_cache(tmp_path / "all")
    assert content(tmp_path / "all") == content(one.path)


def test_merging_again_changes_nothing(bpe, teacher, rows, tmp_path):
    in_parts(tmp_path, teacher, rows, bpe, range(2), 2)
    merge_cache(tmp_path)
    before = content(tmp_path)
    merge_cache(tmp_path)
    # Nor does a part, or the whole, that is asked for once more; no row is read.
    in_parts(tmp_path, broken(teacher), rows, bpe, range(2), 2)
    written(tmp_path, broken(teacher), rows, bpe)
    assert content(tmp_path) == before


# --- interruption -------------------------------------------------------------------


class Kill(Exception):
    """Ends a writer in the middle."""


def cut_short(teacher, after):
    """The same weights; gives up after some batches."""
    found, calls = copy.deepcopy(teacher), []
    real = found.forward

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise Kill
        return real(*args, **kwargs)

    found.forward = forward
    return found


@pytest.mark.parametrize("then", [1, 2, 3])
def test_another_count_of_parts_goes_on_with_what_is_there(
    then, bpe, teacher, rows, tmp_path
):
    one = written(tmp_path / "one", teacher, rows, bpe)
    cut = tmp_path / "cut"
    written(cut, teacher, rows, bpe, part=(0, 2))  # six shards, finished
    with pytest.raises(Kill):
        written(cut, cut_short(teacher, 4), rows, bpe, part=(1, 2))
    there = {file.name for file in cut.glob("part-1-of-2/shard-*")}
    assert 1 <= len(there) < 5
    read = [shard for shard in range(11) if shard % 2]
    if then == 1:
        written(cut, teacher, rows, bpe)
    else:
        in_parts(cut, teacher, rows, bpe, range(then), then)
        written_anew = [
            file.name
            for count in range(then)
            for file in cut.glob(f"part-{count}-of-{then}/shard-*")
        ]
        if then != 2:
            assert len(written_anew) == len(read) - len(there)
            assert there.isdisjoint(written_anew)
        merge_cache(cut)
    assert content(cut) == content(one.path)


def test_one_process_takes_over_all_that_parts_have(bpe, teacher, rows, tmp_path):
    one = written(tmp_path / "one", teacher, rows, bpe)
    cut = tmp_path / "cut"
    in_parts(cut, teacher, rows, bpe, range(3), 3)
    written(cut, broken(teacher), rows, bpe)
    assert content(cut) == content(one.path)


@pytest.mark.parametrize("moved", [0, 5, 9])
def test_a_merge_that_is_killed_goes_on(moved, bpe, teacher, rows, tmp_path):
    """After some files were moved, and before or after the header was written."""
    one = written(tmp_path / "one", teacher, rows, bpe)
    cut = tmp_path / "cut"
    in_parts(cut, teacher, rows, bpe, range(2), 2)
    files = sorted(cut.glob("part-*/shard-*"), key=lambda file: file.name)
    for file in files[:moved]:
        file.replace(cut / file.name)
    if moved == 9:  # somebody starts a part once more before merging again
        written(cut, broken(teacher), rows, bpe, part=(1, 2))
    merge_cache(cut)
    assert content(cut) == content(one.path)


# --- what is refused ----------------------------------------------------------------


def test_the_part_that_is_missing_is_named(bpe, teacher, rows, tmp_path):
    in_parts(tmp_path, teacher, rows, bpe, (0, 2, 3), 5)
    with pytest.raises(CacheError, match=r"4 of 11 shards are missing.* part 1/5, 4/5"):
        merge_cache(tmp_path)
    (tmp_path / "part-2-of-5" / "shard-00007.safetensors").unlink()
    in_parts(tmp_path, teacher, rows, bpe, (1, 4), 5)
    with pytest.raises(CacheError, match=r"1 of 11 shards are missing.* part 2/5"):
        merge_cache(tmp_path)
    with pytest.raises(CacheError, match=r"holds parts .*--merge"):
        SoftLabelCache.open(tmp_path)
    with pytest.raises(CacheError, match="is a part of a cache"):
        SoftLabelCache.open(tmp_path / "part-0-of-5")
    # As the message says.
    in_parts(tmp_path, teacher, rows, bpe, (2,), 5)
    merge_cache(tmp_path)


def test_a_damaged_part_is_named_and_nothing_is_moved(bpe, teacher, rows, tmp_path):
    in_parts(tmp_path, teacher, rows, bpe, range(2), 2)
    shard = tmp_path / "part-1-of-2" / "shard-00003.safetensors"
    flipped = bytearray(shard.read_bytes())
    flipped[-3] ^= 1
    shard.write_bytes(flipped)
    before = content(tmp_path)
    # One process, which takes parts over, looks as well.
    for joining in (
        merge_cache,
        lambda path: written(path, broken(teacher), rows, bpe),
    ):
        with pytest.raises(CacheError, match=r"part-1-of-2.shard-00003.* is damaged"):
            joining(tmp_path)
        assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"temperature": 2.0}, "temperature"),
        ({"seed": 1}, "seed"),
        ({"scheme": "sampled"}, "scheme"),
        ({"teacher": 3}, "teacher"),
        ({"rows": 1}, "dataset"),
    ],
)
def test_parts_of_different_caches(change, name, bpe, teacher, rows, tmp_path):
    options = change | {"part": (1, 2)}
    seed = options.pop("teacher", None)
    other = teacher if seed is None else tiny(bpe, seed=seed)
    text = rows.select(range(1, 42)) if options.pop("rows", None) else rows
    written(tmp_path, teacher, rows, bpe, part=(0, 2))
    with pytest.raises(CacheError, match=rf"part-0-of-2 holds a cache with {name}="):
        written(tmp_path, other, text, bpe, **options)
    # Written elsewhere, and copied.
    found = written(tmp_path / "elsewhere", other, text, bpe, **options)
    shutil.copytree(found, tmp_path / found.name, dirs_exist_ok=True)
    with pytest.raises(CacheError, match=rf"part-1-of-2 has {name}=.*not of one cache"):
        merge_cache(tmp_path)


def test_rows_of_another_order_are_found_by_what_is_stored(
    bpe, teacher, rows, tmp_path
):
    """Headers agree, and a file is there twice, as if it had been copied wrongly."""
    in_parts(tmp_path, teacher, rows, bpe, range(2), 2)
    folder = tmp_path / "part-0-of-2"
    header = json.loads((folder / "cache.json").read_text())
    first, second = header["shards"][:2]
    shutil.copy(folder / first["file"], folder / second["file"])
    header["shards"][1] = first | {"file": second["file"]}
    (folder / "cache.json").write_text(json.dumps(header))
    with pytest.raises(CacheError, match="rows in the shards are not those"):
        merge_cache(tmp_path)


def test_parts_that_are_being_written_are_left_alone(bpe, teacher, rows, tmp_path):
    in_parts(tmp_path, teacher, rows, bpe, range(2), 2)
    before = content(tmp_path)
    with FileLock(tmp_path / "part-1-of-2" / ".lock"):
        for joining in (
            merge_cache,
            lambda path: written(path, teacher, rows, bpe),
            lambda path: written(path, teacher, rows, bpe, resume=False),
            lambda path: written(path, teacher, rows, bpe, part=(1, 2)),
        ):
            with pytest.raises(CacheError, match=r"is writing to .*part-1-of-2"):
                joining(tmp_path)
            assert content(tmp_path) == before
        # Another part does not wait for it.
        written(tmp_path, teacher, rows, bpe, part=(0, 2))


def test_beginning_anew(bpe, teacher, rows, tmp_path):
    one = written(tmp_path / "one", teacher, rows, bpe, seed=1)
    both = tmp_path / "both"
    in_parts(both, teacher, rows, bpe, range(2), 2)
    in_parts(both, teacher, rows, bpe, range(2), 2, seed=1, resume=False)
    merge_cache(both)
    assert content(both) == content(one.path)
    in_parts(tmp_path / "old", teacher, rows, bpe, range(2), 2)
    written(tmp_path / "old", teacher, rows, bpe, seed=1, resume=False)
    assert content(tmp_path / "old") == content(one.path)


@pytest.mark.parametrize("part", [(2, 2), (-1, 3), (0, 0), (1, 0)])
def test_a_part_that_cannot_be(part, bpe, teacher, rows, tmp_path):
    with pytest.raises(ValueError, match="counted from 0"):
        written(tmp_path, teacher, rows, bpe, part=part)
    assert not list(tmp_path.iterdir())


def test_what_holds_no_parts_is_not_merged(bpe, teacher, rows, tmp_path):
    with pytest.raises(CacheError, match="holds no soft-label cache"):
        merge_cache(tmp_path / "nowhere")
    with pytest.raises(Kill):
        written(tmp_path / "cut", cut_short(teacher, 8), rows, bpe)
    with pytest.raises(CacheError, match="shards are missing, those of its end"):
        merge_cache(tmp_path / "cut")
