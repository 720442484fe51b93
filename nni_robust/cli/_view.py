"""``nni-robust view``: NNI's web UI of a run that has ended."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from nni_robust.errors import UserError, nearest

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Show a run that has ended in NNI's web UI, until Ctrl-C. 'nnictl view' does so for runs "
        "started by nnictl, but fails on those of 'nni-robust run', which are NAS experiments to "
        "NNI."
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--port", type=int, default=8080, help="port of the web UI (default: 8080)")
    parser.add_argument(
        "--experiment",
        metavar="ID",
        help="NNI's id of the experiment, for a run that was resumed (default: the last one)",
    )


def execute(args: argparse.Namespace) -> int:
    """Serve the web UI until somebody interrupts."""
    run = Path(args.run).resolve()
    if not run.is_dir():
        what = "is no folder" if run.exists() else "does not exist"
        raise UserError(f"run folder '{run}' {what}")
    known = _experiments(run)
    if not known:
        raise UserError(
            f"'{run}' holds no data of NNI; a run with 'nni.engine: sequential' leaves none"
        )
    chosen = args.experiment or known[-1]
    if chosen not in known:
        raise UserError(
            f"--experiment: '{chosen}' is not in '{run}'{nearest(chosen, known)} (it has: "
            f"{', '.join(known)})"
        )
    if not 1 <= args.port <= 65535:
        raise UserError(f"--port: {args.port} is not allowed; 1 to 65535 is")

    from nni.runtime.log import silence_stdout

    from nni_robust.nni_adapter.terminal import check_port, terminate_as_interrupt
    from nni_robust.nni_adapter.viewing import start_view

    check_port(args.port)
    silence_stdout()
    experiment = start_view(chosen, run / "nni", args.port)
    try:
        with terminate_as_interrupt():
            where = f"http://127.0.0.1:{args.port}"
            print(f"NNI experiment {chosen}: {where}  (Ctrl-C ends it)", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        experiment.stop()
    return 0


def _experiments(run: Path) -> list[str]:
    """NNI's ids of the experiments in a run folder, the latest last."""
    databases = [p for p in run.glob("nni/*/db/nni.sqlite") if not p.parents[1].is_symlink()]
    return [p.parents[1].name for p in sorted(databases, key=lambda p: p.stat().st_mtime)]
