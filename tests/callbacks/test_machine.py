"""callbacks.machine: the memory of a training process."""

import platform
import subprocess
import sys

import pytest

NEW_PAGES = """
import resource, torch
from callbacks.machine import keep_memory

keep_memory()
for _ in range(4):  # the heap has its size after some
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (8, 48, 16):
        torch.ones(megabytes * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    run = subprocess.run([sys.executable, "-c", NEW_PAGES], capture_output=True, check=True)

    assert int(run.stdout) < 100  # by default 18,000 pages of 4 KiB
