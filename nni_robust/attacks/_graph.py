"""Replay one gradient step instead of launching its kernels again: CUDA graphs.

A network of many small kernels, such as a cell of RobNet, waits for its launches. One step of
:class:`~nni_robust.attacks._ascent.Ascent` is recorded and replayed for the rest of the attack. The
record belongs to this one attack: it reads the weights where they lie now, folded or not, and takes
the path that is sampled now; the next batch is recorded anew. That pays from about five steps on,
as the first runs as usual and the record costs the host about one more.

Shapes are fixed in a record, so a picture that is broken stands still rather than leaves. Every few
steps the host counts; when half of the batch stands still, the others are recorded as a batch of
their own.

Never a wrong result: the first replay starts from where the first step started, and must end where
that did. If it does not, or the step cannot be recorded (the network asks the device for a number,
say), a warning says why, and the steps run as usual.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from nni_robust.attacks._ascent import Ascent
from nni_robust.attacks._hooks import has_hooks

__all__ = ["LEAST_STEPS", "CudaRecorder", "GraphWarning", "Recorder", "replay_steps"]

#: From so many steps on a record is worth its cost.
LEAST_STEPS = 5
_LOOK_EVERY = 5
#: How far a replayed step may end from the step itself, as a share of the step's mean length:
#: kernels that add in no fixed order change signs of gradients near 0.
_TOLERANCE = 0.05

Step = Callable[[], None]


class GraphWarning(UserWarning):
    """Why a CUDA graph was not used."""


class Recorder:
    """What makes a replay of a step; this one runs the step itself, on any device."""

    def warm_up(self, step: Step) -> None:
        """Run the step before it is recorded."""
        step()

    def record(self, step: Step) -> Step:
        """What runs the step again; recording by itself runs nothing."""
        return step


class CudaRecorder(Recorder):
    """Records CUDA graphs on one device; their memory is one pool, which the process keeps."""

    _streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}
    # A pool lives as long as one of its graphs; an old one is never replayed.
    _latest: ClassVar[dict[torch.device, torch.cuda.CUDAGraph]] = {}

    def __init__(self, device: torch.device) -> None:
        self._device = torch.device("cuda", device.index or torch.cuda.current_device())

    def warm_up(self, step: Step) -> None:
        if self._device in self._streams:
            step()
            return
        # Once in the process on the recording stream: libraries make their workspaces there.
        stream = self._streams[self._device] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            step()
        current.wait_stream(stream)

    def record(self, step: Step) -> Step:
        stream, current = self._streams[self._device], torch.cuda.current_stream(self._device)
        latest = self._latest.get(self._device)
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(current)
        collects = gc.isenabled()
        # Not torch.cuda.graph(…), which empties the allocator's cache: this runs for each batch.
        gc.disable()
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(
                    pool=None if latest is None else latest.pool(),
                    capture_error_mode="thread_local",
                )
                try:
                    step()
                finally:
                    graph.capture_end()
        finally:
            if collects:
                gc.enable()
        current.wait_stream(stream)
        self._latest[self._device] = graph
        return graph.replay


def replay_steps(ascent: Ascent, steps: int, recorder: Recorder) -> None:
    """Run an attack's steps, replayed as far as that is possible and worth it.

    Parameters
    ----------
    ascent
        The run.
    steps
        Number of gradient steps.
    recorder
        What records a step.
    """
    if has_hooks(ascent.victim.model):
        _explain("the network has forward hooks, which a replay would not run")
        _run(ascent, steps)
        return
    replay: Step | None = None
    while steps > 0:
        if replay is None:
            if steps < LEAST_STEPS:
                break
            replay = _recorded(ascent, recorder)
            steps -= 1
            if replay is None:
                break
        burst = steps if ascent.done is None else min(steps, _LOOK_EVERY)
        for _ in range(burst):
            replay()
        steps -= burst
        if ascent.done is not None and steps:
            moving = ascent.look()
            if moving == 0:
                return
            if 2 * moving <= len(ascent.y):
                ascent.shrink()
                replay = None
    _run(ascent, steps)


def _run(ascent: Ascent, steps: int) -> None:
    """The steps as usual."""
    if steps == 0:
        return
    if ascent.done is None:
        for _ in range(steps):
            ascent.step()
        return
    if ascent.look() == 0:
        return
    ascent.shrink()
    for _ in range(steps):
        if not ascent.shrinking_step():
            return


def _recorded(ascent: Ascent, recorder: Recorder) -> Step | None:
    """Do one step and give its replay; None, with a warning, where there is none to trust."""
    if not isinstance(ascent.victim.health, Tensor):
        ascent.victim.health = torch.zeros((), dtype=ascent.adv.dtype, device=ascent.adv.device)
    state = ascent.state()
    before = [tensor.clone() for tensor in state]
    recorder.warm_up(ascent.step)
    after = [tensor.clone() for tensor in state]
    try:
        replay = recorder.record(ascent.step)
        _put(state, before)
        replay()
        same = _same(before[0], after[0], state[0])
        reason = "" if same else "a replayed step ends elsewhere than the step itself"
    except RuntimeError as e:
        reason = f"the step cannot be recorded ({' '.join(str(e).split())[:200]})"
        ascent.adv.detach_()
    _put(state, after)
    if reason:
        _explain(reason)
        return None
    return replay


def _same(before: Tensor, after: Tensor, found: Tensor) -> bool:
    """Whether a replay took the step; NaN is no agreement."""
    moved = (after - before).abs().mean()
    return bool((found - after).abs().mean() <= _TOLERANCE * moved)


@torch.no_grad()
def _put(state: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(state, values, strict=True):
        tensor.copy_(value)


def _explain(reason: str) -> None:
    warnings.warn(
        f"cuda_graph: not used, {reason}; the steps run as usual", GraphWarning, stacklevel=2
    )
