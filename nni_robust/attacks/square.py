"""Square Attack: random search with squares, without gradients, in L∞ and L2.

Paper
-----
Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial
attack via random search" (1912.00049): algorithms 1, 2 (L∞) and 3 (L2), on the margin of the label.
The sizes of the squares follow the authors' code (:func:`square_share`), by default without scaling
to the number of steps, like AutoAttack's.

What differs from the code: places and signs are drawn for each picture by itself, as in the
algorithms (the code draws once for a batch), and every place is possible (the code never reaches
the last row and column). Pictures that are not square are covered too.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nni_robust import registry
from nni_robust.attacks._base import Attack, Victim
from nni_robust.attacks._losses import margin
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.attacks._survivors import Survivors
from nni_robust.config import parse, strict
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

__all__ = ["Square", "SquareSettings", "bump", "square_share"]

# After so many of 10,000 steps the share of the picture is halved.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Random numbers are drawn for so many steps at once.
_BLOCK = 64
_DIMS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class SquareSettings:
    """Settings of Square; the defaults are those of AutoAttack.

    Parameters
    ----------
    steps
        Squares that are tried, with one query of the network each.
    restarts
        Runs; later ones attack only the pictures that still resist.
    share
        Share of the picture that the first square covers (p in the paper), in (0, 1].
    rescale
        Run through all sizes whatever the number of steps; otherwise `steps` of the 10,000 of the
        paper.
    """

    steps: int = 5000
    restarts: int = 1
    share: float = 0.8
    rescale: bool = False

    __pydantic_config__ = strict

    def __post_init__(self) -> None:
        for key in ("steps", "restarts"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)!r} is not allowed; a number >= 1 is")
        if not 0 < self.share <= 1:
            raise UserError(f"share: {self.share!r} is not allowed; a number in (0, 1] is")


def square_share(first: float, step: int, steps: int | None = None) -> float:
    """Share of the picture that a square covers, at a step numbered from 0.

    Parameters
    ----------
    first
        Share at the beginning.
    step
        Number of squares tried before.
    steps
        Scale the schedule, which is for 10,000, to so many.
    """
    at = step if steps is None else step * 10_000 // steps
    return float(first / 2 ** sum(at > mark for mark in _HALVED))


@lru_cache(maxsize=64)
def bump(size: int) -> Tensor:
    """(size, size), float64: the L2 attack's pattern of one hill and one valley, of length 1.

    Each half falls from its middle like the sum of 1/k² over k beyond the distance.
    """
    whole = torch.cat([_hill(size // 2, size), -_hill(size - size // 2, size)])
    return whole.div_(whole.norm())


def _hill(height: int, width: int) -> Tensor:
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(rows.unsqueeze(1), columns.unsqueeze(0))
    terms = 1 / torch.arange(1, max(height // 2, width // 2) + 2, dtype=torch.float64) ** 2
    hill = terms.flip(0).cumsum(0).flip(0)[distance]
    return hill.div_(hill.norm().clamp_min(1e-300))


@registry.attacks.register("square")
class Square(Attack):
    """Square Attack.

    Parameters
    ----------
    threat
        Ball to search.
    label
        Name in results; None is ``"square"``, with what is not the default.
    **settings
        Fields of :class:`SquareSettings`.

    Raises
    ------
    UserError
        On a setting that does not exist or is out of range.
    """

    def __init__(self, threat: ThreatModel, *, label: str | None = None, **settings: Any) -> None:
        self.settings = s = parse(SquareSettings, settings, "attack 'square'")
        steps = "" if s.steps == 5000 else str(s.steps)
        super().__init__(
            threat, label or f"square{steps}{f'x{s.restarts}' if s.restarts > 1 else ''}"
        )

    @torch.no_grad()
    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        left = Survivors(victim, y, ball, noise)
        for run in range(self.settings.restarts):
            if len(left):
                left.settle(*self._walk(victim, left, run))
        return left.found

    def _walk(self, victim: Victim, left: Survivors, run: int) -> tuple[Tensor, Tensor]:
        """One run on what is left: the best pictures, and which are broken."""
        s, y, ball, noise = self.settings, left.y, left.ball, left.noise
        try_square = self._paint if self.threat.norm == "linf" else self._move
        start = self._stripes if self.threat.norm == "linf" else self._tiles
        streams = run << 20  # streams of random numbers: one for the start, one for each block
        best = start(ball, noise, streams)
        found, broken = best.clone(), torch.zeros_like(y, dtype=torch.bool)
        rows = torch.arange(len(y), device=y.device)
        loss, wrong = _score(victim, best, y)
        numbers = torch.empty(0)
        for step in range(s.steps + 1):
            if bool(wrong.any()):
                found[rows[wrong]], broken[rows[wrong]] = best[wrong], True
                keep = wrong.logical_not().nonzero().flatten()
                rows, y, best, loss = rows[keep], y[keep], best[keep], loss[keep]
                ball, noise = ball.select(keep), noise.select(keep)
                if step % _BLOCK:  # else new ones come
                    numbers = numbers[keep]
            if step == s.steps or len(rows) == 0:
                break
            if step % _BLOCK == 0:
                numbers = _draw(noise, best, _BLOCK, streams + 1 + step // _BLOCK)
            share = square_share(s.share, step, s.steps if s.rescale else None)
            new = try_square(ball, best, share, numbers[:, step % _BLOCK])
            new_loss, wrong = _score(victim, new, y)
            better = (new_loss > loss) | wrong
            best = torch.where(better.view(-1, 1, 1, 1), new, best)
            loss = torch.where(better, new_loss, loss)
        found[rows] = best
        return found, broken

    # --- L∞: squares of one colour ---------------------------------------------------------------

    @staticmethod
    def _stripes(ball: Ball, noise: Noise, stream: int) -> Tensor:
        """Vertical stripes: every column of every channel at an end of its interval."""
        up = noise.uniform(ball.x[:, :, :1], stream) < 0.5
        return torch.where(up, _shifted(ball, ball.eps), _shifted(ball, -ball.eps))

    @staticmethod
    def _paint(ball: Ball, best: Tensor, share: float, numbers: Tensor) -> Tensor:
        """A square at one end of the interval, for each channel by itself."""
        channels, height, width = best.shape[1:]
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        inside = _window(numbers[:, 0], height, side).unsqueeze(2)
        inside = inside & _window(numbers[:, 1], width, side).unsqueeze(1)
        up = (numbers[:, 5 : 5 + channels] < 0.5).view(-1, channels, 1, 1)
        # Two radii up or down from anywhere in the ball is its upper or lower end.
        colour = torch.where(up, _shifted(ball, ball.eps), _shifted(ball, -ball.eps))
        return torch.where(inside.unsqueeze(1), colour, best)

    # --- L2: the length of one window moves to another -------------------------------------------

    @staticmethod
    def _tiles(ball: Ball, noise: Noise, stream: int) -> Tensor:
        """Five by five tiles, each with a bump of random sign; more in very small pictures."""
        x = ball.x
        height, width = x.shape[2:]
        side = max(min(height, width) // 5, 1)
        across, down = width // side, height // side
        top, first = (height - down * side) // 2, (width - across * side) // 2
        signs = _signs(noise.uniform(x[:, :, :down, :across], stream))
        turned = noise.uniform(x[:, :1, :down, :across], stream + (1 << 19)) < 0.5
        pattern = bump(side).to(x)
        tile = pattern.repeat(down, across)
        tile_turned = pattern.T.repeat(down, across)

        def grow(t: Tensor) -> Tensor:
            return t.repeat_interleave(side, 2).repeat_interleave(side, 3)

        change = torch.zeros_like(x)
        change[:, :, top : top + down * side, first : first + across * side] = torch.where(
            grow(turned), tile_turned, tile
        ) * grow(signs)
        return _stretched(ball, change)

    @staticmethod
    def _move(ball: Ball, best: Tensor, share: float, numbers: Tensor) -> Tensor:
        """Algorithm 3: one window is cleared, and its length goes to a bump in another."""
        channels, height, width = best.shape[1:]
        side = max(round(math.sqrt(share * height * width)), 3)
        side = min(side + (side + 1) % 2, height, width)
        change = best - ball.x
        masks = []
        for row, column in ((0, 1), (2, 3)):
            inside = _window(numbers[:, row], height, side).unsqueeze(2)
            masks.append((inside & _window(numbers[:, column], width, side).unsqueeze(1))[:, None])
        taker, giver = masks
        free = (ball.eps**2 - change.square().sum(_DIMS, keepdim=True)).clamp_min_(0) / channels
        window = (change * (taker | giver)).square().sum((2, 3), keepdim=True)
        pattern = bump(side).to(best)
        turned = (numbers[:, 4] < 0.5).view(-1, 1, 1)
        pattern = torch.where(turned, pattern.T, pattern).unsqueeze(1)
        up = _signs(numbers[:, 5 : 5 + channels]).view(-1, channels, 1, 1)
        old = change[taker.expand_as(change)].view(*change.shape[:2], side, side)
        new = up * pattern + old / (_plane(old) + 1e-12)
        new = new / (_plane(new) + 1e-12) * (free + window).sqrt()
        change = change.masked_fill(giver, 0)
        change = change.masked_scatter(taker.expand_as(change), new)
        return _stretched(ball, change)


def _score(victim: Victim, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the lead of the label, and whether the picture is misclassified."""
    logits = victim(x)
    return margin(logits, y), logits.argmax(1) != y


