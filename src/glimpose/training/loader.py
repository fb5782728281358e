"""Batches drawn in other processes, and which of them belong to which."""

import os
import signal
from collections.abc import Iterable
from typing import TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch")


def load_batches(
    batches: Dataset[Batch], start_step: int, num_steps: int, rank: int, world_size: int, num_workers: int
) -> Iterable[Batch]:
    """Give the batches of steps start_step.. to one of several processes, as `training.loop.Task.loader` has to.

    They are drawn by workers, or in this process where none are asked for.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start_step * world_size + rank, (start_step + num_steps) * world_size, world_size),
        num_workers=num_workers,
        worker_init_fn=set_up_worker,
        prefetch_factor=4 if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if num_workers else None,
    )


def set_up_worker(_: int) -> None:
    """Make a process draw samples: in one thread, for the cores are taken, until the process that asked says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent alone
    os.environ.setdefault("LP_NUM_THREADS", "0")  # llvmpipe's own
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
