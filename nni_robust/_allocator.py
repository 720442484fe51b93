"""Keep freed memory in the process, where glibc would give it back and fetch it anew each step.

A step of training or attack frees its maps and asks for the same sizes again. glibc returns large
freed blocks to the kernel, which hands out pages one by one, each filled with zeros: for narrow
networks that is a third of the time (docs/speed.md). Arithmetic is not touched. A process that is
ours (the command, a trial) keeps such memory until it ends; a library must not decide that for
its caller.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# <malloc.h> of glibc.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
# Bytes: freed memory at the heap's end that is kept; blocks that come from the heap; what is asked
# of the kernel at a time beyond what is needed.
_KEPT, _FROM_HEAP, _AHEAD = 1 << 30, 1 << 29, 1 << 26
#: Whoever sets these knows better.
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc to keep up to 1 GiB of what this process frees; whether it was told.

    It is not where another allocator or libc is at work, or a ``MALLOC_…_`` variable says what to
    do.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN):
        return False
    if os.environ.get("LD_PRELOAD"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Before glibc 2.35 no more than 32 MiB is allowed.
    from_heap = mallopt(_MMAP_THRESHOLD, _FROM_HEAP) or mallopt(_MMAP_THRESHOLD, 1 << 25)
    return bool(from_heap and mallopt(_TRIM_THRESHOLD, _KEPT) and mallopt(_TOP_PAD, _AHEAD))
