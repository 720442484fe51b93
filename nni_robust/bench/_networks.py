"""Networks that speed is measured on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResNet18"]


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) to (N, C_out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The ResNet-18 of papers on CIFAR (11.17 M parameters at width 64), at any width.

    Parameters
    ----------
    width
        Channels of the first stage; each further stage has twice as many.
    blocks
        In each of the four stages.
    channels, num_classes
        Of the pictures, and of the classifier.
    """

    def __init__(
        self, width: int = 64, *, blocks: int = 2, channels: int = 3, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        layers: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            for block in range(blocks):
                outputs, stride = width << stage, 2 if stage and not block else 1
                layers.append(_Block(inputs, outputs, stride))
                inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.stages(self.stem(x)).mean((2, 3)))
        return out
