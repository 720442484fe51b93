"""Labelled pictures: what every part of the library takes as data.

:class:`Images` is the interface; :class:`ImageSet` holds its pictures as one uint8 tensor on a
device and augments them there in whole batches (for data of CIFAR's size this beats any loader).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from nni_robust.data.augment import Dice, augment_batch, check_augment
from nni_robust.data.seeding import derive_seed, generator
from nni_robust.errors import UserError

__all__ = ["Batch", "ImageSet", "Images"]

Self = TypeVar("Self", bound="Images")
Held = TypeVar("Held", bound="ImageSet")

#: (N, C, H, W), float32, in [0, 1], and (N,), int64.
Batch = tuple[torch.Tensor, torch.Tensor]


class Images(ABC):
    """Labelled pictures that come in batches.

    Parameters
    ----------
    labels
        (N,), int64, in [0, number of classes).
    class_names
        One name per class.
    input_shape
        (C, H, W) of every picture.
    augment
        Names of the augmentations that suit these pictures in training (a mirrored digit is no
        digit).
    """

    #: Whether pictures are decoded anew whenever they are needed.
    streamed = False

    def __init__(
        self,
        labels: torch.Tensor,
        class_names: Sequence[str],
        input_shape: Sequence[int],
        augment: Iterable[str] = (),
    ) -> None:
        if labels.dim() != 1 or labels.dtype != torch.int64:
            raise UserError(
                f"labels: expected (N,) int64, got {tuple(labels.shape)} {labels.dtype}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise UserError(
                f"labels: {int(labels.min())} to {int(labels.max())} is not allowed; "
                f"with {len(class_names)} class names they lie in [0, {len(class_names)})"
            )
        channels, height, width = (int(n) for n in input_shape)
        self.labels = labels
        self.class_names = tuple(class_names)
        self.input_shape = (channels, height, width)
        self.augment = check_augment(augment, streamed=self.streamed)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @abstractmethod
    def take(self: Self, indices: torch.Tensor) -> Self:
        """The pictures at `indices` ((M,), int64), in that order."""

    @abstractmethod
    def to(self: Self, device: torch.device | str) -> Self:
        """The same pictures, delivered on `device`."""

    def head(self: Self, n: int) -> Self:
        """The first `n` pictures (all of them where there are fewer).

        Raises
        ------
        UserError
            If `n` is below 1.
        """
        if n < 1:
            raise UserError(f"limit: {n!r} is not allowed; a number of pictures >= 1 is")
        return self.take(torch.arange(min(n, len(self))))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: Iterable[str] = (),
        drop_last: bool = False,
        device: torch.device | str | None = None,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Go once through the pictures.

        Batch b of epoch e depends on `seed`, e and b only, so a resumed epoch (`start` > 0)
        continues exactly, and so do several processes that share each batch.

        Parameters
        ----------
        batch_size
            Pictures per batch, over all processes.
        shuffle
            Random order, another one in each epoch; else the order of the set.
        seed, epoch
            Seed of order and augmentation.
        augment
            Names of augmentations.
        drop_last
            Leave out a last batch that is not full.
        device
            Where the batches go; None is where the pictures are.
        start
            Number of the first batch to give.
        shard
            (rank, number of processes): this process gets every n-th picture of each batch.

        Yields
        ------
        tuple[torch.Tensor, torch.Tensor]
            x (N, C, H, W), float32, in [0, 1], and y (N,), int64.

        Raises
        ------
        UserError
            At the call, if a setting is impossible; among them a batch larger than the data when
            only full batches are wanted. An empty set without `drop_last` gives no batch.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size!r} is not allowed; a whole number >= 1 is")
        if drop_last and batch_size > len(self):
            raise UserError(
                f"batch_size: {batch_size} is not allowed; there are only {len(self)} pictures"
            )
        names = check_augment(augment, streamed=self.streamed)
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=generator(seed, "order", epoch))
        batches = list(torch.split(order, batch_size)) if len(order) else []
        if drop_last and batches and len(batches[-1]) < batch_size:
            batches.pop()
        target = None if device is None else torch.device(device)
        return self._iterate(
            batches, derive_seed(seed, "augment", epoch), names, target, start, shard
        )

    @abstractmethod
    def _iterate(
        self,
        batches: list[torch.Tensor],
        seed: int,
        augment: tuple[str, ...],
        device: torch.device | None,
        start: int,
        shard: tuple[int, int],
    ) -> Iterator[Batch]:
        """Give the batches from number `start` on; `batches` holds the indices of each."""


class ImageSet(Images):
    """Pictures in memory: one uint8 tensor on one device.

    Parameters
    ----------
    images
        (N, C, H, W), uint8.
    labels
        (N,), int64.
    class_names
        One name per class.
    augment
        See :class:`Images`.

    Raises
    ------
    UserError
        If shapes, types or labels do not fit.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        class_names: Sequence[str],
        augment: Iterable[str] = (),
    ) -> None:
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise UserError(
                f"images: expected (N, C, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
            )
        if len(images) != len(labels):
            raise UserError(
                f"labels: {len(labels)} labels for {len(images)} pictures are not allowed"
            )
        super().__init__(labels, class_names, images.shape[1:], augment)
        self.images = images

    def take(self: Held, indices: torch.Tensor) -> Held:
        """A copy of the pictures at `indices` ((M,), int64), in that order."""
        indices = indices.to(self.images.device)
        return type(self)(
            self.images[indices], self.labels[indices], self.class_names, self.augment
        )

    def to(self: Held, device: torch.device | str) -> Held:
        """The same pictures on `device`."""
        images, labels = self.images.to(device), self.labels.to(device)
        return type(self)(images, labels, self.class_names, self.augment)

    def _iterate(
        self,
        batches: list[torch.Tensor],
        seed: int,
        augment: tuple[str, ...],
        device: torch.device | None,
        start: int,
        shard: tuple[int, int],
    ) -> Iterator[Batch]:
        rank, world = shard
        for number in range(start, len(batches)):
            mine = batches[number][rank::world].to(self.images.device)
            x, y = self.images[mine], self.labels[mine]
            if device is not None:
                x, y = x.to(device), y.to(device)
            dice = Dice(generator(seed, number), len(batches[number]), slice(rank, None, world))
            x = augment_batch(x, augment, dice)
            yield x.float().div_(255), y