def _draw(noise: Noise, like: Tensor, steps: int, stream: int) -> Tensor:
    """(N, steps, 5 + C), in [0, 1): four places, one turn and a sign for each channel."""
    count = 5 + like.shape[1]
    template = torch.empty(len(like), steps * count, 1, 1, device=like.device)
    return noise.uniform(template, stream).view(len(like), steps, count)


def _window(numbers: Tensor, length: int, side: int) -> Tensor:
    """(N, length), bool: `side` neighbours, anywhere in the length with equal probability."""
    first = (numbers * (length - side + 1)).long().unsqueeze(1)
    at = torch.arange(length, device=numbers.device)
    return (at >= first) & (at < first + side)


def _signs(numbers: Tensor) -> Tensor:
    """-1 or 1 with equal probability."""
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers)


def _plane(t: Tensor) -> Tensor:
    """Length of each channel."""
    length: Tensor = torch.linalg.vector_norm(t, dim=(2, 3), keepdim=True)
    return length


def _shifted(ball: Ball, by: float) -> Tensor:
    return ball.project_(ball.x + by)


def _stretched(ball: Ball, change: Tensor) -> Tensor:
    """The clean pictures with changes as long as the radius, cut to the box."""
    return ball.project_(ball.direction_(change).mul_(ball.eps).add_(ball.x))
