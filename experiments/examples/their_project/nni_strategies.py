"""NNI's own strategies on spaces of nni-robust, with its evaluator."""

from typing import Any

from common import TASK, TRAIN, read_arguments, run, show
from nni.nas.strategy import GridSearch, Random, RegularizedEvolution

from nni_robust.evaluators import AdversarialTraining
from nni_robust.nni_adapter.tpe import TPE  # NNI's own minimises, and fails at choices of inputs
from nni_robust.search_spaces import DartsSpace, RobNetSpace, WideResNetSpace

SPACES: dict[str, Any] = {
    "wide-resnet": lambda: WideResNetSpace(
        10, depths=2, widths=2, stem_channels=4, base_channels=(4, 4, 8)
    ),
    "robnet": lambda: RobNetSpace(10, init_channels=2, cells=3),
    "darts": lambda: DartsSpace(10, width=2, cells=3),
}
STRATEGIES: dict[str, Any] = {
    "random": lambda: Random(seed=0),
    "evolution": lambda: RegularizedEvolution(population_size=2, sample_size=1, seed=0),
    "tpe": lambda: TPE(seed=0),
    "grid": lambda: GridSearch(shuffle=False, seed=0),
}


def main() -> None:
    """Evaluate three networks, print the best."""
    options = read_arguments(__doc__ or "", space=[*SPACES], strategy=[*STRATEGIES])
    evaluator: Any = AdversarialTraining(
        task=TASK, train=TRAIN, attacks=["fgsm"], store=options.store
    )
    strategy = STRATEGIES[options.strategy]()
    show(run(SPACES[options.space](), evaluator, strategy, 3, options))


if __name__ == "__main__":
    main()
