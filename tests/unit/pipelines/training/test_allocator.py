"""The allocator's settings for ranks, by the page faults of a thread that frees and takes the same memory again."""

import os
import subprocess
import sys

import pytest

from pipelines.training.launch import ALLOCATOR

STEPS = """
import resource, threading
import torch

def step():
    activations = [torch.ones(8_000_000) for _ in range(6)]
    while activations:
        activations.pop(0)

def steps():
    for _ in range(8):  # the last tensors find their place late
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""
PAGES = 6 * 8_000_000 * 4 // 4096
"""Of one step."""


def faults_of_five_steps(allocator: dict[str, str]) -> int:
    others = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    done = subprocess.run([sys.executable, "-c", STEPS], env=others | allocator, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are glibc's")
def test_a_thread_keeps_the_memory_of_its_steps():
    assert faults_of_five_steps(ALLOCATOR) < PAGES // 2
    without_one_arena = {name: value for name, value in ALLOCATOR.items() if name != "MALLOC_ARENA_MAX"}
    assert faults_of_five_steps(without_one_arena) > PAGES  # or glibc has mended it, and the setting can go
