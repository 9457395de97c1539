"""The three worlds: names, what ``auto`` takes, and dtypes by machine."""

import dataclasses

import pytest
import torch

from distill_helpers import machine


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.delenv("DISTILL_PROFILE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu_of(monkeypatch):
    """Pretend that a GPU of some compute capability is there."""
    monkeypatch.delenv("DISTILL_PROFILE", raising=False)

    def pretend(*capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda *_: tuple(capability)
        )
        # What torch answers for a T4: yes, by emulation.
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)

    return pretend


def test_auto_takes_cpu_without_cuda(no_cuda):
    assert machine.get_profile().name == "cpu"
    assert machine.get_profile("auto") == machine.get_profile("cpu")


def test_auto_takes_gpu_with_cuda(gpu_of):
    gpu_of(8, 0)
    assert machine.get_profile().name == "gpu"


def test_auto_reads_the_environment_first(gpu_of, monkeypatch):
    gpu_of(8, 0)
    monkeypatch.setenv("DISTILL_PROFILE", "smoke")
    assert machine.get_profile("auto").name == "smoke"


def test_an_explicit_name_beats_the_environment(no_cuda, monkeypatch):
    monkeypatch.setenv("DISTILL_PROFILE", "smoke")
    assert machine.get_profile("cpu").name == "cpu"


def test_environment_may_say_auto(no_cuda, monkeypatch):
    monkeypatch.setenv("DISTILL_PROFILE", "auto")
    assert machine.get_profile().name == "cpu"


def test_unknown_name_lists_the_known_ones(no_cuda):
    with pytest.raises(ValueError, match=r"name='tpu'.*smoke, cpu, gpu, auto"):
        machine.get_profile("tpu")


def test_unknown_name_in_the_environment_is_traced_to_it(no_cuda, monkeypatch):
    monkeypatch.setenv("DISTILL_PROFILE", "laptop")
    with pytest.raises(ValueError, match=r"DISTILL_PROFILE='laptop'.*smoke, cpu, gpu"):
        machine.get_profile()


def test_gpu_without_cuda_says_what_to_do(no_cuda):
    with pytest.raises(ValueError, match=r"needs CUDA.*T4 GPU"):
        machine.get_profile("gpu")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((7, 5), torch.float16),  # T4
        ((7, 0), torch.float16),  # V100
        ((8, 0), torch.bfloat16),  # A100
        ((8, 9), torch.bfloat16),  # L4
        ((9, 0), torch.bfloat16),  # H100
    ],
)
def test_gpu_dtype_follows_compute_capability(gpu_of, capability, dtype):
    gpu_of(*capability)
    profile = machine.get_profile("gpu")
    assert profile.device == "cuda"
    assert profile.teacher_dtype == profile.autocast_dtype == dtype


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_profiles_without_gpu_stay_on_the_cpu_with_the_packaged_teacher(gpu_of, name):
    gpu_of(8, 0)  # even if one is there
    profile = machine.get_profile(name)
    assert (profile.device, profile.teacher) == ("cpu", "packaged")


def test_smoke_is_fp32_on_every_machine(monkeypatch):
    monkeypatch.setattr(machine, "cpu_bf16_pays", lambda: True)
    smoke = machine.get_profile("smoke")
    assert (smoke.teacher_dtype, smoke.autocast_dtype) == (torch.float32, None)


@pytest.mark.parametrize(
    ("pays", "teacher", "autocast"),
    [(True, torch.bfloat16, torch.bfloat16), (False, torch.float32, None)],
)
def test_cpu_takes_bf16_only_where_it_pays(monkeypatch, pays, teacher, autocast):
    monkeypatch.setattr(machine, "cpu_bf16_pays", lambda: pays)
    cpu = machine.get_profile("cpu")
    assert (cpu.teacher_dtype, cpu.autocast_dtype) == (teacher, autocast)


def test_pick(no_cuda, gpu_of):
    gpu_of(8, 0)
    picked = {
        name: machine.get_profile(name).pick(smoke=1, cpu=2, gpu=3)
        for name in machine.PROFILE_NAMES
    }
    assert picked == {"smoke": 1, "cpu": 2, "gpu": 3}


def test_pick_wants_all_three(no_cuda):
    with pytest.raises(TypeError):
        machine.get_profile("cpu").pick(smoke=1, cpu=2)


def test_a_profile_cannot_be_changed(no_cuda):
    with pytest.raises(dataclasses.FrozenInstanceError):
        machine.get_profile("cpu").device = "cuda"
