"""``nni-robust bench estimator``: what estimated noise is worth, and what it costs."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from nni_robust.cli._arguments import (
    ARCH_HELP,
    add_data,
    add_json,
    add_threads,
    positive,
    set_threads,
    writable_folder,
)
from nni_robust.cli._console import print_json, print_table, say
from nni_robust.errors import UserError

if TYPE_CHECKING:
    from nni_robust.bench import Row

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the benchmark."""
    parser.description = (
        "Train small networks adversarially, train each noise estimator on the noises of all but "
        "the last, and compare estimated with real noise on held-out pictures: accuracy, relative "
        "L2 error, cosine, cost. Into DIR go estimator.csv and estimator.svg."
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: none kept)")
    parser.add_argument(
        "--networks",
        nargs="+",
        metavar="ARCH",
        help=f"at least two, the last is held out; each {ARCH_HELP} (default: three small ones)",
    )
    parser.add_argument(
        "--estimators", metavar="LIST", help="such as scale,basic (default: all of the library)"
    )
    add_data(parser)
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="repetitions (default 3; 1 with --quick)"
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="of the networks' training")
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help="fillings of the estimators' noise memory"
    )
    parser.add_argument(
        "--pictures", type=positive, metavar="N", help="held-out pictures to compare on"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smallest size: shows that it works, no more"
    )
    add_threads(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run, write, print."""
    folder = writable_folder(args.out) if args.out else None
    from nni_robust.architecture import load_architecture
    from nni_robust.bench import EstimatorBench, run_estimator_bench, write_rows

    set_threads(args)
    changes: dict[str, Any] = {"dataset": args.dataset, "root": args.root}
    if args.seeds is not None:
        changes["seeds"] = tuple(range(args.seeds))
    if args.estimators is not None:
        names = [name.strip() for name in args.estimators.split(",") if name.strip()]
        if len(set(names)) < len(names):
            raise UserError(f"--estimators: {', '.join(names)} names one twice")
        changes["estimators"] = tuple(names)
    for key in ("epochs", "rounds", "pictures"):
        if getattr(args, key) is not None:
            changes[key] = getattr(args, key)
    settings = EstimatorBench.quick(**changes) if args.quick else EstimatorBench(**changes)
    networks = [load_architecture(name) for name in args.networks] if args.networks else None
    began = time.perf_counter()
    rows = run_estimator_bench(settings, networks, say=say)
    seconds = time.perf_counter() - began
    if folder is not None:
        write_rows(folder / "estimator.csv", rows)
        _draw(rows, folder / "estimator.svg")
        say(f"written into {folder}")
    if args.json:
        print_json({"rows": rows, "summary": _summary(rows), "seconds": seconds})
        return 0
    _print(rows, seconds)
    return 0


def _summary(rows: list[Row]) -> list[Row]:
    """Means over networks of a kind, then mean and spread over seeds, per method, kind and eps."""
    from nni_robust.bench import spread

    out = []
    for seen in (1, 0):
        kind = [row for row in rows if row["seen"] == seen]
        for method in dict.fromkeys(row["method"] for row in kind):
            for eps in dict.fromkeys(row["eps"] for row in kind):
                found = [r for r in kind if r["method"] == method and r["eps"] == eps]
                seeds = dict.fromkeys(r["seed"] for r in found)

                def over(key: str, found: list[Row] = found, seeds: Any = seeds) -> Any:
                    each = [[r[key] for r in found if r["seed"] == s] for s in seeds]
                    return spread([sum(v) / len(v) for v in each])

                row: Row = {"method": method, "seen": seen, "eps": eps}
                for key in ("accuracy_real", "accuracy", "error", "cosine"):
                    row[key], row[f"{key}_std"] = over(key)
                for key in ("passes", "seconds", "training_passes", "training_seconds"):
                    row[key] = over(key)[0]
                out.append(row)
    return out


def _print(rows: list[Row], seconds: float) -> None:
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    print(
        f"{first['pictures']} held-out pictures of {first['dataset']}, {seeds} seed(s), "
        f"{seconds:.0f} s on {first['processor']}, {first['threads']} thread(s)"
    )
    table = [
        [
            row["method"],
            "learnt from" if row["seen"] else "held out",
            f"{row['eps']:g}",
            f"{row['accuracy_real']:.1%}",
            f"{row['accuracy']:.1%}",
            f"{row['error']:.3f}" + (f" ± {row['error_std']:.3f}" if seeds > 1 else ""),
            f"{row['cosine']:.4f}",
            f"{row['passes']:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['training_passes']:.0f}",
            f"{row['training_seconds']:.1f}",
        ]
        for row in _summary(rows)
    ]
    header = [
        "method",
        "network",
        "eps",
        "real",
        "estimated",
        "error",
        "cosine",
        "passes",
        "s/1000",
    ]
    print_table([*header, "training passes", "training s"], table)
    print("real, estimated: accuracy on that noise; error: relative L2 distance from real noise")


def _draw(rows: list[Row], path: Any) -> None:
    from nni_robust.report._spectrum import plot_estimates

    error: dict[str, dict[float, list[float]]] = {}
    gap: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if not row["seen"]:
            error.setdefault(row["method"], {}).setdefault(row["eps"], []).append(row["error"])
            gap.setdefault(row["method"], {}).setdefault(row["eps"], []).append(
                row["accuracy"] - row["accuracy_real"]
            )
    plot_estimates(error, gap).savefig(path, metadata={"Date": None})
