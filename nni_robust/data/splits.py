"""Train, search-validation and test splits of a data set."""

from __future__ import annotations

import dataclasses

from nni_robust.data.images import Images
from nni_robust.errors import UserError

__all__ = ["DataSplits"]


@dataclasses.dataclass(frozen=True)
class DataSplits:
    """The three splits; they share no picture.

    Parameters
    ----------
    name
        Name of the data set.
    train
        What networks are trained on.
    validation
        Split off from the training pictures; what a search decides on. May be empty.
    held_out
        The test pictures, or None where they were not asked for; read them as :attr:`test`.
    """

    name: str
    train: Images
    validation: Images
    held_out: Images | None = None

    @property
    def test(self) -> Images:
        """The test pictures.

        Raises
        ------
        UserError
            If they were not asked for; a search never asks.
        """
        if self.held_out is None:
            raise UserError(
                f"the test split of '{self.name}' was not asked for (test=True); "
                "a search must not see it"
            )
        return self.held_out

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return self.train.input_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.train.class_names
