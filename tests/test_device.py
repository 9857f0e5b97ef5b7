"""Which device, number format and number of threads are used, told of machines that are not here."""

import os

import numpy as np
import pytest
import torch

from bertqa import UserError, device
from bertqa.device import (
    OnItsWay,
    after_fork,
    as_device,
    as_dtype,
    autocast,
    grad_scaler,
    pick_device,
    pick_precision,
    set_threads,
    to_device,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """Says what there is: so many GPUs, Apple's GPU, units for bf16."""

    def has(gpus=0, mps=False, bf16_gpu=True, bf16_units=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16_gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16_units)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return has


@pytest.mark.parametrize(
    ("gpus", "mps", "name", "number", "found"),
    [
        (0, False, "auto", None, "cpu"),
        (0, True, "auto", None, "mps"),
        (2, True, "auto", None, "cuda:0"),
        (2, True, "mps", None, "mps"),
        (2, False, "cpu", None, "cpu"),
        (2, False, "cuda", None, "cuda:0"),
        (2, False, "cuda", 1, "cuda:1"),
        (2, False, "cuda:1", 0, "cuda:1"),
        (1, False, "cuda:0", None, "cuda:0"),
    ],
)
def test_the_device_that_is_picked(machine, gpus, mps, name, number, found):
    machine(gpus, mps)
    assert str(pick_device(name, number)) == found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda", "finds only mps, cpu here"),
        ("tpu", "finds only mps, cpu here"),
        ("cuda:x", "use auto, cpu, mps, cuda or cuda:N"),
        ("mps:0", "use auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there(machine, name, says):
    machine(0, mps=True)
    with pytest.raises(UserError, match=says):
        pick_device(name)


def test_gpus_are_counted_from_zero_and_dealt_out_by_rank(machine, monkeypatch):
    machine(2)
    with pytest.raises(UserError, match="device is cuda:2, but this machine has 2 GPUs, counted"):
        pick_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto").index == 1 and pick_device("cuda:0").index == 0
    assert as_device(None).index == as_device("auto").index == 0  # from Python no rank is meant
    assert as_device(CPU) is CPU


@pytest.mark.parametrize(
    ("name", "where", "bf16_gpu", "found"),
    [
        ("auto", CPU, True, torch.float32),
        ("auto", torch.device("mps"), True, torch.float32),
        ("auto", CUDA, True, torch.bfloat16),
        ("auto", CUDA, False, torch.float16),
        ("fp32", CUDA, True, torch.float32),
        ("fp16", CUDA, True, torch.float16),
        ("bf16", CUDA, False, torch.bfloat16),
    ],
)
def test_the_precision_that_is_picked(machine, name, where, bf16_gpu, found):
    machine(1, bf16_gpu=bf16_gpu, bf16_units=True)
    assert pick_precision(name, where) == found
    assert as_dtype(name, where) == found


def test_emulated_formats_are_warned_of(machine, monkeypatch):
    said, bounds = [], []
    monkeypatch.setattr(device, "say", said.append)
    monkeypatch.setattr(device, "bound_kernel_caches", lambda **most: bounds.append(most))
    for units, name, warned in (
        (False, "bf16", True),
        (True, "bf16", False),
        (False, "fp32", False),
    ):
        said.clear()
        machine(bf16_units=units)
        pick_precision(name, CPU)
        assert [line.startswith("warning: this CPU has no units for bf16;") for line in said] == (
            [True] if warned else []
        )
    assert bounds == [dict(each_thread=256, all_threads=256)] * 2  # not for fp32
    said.clear()
    pick_precision("bf16", CUDA)
    assert said == [] and len(bounds) == 2


def test_dtypes_by_all_their_names(machine):
    machine(bf16_units=True)
    for name in ("bf16", "bfloat16", torch.bfloat16):
        assert as_dtype(name, CPU) == torch.bfloat16
    assert as_dtype(None, CPU) == as_dtype("float32", CPU) == torch.float32
    for name in ("half", torch.float64):
        with pytest.raises(UserError, match="use auto, fp32, bf16, fp16, float32, bfloat16, floa"):
            as_dtype(name, CPU)


def test_autocast_and_the_loss_scaler_by_format():
    for dtype, casts, scales in (
        (torch.float32, False, False),
        (torch.bfloat16, True, False),
        (torch.float16, True, True),
    ):
        made = autocast(CPU, dtype)
        assert made._enabled == casts and (not casts or made.fast_dtype == dtype)
        assert grad_scaler(CPU, dtype).is_enabled() == scales
    assert autocast(CPU, torch.bfloat16)._cache_enabled
    assert not autocast(CPU, torch.bfloat16, cache=False)._cache_enabled


def test_threads_have_a_limit(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for threads in (0, 1, 8):
        set_threads(threads)
    assert asked == [1, 8]  # 0 leaves it to torch
    for threads in (-1, 9):
        with pytest.raises(UserError, match=f"--threads {threads}: give 1 to 8, or 0 for torch's"):
            set_threads(threads)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    set_threads(4)
    with pytest.raises(UserError, match="give 1 to 4"):
        set_threads(5)


def test_a_fork_computes_with_one_thread_and_on_no_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    after_fork(CPU)
    assert asked == [1] and os.environ.pop("TOKENIZERS_PARALLELISM") == "false"
    with pytest.raises(UserError, match="on a GPU and came here by a fork"):
        after_fork(CUDA)


def test_what_comes_and_goes_is_the_same_on_a_cpu():
    array = np.arange(3)
    assert to_device(array, CPU).tolist() == [0, 1, 2]
    assert OnItsWay(torch.tensor([1.5, 2.5])).read().tolist() == [1.5, 2.5]
