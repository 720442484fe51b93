"""Networks to compare with: the baselines of RobNet's tables, as a space without choices.

- ResNet-18 and ResNet-50: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR
  2016, https://arxiv.org/abs/1512.03385.
- DenseNet-121: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks",
  CVPR 2017, https://arxiv.org/abs/1608.06993.

The networks are torchvision's, with its names in the state dict. Its stems are for ImageNet; the
stem for small pictures is one 3x3 convolution that keeps the resolution (in the ResNets with batch
norm and ReLU, in the DenseNet without: its first layer begins with them). With it the networks have
the sizes that robustness papers print for CIFAR-10: 11.17, 23.52 and 6.95 million parameters.

Wide residual networks, the other usual baseline, are the space `wide_resnet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from nni_robust.cost import Cost, measure_cost
from nni_robust.errors import UserError, nearest

from ._base import at_least, inherit_weights
from ._cell_macro import Stem
from ._denoising import Denoise, one_per_stage

__all__ = ["BaselineSpace"]

Network = Literal["resnet-18", "resnet-50", "densenet-121"]


class BaselineSpace(ModelSpace):
    """One well-known network, in the form of a search space: there is nothing to choose.

    So it can be trained, evaluated and kept like any architecture; its only sample is ``{}``.

    Parameters
    ----------
    num_classes
        Outputs of the classifier.
    network
        ``"resnet-18"``, ``"resnet-50"`` or ``"densenet-121"``.
    stem
        ``"cifar"`` keeps the resolution, ``"imagenet"`` divides it by 4.
    denoise
        Of a ResNet: denoising block at the end of each of the four stages, ``"gaussian"``,
        ``"dot"``, ``"mean"``, ``"median"`` or None, or a list of four of them; see `_denoising`.

    Raises
    ------
    UserError
        If an argument is not allowed.
    """

    def __init__(
        self,
        num_classes: int = 10,
        network: Network = "resnet-18",
        stem: Stem = "cifar",
        denoise: str | Sequence[str | None] | None = None,
    ) -> None:
        super().__init__()
        self._build = partial(_build, num_classes, network, stem, denoise)
        self.network = self._build()

    @classmethod
    def create_fixed_module(
        cls,
        sample: dict[str, Any],
        num_classes: int = 10,
        network: Network = "resnet-18",
        stem: Stem = "cifar",
        denoise: str | Sequence[str | None] | None = None,
    ) -> nn.Module:
        """What the constructor gives in a trial: the plain network (called by NNI)."""
        return _build(num_classes, network, stem, denoise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, 3, H, W), float in [0, 1]."""
        logits: Tensor = self.network(x)
        return logits

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        """The plain network, with copies of this space's weights; `sample` is ``{}``."""
        return inherit_weights(self._build, self, "network.{}".format)

    def cost(self, sample: Mapping[str, Any], input_shape: Sequence[int] = (3, 32, 32)) -> Cost:
        """Parameters and MACs for one picture, counted without weights."""
        with torch.device("meta"):
            return measure_cost(self._build(), input_shape)


def _build(
    num_classes: int,
    network: Network,
    stem: Stem,
    denoise: str | Sequence[str | None] | None,
) -> nn.Module:
    at_least("num_classes", num_classes, 1)
    if network not in get_args(Network):
        known = get_args(Network)
        raise UserError(
            f"network: {network!r} is not allowed{nearest(str(network), known)} "
            f"(allowed: {', '.join(known)})"
        )
    if stem not in get_args(Stem):
        raise UserError(f"stem: {stem!r} is not allowed; allowed: {', '.join(get_args(Stem))}")
    if network == "densenet-121":
        if any(one_per_stage(denoise, 4)):
            raise UserError(
                f"denoise: {denoise!r} is not allowed for densenet-121; it is for ResNets"
            )
        return _densenet(num_classes, stem)
    return _resnet(num_classes, network, stem, one_per_stage(denoise, 4))


def _resnet(num_classes: int, network: str, stem: Stem, denoise: Sequence[str | None]) -> nn.Module:
    models = _torchvision_models()
    make = models.resnet18 if network == "resnet-18" else models.resnet50
    net: Any = make(weights=None, num_classes=num_classes)
    if stem == "cifar":
        net.conv1 = _small_stem(64)
        net.maxpool = nn.Identity()
    stages = (net.layer1, net.layer2, net.layer3, net.layer4)
    for index, (stage, kind) in enumerate(zip(stages, denoise, strict=True)):
        if kind is not None:
            stage.append(Denoise(kind, net.fc.in_features // 2 ** (3 - index)))
    resnet: nn.Module = net
    return resnet


def _densenet(num_classes: int, stem: Stem) -> nn.Module:
    net: Any = _torchvision_models().densenet121(weights=None, num_classes=num_classes)
    if stem == "cifar":
        net.features.conv0 = _small_stem(64)
        for name in ("norm0", "relu0", "pool0"):
            delattr(net.features, name)
    densenet: nn.Module = net
    return densenet


def _small_stem(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _torchvision_models() -> Any:
    from nni_robust.data import import_torchvision

    import_torchvision()
    from torchvision import models

    return models
