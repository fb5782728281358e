"""Keep freed memory in the process: a training step frees and asks for the same gigabyte again and again."""

import ctypes
import logging
import sys

logger = logging.getLogger(__name__)

# <malloc.h>: parameters of mallopt, and the largest mmap threshold glibc takes on 64-bit machines.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse freed blocks instead of returning them to the kernel; False where it isn't glibc's.

    A block that was returned comes back as pages that fault one by one on their first touch, which takes longer than
    most elementwise operations on it: 18 % of a training step on two cores (docs/lab-book.md). The price is that the
    process stays as large as it ever was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_TOP_PAD, 64 << 20),
    )
    accepted = [bool(mallopt(parameter, value)) for parameter, value in settings]
    logger.debug("malloc keeps freed memory: %s", accepted)
    return all(accepted)
