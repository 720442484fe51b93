"""Fresh statistics of batch normalisation for a sub-network of a supernet.

In a supernet the running statistics are those of a mixture of paths and fit none of them; a
sub-network that inherits them can look broken. A few batches through the sub-network give it its
own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_robust.data.images import Images
from nni_robust.data.seeding import derive_seed
from nni_robust.data.splits import DataSplits

__all__ = ["recalibrate_bn"]


@torch.no_grad()
def recalibrate_bn(
    model: nn.Module,
    data: Images | DataSplits,
    *,
    batches: int = 10,
    batch_size: int = 128,
    threat_attack: Callable[..., torch.Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Replace running statistics by the mean of the statistics of some batches.

    Weights do not change, modules other than batch normalisation compute as in evaluation, and all
    training flags are afterwards what they were. Layers that the batches do not reach (other paths
    of a supernet) keep their statistics.

    Parameters
    ----------
    model
        The network; its statistics change in place.
    data
        Pictures, used without augmentation; of splits, the training pictures.
    batches, batch_size
        How many; with fewer pictures, each is used once.
    threat_attack
        ``attack(model, x, y, seed=…)``: use attacked pictures. They are made before any statistic
        changes.
    seed
        Seed of order and attack.

    Returns
    -------
    nn.Module
        `model`.
    """
    images = data.train if isinstance(data, DataSplits) else data
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    stream = images.batches(batch_size, shuffle=True, seed=derive_seed(seed, "bn"), device=device)
    pictures = []
    for number, (x, y) in zip(range(batches), stream, strict=False):
        if threat_attack is not None:
            x = threat_attack(model, x, y, seed=derive_seed(seed, "bn", number))
        pictures.append(x)

    flags = [(m, m.training) for m in model.modules()]
    before = [(m, m.momentum, [b.clone() for b in m.buffers(recurse=False)]) for m in layers]
    whole = False
    try:
        for module, _ in flags:
            module.training = False
        for layer in layers:
            layer.training, layer.momentum = True, None  # None: the plain mean of all batches
            layer.reset_running_stats()
        for x in pictures:
            model(x)
        whole = True
    finally:
        for module, training in flags:
            module.training = training
        for layer, momentum, buffers in before:
            layer.momentum = momentum
            if not whole or layer.num_batches_tracked == 0:
                for buffer, value in zip(layer.buffers(recurse=False), buffers, strict=True):
                    buffer.copy_(value)
    return model
