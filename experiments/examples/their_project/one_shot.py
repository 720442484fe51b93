"""NNI's own one-shot strategies on spaces of nni-robust, trained on pictures under attack.

NNI's one-shot strategies want a Lightning evaluator; an attack of nni-robust goes into its steps.
"""

import json
from typing import Any

import nni
import torch
from common import TASK, read_arguments
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.experiment import NasExperiment
from nni.nas.strategy import DARTS, GumbelDARTS, RandomOneShot
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import nni_robust
from nni_robust.config import parse
from nni_robust.data import load_task
from nni_robust.search_spaces import DartsSpace, InvertedResidualSpace, RobNetSpace, WideResNetSpace
from nni_robust.task import Task

SPACES: dict[str, Any] = {
    "robnet": lambda: RobNetSpace(10, init_channels=2, cells=3),
    "darts": lambda: DartsSpace(10, width=2, cells=3),
    # These two refuse, with a sentence that says which strategies they are made for.
    "wide-resnet": lambda: WideResNetSpace(10, depths=1, widths=1, base_channels=(4, 4, 8)),
    "inverted-residual": lambda: InvertedResidualSpace(10, preset="s3"),
}
STRATEGIES = {"random": RandomOneShot, "gumbel-darts": GumbelDARTS, "darts": DARTS}


@nni.trace
class Attacked(LightningModule):
    """Trains whatever network the strategy sets, on pictures under attack."""

    def __init__(self, eps: float = 0.1, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.attack = nni_robust.attack("pgd", eps=eps, step_size=eps / 2, steps=2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of pictures (N, 3, H, W), float in [0, 1]."""
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Cross entropy under attack."""
        x, y = batch
        return nn.functional.cross_entropy(self(self.attack(self.model, x, y)), y)

    def validation_step(self, batch: Any, index: int) -> None:
        """Accuracy under attack. NNI's DARTS family never asks for it."""
        x, y = batch
        with torch.enable_grad():
            x = self.attack(self.model, x, y)
        self.log("robust", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        """One optimiser, as NNI wants it."""
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def loader(pictures: Any) -> Any:
    """A loader of float pictures in [0, 1] and their labels."""
    batches = list(pictures.batches(64))
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    return DataLoader(nni.trace(TensorDataset)(x, y), batch_size=32)


def main() -> None:
    """Train a supernet for an epoch, print the architecture that the strategy ends with."""
    options = read_arguments(__doc__ or "", space=[*SPACES], strategy=[*STRATEGIES])
    data = load_task(parse(Task, TASK, "task"))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    evaluator = Lightning(Attacked(), trainer, loader(data.train), loader(data.validation))
    space = SPACES[options.space]()
    experiment = NasExperiment(space, evaluator, STRATEGIES[options.strategy]())
    experiment.run()
    (best,) = experiment.export_top_models(1, formatter="dict")
    experiment.stop()
    print(json.dumps({"best": best}))


if __name__ == "__main__":
    main()
