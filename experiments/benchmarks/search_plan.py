"""What a search of 1,000 candidates on ImageNet costs, on paper.

    python experiments/benchmarks/search_plan.py --gpus 1 8 64 --rate 5e12 20e12 80e12

From the laws of ``growth.py`` (cost is linear in attack steps, pictures, pixels and candidates) and
the trial overhead of ``nni-robust bench overhead``. What a card sustains is the reader's to say.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence

#: RobNet-large on ImageNet, MACs of one picture at 224x224: counted by our space, see the spec.
MACS = 1.412e9
TRAIN_PICTURES, SCORED_PICTURES = 1_281_167, 10_000
#: Forward passes of one picture: an attack step is 2 (none for weights), a training step 3.
FORWARD_PER_ATTACK_STEP, FORWARD_PER_TRAINING_STEP = 2, 3


@dataclasses.dataclass(frozen=True)
class Search:
    """A one-shot search as RobNet's.

    Parameters
    ----------
    candidates
        Scored with the supernet's weights.
    supernet_epochs, supernet_steps
        Training of the supernet, and its attack's steps.
    tuned
        Candidates that are also tuned, for `tuning_epochs` each.
    scoring_steps
        Of the attack on each scored picture.
    overhead
        Seconds from one trial to the next that NNI's manager needs, however many cards there are
        (``bench overhead``, ``growth.py``).
    decoding
        Seconds of one core for each training picture read from the disk (``growth.py``).
    workers
        Decoding processes beside each card.
    """

    candidates: int = 1000
    supernet_epochs: int = 50
    supernet_steps: int = 1
    tuned: int = 10
    tuning_epochs: int = 3
    scoring_steps: int = 20
    overhead: float = 0.57
    decoding: float = 0.0015
    workers: int = 8


def plan(search: Search, rate: float, gpus: int) -> dict[str, float]:
    """Hours of each phase on `gpus` cards that sustain `rate` FLOP/s each.

    Training of a supernet is divided among the cards (DDP), candidates are independent. Scoring
    counts every step for every picture: an upper bound, as broken pictures leave the attack.
    Pictures are decoded while the cards train: the slower of both is what training takes.
    """
    forward = 2 * MACS
    step = FORWARD_PER_ATTACK_STEP * search.supernet_steps + FORWARD_PER_TRAINING_STEP
    epoch = TRAIN_PICTURES * step * forward
    scored = SCORED_PICTURES * (FORWARD_PER_ATTACK_STEP * search.scoring_steps + 1) * forward
    reading = TRAIN_PICTURES * search.decoding / search.workers
    trained = max(epoch / rate, reading) / gpus
    seconds = {
        "supernet": search.supernet_epochs * trained,
        "scoring": search.candidates * scored / rate / gpus,
        "tuning": search.tuned * search.tuning_epochs * trained,
        "trial overhead": search.candidates * search.overhead,
    }
    hours = {phase: value / 3600 for phase, value in seconds.items()}
    return {**hours, "total": sum(hours.values())}


def print_plan(rates: Sequence[float], gpus: Sequence[int]) -> None:
    for rate, number in itertools.product(rates, gpus):
        hours = plan(Search(), rate, number)
        cells = ", ".join(f"{phase} {value:.1f} h" for phase, value in hours.items())
        print(f"{number} GPUs at {rate / 1e12:g} TFLOP/s: {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    parser.add_argument(
        "--rate",
        type=float,
        nargs="+",
        default=[5e12, 20e12, 80e12],
        metavar="FLOPS",
        help="of one card",
    )
    options = parser.parse_args()
    if min(*options.gpus, 1) < 1 or not all(rate > 0 for rate in options.rate):
        parser.error("--gpus takes whole numbers of 1 or more, --rate numbers above 0")
    print_plan(options.rate, options.gpus)


if __name__ == "__main__":
    main()
