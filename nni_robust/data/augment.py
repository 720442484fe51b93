"""Augmentations of a whole batch at once, on the device that holds it.

Each picture gets its own random numbers. They are drawn on the CPU from the batch's own generator,
so a batch looks the same on every device and when a run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from nni_robust.errors import UserError, nearest

__all__ = [
    "AUGMENTATIONS",
    "CUTMIX",
    "RESIZED_CROP",
    "Dice",
    "augment_batch",
    "check_augment",
    "crop",
    "flip",
]

#: Done while a picture is decoded, hence only for streamed sets, see
#: :mod:`nni_robust.data.streamed`.
RESIZED_CROP = "resized-crop"

#: Mixes pictures of a batch and their labels, so it is the training's, see
#: :mod:`nni_robust.training.cutmix`.
CUTMIX = "cutmix"


class Dice:
    """Random integers for the pictures of one batch.

    Parameters
    ----------
    generator
        The batch's own generator.
    total
        Pictures in the whole batch.
    rows
        Those of them that this process works on (a slice; with several devices a part of the
        batch).
    """

    def __init__(self, generator: torch.Generator, total: int, rows: slice = slice(None)) -> None:
        self.generator, self.total, self.rows = generator, total, rows

    def roll(self, high: int) -> torch.Tensor:
        """One integer in [0, high) per picture, (number of rows,), int64, on the CPU."""
        return torch.randint(high, (self.total,), generator=self.generator)[self.rows]


def crop(x: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Shift each picture by up to an eighth of its size; what comes in from outside is black.

    The same as padding with zeros (4 pixels at 32 x 32) and cutting a window of the old size.

    Parameters
    ----------
    x
        (N, C, H, W), uint8.
    dice
        Random numbers.

    Returns
    -------
    torch.Tensor
        (N, C, H, W), uint8, channels-last in memory.
    """
    n, _, height, width = x.shape
    pad_y, pad_x = height // 8, width // 8
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    top, left = dice.roll(2 * pad_y + 1).to(x.device), dice.roll(2 * pad_x + 1).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    picture = torch.arange(n, device=x.device)[:, None, None]
    return padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip(x: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Mirror each picture left to right with probability 1/2; (N, C, H, W), uint8."""
    mirrored = dice.roll(2).bool().to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


#: Augmentations by name.
AUGMENTATIONS: dict[str, Callable[[torch.Tensor, Dice], torch.Tensor]] = {
    "crop": crop,
    "flip": flip,
}


def check_augment(
    names: Iterable[str], *, streamed: bool = True, mixing: bool = False
) -> tuple[str, ...]:
    """Return the names as a tuple.

    Parameters
    ----------
    names
        Names of augmentations.
    streamed
        Whether the data set decodes its pictures anew each time.
    mixing
        Whether labels may be mixed, as they are in a training.

    Raises
    ------
    UserError
        If a name is unknown, or if it needs a streamed set and this is none.
    """
    known = (*AUGMENTATIONS, RESIZED_CROP, *([CUTMIX] if mixing else []))
    if isinstance(names, str):
        raise UserError(f"augment: {names!r} is not allowed; a list is, such as ['crop', 'flip']")
    for name in names:
        if name not in known:
            raise UserError(
                f"augment: {name!r} is not allowed{nearest(str(name), known)} "
                f"(allowed: {', '.join(known)})"
            )
        if name == RESIZED_CROP and not streamed:
            raise UserError(
                f"augment: '{RESIZED_CROP}' needs streamed pictures; 'crop' and 'flip' do not"
            )
    return tuple(names)


def augment_batch(x: torch.Tensor, names: Iterable[str], dice: Dice) -> torch.Tensor:
    """Apply augmentations in the given order; (N, C, H, W), uint8, to the same."""
    for name in names:
        if name != RESIZED_CROP:
            x = AUGMENTATIONS[name](x, dice)
    return x
