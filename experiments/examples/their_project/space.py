"""A model space of this project, of NNI's own parts only."""

import nni
import torch
from nni.nas.nn.pytorch import (
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLinear,
    Repeat,
)
from torch import Tensor, nn


class SmallSpace(ModelSpace):
    """Stem, one chosen layer, one or two blocks, classifier: 24 networks.

    Pictures are (N, 3, H, W), float, in [0, 1].
    """

    def __init__(self, num_classes: int = 10, channels: int = 8) -> None:
        super().__init__()
        width = nni.choice("width", [channels, 2 * channels])
        kernel = nni.choice("kernel", [1, 3])
        self.stem = MutableConv2d(3, width, kernel, padding=kernel // 2)
        self.norm = MutableBatchNorm2d(width)
        self.layer = LayerChoice(
            {
                "conv": MutableConv2d(width, width, 3, padding=1),
                "depthwise": MutableConv2d(width, width, 3, padding=1, groups=width),
                "skip": nn.Identity(),
            },
            label="layer",
        )
        # At least one block: NNI's one-shot strategies do not take a depth of 0.
        self.blocks = Repeat(
            lambda index: nn.Sequential(
                MutableConv2d(width, width, 3, padding=1, bias=False),
                MutableBatchNorm2d(width),
                nn.ReLU(),
            ),
            (1, 2),
            label="depth",
        )
        self.classifier = MutableLinear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.blocks(self.layer(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
