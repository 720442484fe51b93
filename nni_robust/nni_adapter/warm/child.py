"""What a fork of the warm process renews, so that it is as good as a new process.

NNI reads its environment once, when it is imported; here it is read again. Written for NNI 3.0.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import runpy
import signal
import sys
import threading
import traceback
import warnings
from typing import Any, NoReturn

__all__ = ["become"]


def become(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Turn this fork into ``python -m argv`` of the request; does not return.

    Parameters
    ----------
    request
        ``argv``, ``cwd`` and ``environment`` of the trial command.
    fds
        Its standard output and error.
    """
    code = 1
    try:
        _renew_process(request, fds)
        _renew_nni()
        code = _run(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _renew_process(request: dict[str, Any], fds: list[int]) -> None:
    os.setsid()  # killed as a whole, with processes of its own
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in zip((1, 2), fds, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]  # as with `python -m`
    random.seed()  # a new process draws numbers of its own
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


def _renew_nni() -> None:
    """What NNI keeps of the environment since its import: names, ids, logging."""
    if "nni" not in sys.modules:
        return
    import nni.trial
    from nni.runtime import env_vars, log

    fresh = env_vars._load_env_vars(env_vars._trial_env_var_names)
    for name, module in list(sys.modules.items()):
        if name.startswith("nni.") and hasattr(module, "trial_env_vars"):
            module.trial_env_vars = fresh  # type: ignore[attr-defined]
    nni.trial._experiment_id = fresh.NNI_EXP_ID or "STANDALONE"
    nni.trial._trial_id = fresh.NNI_TRIAL_JOB_ID or "STANDALONE"
    nni.trial._sequence_id = int(fresh.NNI_TRIAL_SEQ_ID or 0)
    log._init_logger()


def _run(argv: list[str]) -> int:
    sys.argv = list(argv)
    try:
        with warnings.catch_warnings():
            # The module may be imported already; runpy runs it anew, which is what is wanted.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
            return 1
        return int(e.code or 0)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _flush() -> None:
    """What the interpreter does at its end, which ``os._exit`` leaves out."""
    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
