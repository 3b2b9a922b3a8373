"""Memory that the C library keeps for a run on CPUs."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
import jax
from camelid.train.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]))
libc, size = ctypes.CDLL(None), 2**27
libc.malloc.restype = ctypes.c_void_p
def use():
    block = ctypes.c_void_p(libc.malloc(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""


def page_faults(*, keep: bool, **environment: str) -> int:
    command = [sys.executable, "-c", FAULTS, "keep" if keep else "leave"]
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_found_again_without_page_faults():
    pages = 10 * 2**27 // os.sysconf("SC_PAGE_SIZE")
    assert page_faults(keep=True) < pages / 100
    # As before where it is not asked for, or where the user has settings of their own.
    assert page_faults(keep=False) > pages / 2
    assert page_faults(keep=True, GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1048576") > pages / 2
