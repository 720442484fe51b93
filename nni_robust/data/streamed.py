"""Pictures that stay on disk and are decoded when they are needed (ImageNet, large folders).

The interface is that of :class:`nni_robust.data.images.Images`; a torch DataLoader with worker
processes does the decoding. Crop and flip happen on the device, as for pictures in memory; the
random resized crop happens while decoding, seeded per epoch and picture, so the number of workers
changes nothing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nni_robust.data._decode import Geometry, decode
from nni_robust.data.augment import RESIZED_CROP, Dice, augment_batch
from nni_robust.data.images import Batch, Images, ImageSet
from nni_robust.data.seeding import derive_seed, generator
from nni_robust.errors import UserError

__all__ = ["MEMORY_LIMIT", "StreamedImages"]

Self = TypeVar("Self", bound="StreamedImages")

#: Bytes of decoded pictures up to which a set is held in memory.
MEMORY_LIMIT = 2 * 1024**3


class StreamedImages(Images):
    """Pictures in files.

    Parameters
    ----------
    files
        One path per picture (an array holds them as bytes).
    labels
        (N,), int64.
    class_names
        One name per class.
    geometry
        Common size of the pictures.
    augment
        See :class:`~nni_robust.data.images.Images`.
    device
        Where the batches go by default.
    workers
        Decoding processes; None is one per available core, at most 8; 0 decodes in this process.
    """

    streamed = True

    def __init__(
        self,
        files: Sequence[str] | np.ndarray,
        labels: torch.Tensor,
        class_names: Sequence[str],
        geometry: Geometry,
        augment: Iterable[str] = (),
        *,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ) -> None:
        super().__init__(labels, class_names, (3, geometry.height, geometry.width), augment)
        # One block of bytes, not a million Python objects: workers are forks of this process, and
        # counting references would copy every page of a list into each of them.
        self.files = (
            files if isinstance(files, np.ndarray) else np.array([os.fsencode(f) for f in files])
        )
        self.geometry = geometry
        self.device = torch.device(device)
        self.workers = min(8, _cores()) if workers is None else workers

    @property
    def nbytes(self) -> int:
        """Bytes that the decoded pictures would take."""
        return len(self) * 3 * self.geometry.height * self.geometry.width

    def take(self: Self, indices: torch.Tensor) -> Self:
        """The pictures at `indices` ((M,), int64), in that order."""
        return type(self)(
            self.files[indices.numpy()],
            self.labels[indices],
            self.class_names,
            self.geometry,
            self.augment,
            device=self.device,
            workers=self.workers,
        )

    def to(self: Self, device: torch.device | str) -> Self:
        """The same pictures, delivered on `device`."""
        moved = self.take(torch.arange(len(self)))
        moved.device = torch.device(device)
        return moved

    def read(self, index: int, dice: random.Random | None = None) -> np.ndarray:
        """Decode one picture: (H, W, 3), uint8; see :func:`nni_robust.data._decode.decode`."""
        return decode(os.fsdecode(self.files[index]), self.geometry, dice)

    def load(self) -> ImageSet:
        """All pictures, decoded into memory.

        Raises
        ------
        UserError
            If a picture cannot be read or has another size.
        """
        images = torch.empty((len(self), *self.input_shape), dtype=torch.uint8)

        def read(i: int) -> None:
            images[i] = torch.from_numpy(self.read(i).copy()).permute(2, 0, 1)

        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for _ in pool.map(read, range(len(self))):
                pass
        return ImageSet(images, self.labels, self.class_names, self.augment)

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
        device = device or self.device
        loader = DataLoader(
            _Decoder(self, seed if RESIZED_CROP in augment else None),
            batch_sampler=[batch[rank::world].tolist() for batch in batches[start:]],
            num_workers=self.workers,
            collate_fn=_stack,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        for number, batch in enumerate(loader, start):
            if isinstance(batch, UserError):
                raise batch
            x, y = batch
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            dice = Dice(generator(seed, number), len(batches[number]), slice(rank, None, world))
            yield augment_batch(x, augment, dice).float().div_(255), y


class _Decoder(Dataset[Any]):
    """What the loader's workers get: index to (decoded picture, label), or why there is none.

    An error is handed over, because the loader would bury its sentence in a worker's traceback.
    """

    def __init__(self, images: StreamedImages, crop_seed: int | None) -> None:
        self.images, self.crop_seed = images, crop_seed

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | UserError:
        dice = None
        if self.crop_seed is not None:
            dice = random.Random(derive_seed(self.crop_seed, "window", index))
        try:
            return self.images.read(index, dice), int(self.images.labels[index])
        except UserError as e:
            return e


def _stack(pictures: list[Any]) -> Batch | UserError:
    """(N, 3, H, W), uint8, channels-last in memory, and (N,), int64; or the first error."""
    for picture in pictures:
        if isinstance(picture, UserError):
            return picture
    x = torch.from_numpy(np.stack([p for p, _ in pictures])).permute(0, 3, 1, 2)
    return x, torch.tensor([y for _, y in pictures])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
