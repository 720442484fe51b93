"""``nni-robust evaluate --strengths``: networks over a spectrum of attack strengths."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import progress_home, set_threads, threat_of
from nni_robust.cli._console import print_json, print_table, progress, say
from nni_robust.cli._reliability import print_reliability
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.data import Images
    from nni_robust.spectrum import Spectrum

__all__ = ["PLOTS", "add_strengths", "execute_strengths"]

#: What figures can be written as.
PLOTS = (".svg", ".png", ".pdf")


def add_strengths(parser: argparse.ArgumentParser) -> None:
    """``--strengths`` and ``--plot``."""
    parser.add_argument(
        "--strengths",
        metavar="LIST",
        help="measure at each of these strengths in place of --eps, such as "
        "0.03,0.1,0.17,0.25 or 4/255,8/255; a picture broken at one is broken at all larger ones",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw accuracy and loss over the strengths (.svg, .png, .pdf)",
    )


def execute_strengths(args: argparse.Namespace, attacks: list[str]) -> int:
    """Check everything, attack every network at every strength, print table or JSON, draw."""
    strengths = [part.strip() for part in args.strengths.split(",") if part.strip()]
    _check(args, strengths, attacks)
    from nni_robust.architecture import load_architecture
    from nni_robust.attacks import attack_from_spec
    from nni_robust.cli._network import build_network, find_device
    from nni_robust.cli._origin import fill_from_training
    from nni_robust.config import parse
    from nni_robust.data import load_dataset
    from nni_robust.threat import ThreatModel

    set_threads(args)
    threat_of(args)  # a wrong norm is told before anything is read
    if args.folder is not None:
        progress_home(args.folder)
    fill_from_training(args, args.arch, strengths=True)
    norm = threat_of(args).norm
    for eps in strengths:
        for name in attacks:
            attack_from_spec(name, parse(ThreatModel, {"norm": norm, "eps": eps}, "threat"))
    device = find_device(args.device)
    architectures = {name: load_architecture(name) for name in args.arch}
    data = load_dataset(args.dataset, root=args.root, test=args.split == "test")
    images = data.test if args.split == "test" else data.validation
    assert images is not None
    networks = {
        name: build_network(found, data, seed=args.seed, weights=args.weights).to(device)
        for name, found in architectures.items()
    }
    untrained = [
        name for name, found in architectures.items() if args.weights is None and not found.trained
    ]
    if untrained:
        say(f"untrained weights: {', '.join(untrained)}")
    spectra = {
        name: {
            attack: _measure(name, network, images, strengths, attack, args, norm)
            for attack in attacks
        }
        for name, network in networks.items()
    }
    if args.plot:
        _draw(spectra, args.plot, norm)
    if args.json:
        print_json(
            {
                "dataset": data.name,
                "split": args.split,
                "pictures": next(s.n for found in spectra.values() for s in found.values()),
                "norm": norm,
                "seed": args.seed,
                "untrained": untrained,
                "networks": {
                    name: {attack: _record(found) for attack, found in attacks.items()}
                    for name, attacks in spectra.items()
                },
            }
        )
        return 0
    _print(spectra, data.name, args.split, norm)
    return 0


def _check(args: argparse.Namespace, strengths: list[str], attacks: list[str]) -> None:
    """Refuse what cannot be meant, before anything is read."""
    if args.eps is not None:
        raise UserError("--eps and --strengths are two ways to say one thing; give one")
    if not strengths:
        raise UserError(f"--strengths '{args.strengths}' is not allowed; at least one number is")
    if not attacks:
        raise UserError("--attacks '' is not allowed with --strengths; at least one attack is")
    for key, found in (("ARCH", args.arch), ("--attacks", attacks)):
        if len(set(found)) < len(found):
            raise UserError(f"{key}: {', '.join(found)} names one twice")
    if args.weights is not None and len(args.arch) > 1:
        raise UserError("--weights fits one architecture; give each its own file in its YAML")
    if args.plot and Path(args.plot).suffix not in PLOTS:
        raise UserError(
            f"--plot '{args.plot}' is not allowed; the name must end in {', '.join(PLOTS)}"
        )
    if args.plot and not Path(args.plot).absolute().parent.is_dir():
        raise UserError(f"--plot '{args.plot}' cannot be written: its folder does not exist")


def _measure(
    name: str,
    network: Any,
    images: Images,
    strengths: list[str],
    attack: str,
    args: Any,
    norm: Any,
) -> Spectrum:
    from nni_robust._resuming import place_name
    from nni_robust.evaluation import NonFiniteOutput
    from nni_robust.spectrum import evaluate_spectrum

    total = min(len(images), args.limit or len(images)) * (1 + len(strengths))
    done: dict[str, int] = {}
    with progress(attack, total) as advance:

        def report(pictures: int, of: int | None, stage: str) -> None:
            done[stage] = pictures
            advance(sum(done.values()))

        try:
            return evaluate_spectrum(
                network,
                images,
                strengths,
                attack,
                norm=norm,
                limit=args.limit,
                seed=args.seed,
                batch_size=args.batch_size,
                progress=report,
                thorough=args.thorough,
                folder=None if args.folder is None else Path(args.folder) / place_name(name),
            )
        except NonFiniteOutput as e:
            raise UserError(f"{e}, so no accuracy can be measured") from None


def _record(found: Spectrum) -> dict[str, Any]:
    from nni_robust.spectrum import MEAN_STRENGTHS

    name = ",".join(f"{eps:g}" for eps in MEAN_STRENGTHS)
    return {
        "clean": found.clean,
        "accuracy": {f"{eps:g}": value for eps, value in found.accuracy.items()},
        "loss": {f"{eps:g}": value for eps, value in found.losses.items()},
        "average": found.average,
        "auc": found.auc,
        f"avg_robust_acc@{{{name}}}": found.mean(),
        "reliability": found.reliability.as_dict(),
        "passes": found.passes,
        "forwards": found.forwards,
        "seconds": found.seconds,
    }


def _print(spectra: dict[str, dict[str, Spectrum]], data: str, split: str, norm: str) -> None:
    from nni_robust.threat import eps_label

    first = next(s for found in spectra.values() for s in found.values())
    print(f"{first.n} {split} pictures of {data}, {norm}; accuracy at each eps")
    labels = [eps_label(eps) for eps in first.accuracy]
    rows, paper = [], first.mean() is not None
    for name, found in spectra.items():
        for attack, one in found.items():
            cells = [one.clean, *one.accuracy.values(), one.average, one.auc]
            if (mean := one.mean()) is not None:
                cells.append(mean)
            rows.append([name, attack, *(f"{cell:.2%}" for cell in cells), f"{one.seconds:.1f}"])
    header = ["network", "attack", "clean", *labels, "average", "area"]
    print_table([*header, *(["mean of 4"] if paper else []), "seconds"], rows)
    print("average: plain mean over the strengths; area: under accuracy over eps from 0, per eps")
    if paper:
        print("mean of 4: at 0.03, 0.1, 0.17 and 0.25, the average robust accuracy of Wsr-NAS")
    for name, found in spectra.items():
        for attack, one in found.items():
            print_reliability(one.reliability, f"{name}, {attack}")


def _draw(spectra: dict[str, dict[str, Spectrum]], path: str, norm: str) -> None:
    from nni_robust.report._spectrum import plot_spectra

    several = any(len(found) > 1 for found in spectra.values())
    named = {
        f"{name}, {attack}" if several or len(spectra) == 1 else name: one
        for name, found in spectra.items()
        for attack, one in found.items()
    }
    try:
        plot_spectra(named, norm=norm).savefig(path)
    except OSError as e:
        raise UserError(f"--plot '{path}' cannot be written: {e.strerror}") from None
    say(f"drawn into {path}")
