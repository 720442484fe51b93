"""Randomness without state: every random decision has a seed of its own, made from its purpose.

A generator that is seeded from (run seed, purpose, epoch, batch) needs no saving: an interrupted
run draws the same numbers when it comes to the same batch again, whatever happened in between.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

__all__ = ["derive_seed", "generator", "stratified_order"]


def derive_seed(seed: int, *path: int | str) -> int:
    """A seed for one purpose: equal arguments give equal seeds, on every machine and version.

    Parameters
    ----------
    seed
        The run's seed.
    path
        What the numbers are for, such as ``("augment", epoch, batch)``.

    Returns
    -------
    int
        In [0, 2**63).
    """
    digest = hashlib.sha256(repr((int(seed), *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A generator seeded by :func:`derive_seed`, on the CPU: all devices see the same numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


def stratified_order(labels: torch.Tensor, seed: int, *path: int | str) -> torch.Tensor:
    """A seeded order of pictures in which every beginning holds the classes in their shares.

    The pictures of a class are shuffled and spread evenly over the whole; the k-th of n gets the
    place (k + 1/2)/n. So a split, or a limit, is a cut in this order, and the pictures of a small
    limit are among those of a larger one.

    Parameters
    ----------
    labels
        (N,), int64, class of each picture.
    seed, path
        See :func:`derive_seed`.

    Returns
    -------
    torch.Tensor
        (N,), int64, a permutation of 0 … N-1.

    Notes
    -----
    The keys are raw numbers of the PCG64 bit generator, whose stream NumPy keeps stable; shuffling
    functions may change with a version, and a search-validation split must not.
    """
    classes = labels.cpu().numpy()
    keys = np.random.PCG64(derive_seed(seed, *path)).random_raw(len(classes))
    shuffled = np.lexsort((keys, classes))  # class by class, in random order inside each
    _, first, counts = np.unique(classes[shuffled], return_index=True, return_counts=True)
    rank = np.arange(len(classes)) - np.repeat(first, counts)  # k
    place = np.empty(len(classes))
    place[shuffled] = (rank + 0.5) / np.repeat(counts, counts)
    return torch.from_numpy(np.lexsort((keys, place)))
