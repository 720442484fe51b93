"""How NNI starts the trials of an experiment: interpreter, environment, and where the store is."""

from __future__ import annotations

import copy
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust import registry
from nni_robust.config import as_mapping
from nni_robust.errors import UserError
from nni_robust.nni_adapter.channel import TRIAL_ENVIRONMENT
from nni_robust.redaction import redact, resolve
from nni_robust.store import URL, write_json

if TYPE_CHECKING:
    from .schema import Experiment

__all__ = [
    "check_started_by_run",
    "manager_ip",
    "on_machines",
    "platform",
    "serves_store",
    "service_mapping",
    "training_service",
    "trial_code",
    "trial_command",
    "trial_environment",
    "trial_interpreter",
]


#: Platforms that are machines.
_MACHINES = ("local", "remote")


def on_machines(settings: Experiment) -> bool:
    """Whether trials run on machines and not in a cluster.

    There they follow each other, NNI gives them parameters through a channel, and a NAS experiment
    of NNI can use them.
    """
    return platform(settings) in _MACHINES


def trial_interpreter(settings: Experiment) -> str:
    """What stands before ``-m MODULE`` in a trial's command, ready for a shell.

    Raises
    ------
    UserError
        If the remote machines name different folders of their interpreters.
    """
    python = _python(settings)
    if _forks(settings):
        return f"{shlex.quote(python)} -m nni_robust.nni_adapter.warm"
    return shlex.quote(python)


def _python(settings: Experiment) -> str:
    if settings.nni.trial_python is not None:
        return settings.nni.trial_python
    if platform(settings) == "local":
        return sys.executable
    # pythonPath is a folder that NNI puts before PATH, where the machine's shell may undo it.
    folders = {machine.python_path for machine in _machines(settings)}
    if len(folders) > 1:
        raise UserError(
            "nni.trial_python is missing: the machines have different pythonPath "
            f"({', '.join(sorted(map(str, folders)))}), and all trials have one command; give the "
            "interpreter's path that holds on all of them, or python3 to take each machine's PATH"
        )
    folder = next(iter(folders), None)
    return f"{folder}/python" if folder else "python3"


def check_started_by_run(settings: Experiment) -> None:
    """Refuse the platforms that only ``nnictl create`` starts.

    Raises
    ------
    UserError
        If the trials are to run on such a one.
    """
    if settings.nni.engine == "ts" and not on_machines(settings):
        raise UserError(
            f"nni.training_service.platform: {platform(settings)!r} is not allowed with "
            "'nni-robust run' "
            f"(allowed: {', '.join(_MACHINES)}); 'nni-robust nni-config' writes a configuration "
            "for 'nnictl create'"
        )


def trial_command(settings: Experiment, store: Path) -> str:
    """The whole command of a trial that ``nnictl`` starts, ready for a shell.

    On a cluster NNI hands every trial its own parameters, so the repair of its channel is left out.
    """
    variables = " ".join(f"{key}={value}" for key, value in trial_environment(settings).items())
    where = shlex.quote(str(store)) if not serves_store(settings) else "."
    parts = [
        variables,
        TRIAL_ENVIRONMENT if on_machines(settings) else "",
        trial_interpreter(settings),
    ]
    return " ".join([*filter(None, parts), f"-m nni_robust.nni_adapter.job {where}"])


def service_mapping(settings: Experiment, command: str, code: Path) -> dict[str, Any]:
    """NNI's settings of the training service for ``nnictl``, with what follows from the rest.

    On Kubernetes each role has a command and a folder of its own; one that says nothing else runs
    the trial.
    """
    service = copy.deepcopy(settings.nni.training_service)
    if settings.nni.trial_gpus and platform(settings) == "local":
        service.setdefault("useActiveGpu", True)  # a desktop's only GPU is always active
    roles = [service.get(name) for name in ("worker", "ps", "master")]
    for role in [*roles, *(service.get("taskRoles") or [])]:
        if isinstance(role, dict):
            role.setdefault("command", command)
            if platform(settings) == "kubeflow":
                role.setdefault("codeDirectory", str(code))
    return service


def trial_environment(settings: Experiment) -> dict[str, str]:
    """Environment variables of every trial; nothing secret, for NNI's web UI shows them."""
    variables = _threads(settings)
    if serves_store(settings):
        variables[URL] = f"http://{manager_ip(settings)}:{settings.nni.store_port}"
    if settings.nni.log:
        from nni_robust.trial import LOG

        variables[LOG] = ",".join(settings.nni.log)
    return variables


def _threads(settings: Experiment) -> dict[str, str]:
    """Trials side by side share the cores; torch would give every one of them all."""
    threads = settings.nni.trial_threads
    if threads is None and platform(settings) != "local":
        return {}  # nobody knows here how many cores there are
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = threads or max(1, cores // settings.nni.concurrency)
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _modules(settings: Experiment) -> list[str]:
    """Modules that every trial needs, imported once before the fork."""
    parts = (
        (registry.search_spaces, settings.space.name),
        (registry.evaluators, settings.evaluator.name),
        (registry.strategies, settings.strategy.name),  # its phases are trials
    )
    found = []
    for known, name in parts:
        cls = known.get(name)
        found.append(getattr(cls, "__wrapped__", cls).__module__)
    return list(dict.fromkeys(found))


def serves_store(settings: Experiment) -> bool:
    """Whether trials reach the store over HTTP, and not as files."""
    nni = settings.nni
    over_http = nni.store == "http" or (nni.store == "auto" and platform(settings) != "local")
    return nni.engine == "ts" and over_http


def manager_ip(settings: Experiment) -> str:
    """Address under which the trials' machines reach this one.

    Raises
    ------
    UserError
        If it is not given and cannot be found out.
    """
    if settings.nni.manager_ip is not None:
        return settings.nni.manager_ip
    if platform(settings) == "local":
        return "127.0.0.1"
    try:
        machine = _machines(settings)[0]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((machine.host, machine.port))  # sends nothing
            return str(s.getsockname()[0])
    except (OSError, IndexError):
        raise UserError(
            "nni.manager_ip is missing: the address under which the trials' machines reach this one"
        ) from None


def platform(settings: Experiment) -> str:
    """NNI's name of the training service."""
    return str(settings.nni.training_service.get("platform"))


def _machines(settings: Experiment) -> list[Any]:
    return list(getattr(training_service(settings), "machine_list", None) or [])


def training_service(settings: Experiment) -> Any:
    """NNI's own settings object of the training service.

    Raises
    ------
    UserError
        If NNI does not know the platform or one of the keys, or an environment variable is missing.
    """
    from nni.experiment.config.training_service import TrainingServiceConfig
    from nni.experiment.config.utils import load_training_service_config

    given = settings.nni.training_service
    shown = redact(given)
    try:
        service = load_training_service_config(resolve(given, "nni.training_service"))
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError) as e:
        raise UserError(f"nni.training_service: {shown!r} is not allowed: {e}") from e
    if settings.nni.trial_gpus and getattr(service, "use_active_gpu", True) is None:
        service.use_active_gpu = True  # NNI wants an answer; a desktop's only GPU is always active
    if not isinstance(service, TrainingServiceConfig):
        raise UserError(
            f"nni.training_service: {shown!r} names no platform of NNI, such as local or remote"
        )
    return service


def trial_code(settings: Experiment, run: Path) -> Path:
    """The folder whose content goes to the trials' machines; there is no code of ours in it.

    Never the checkout: its folders have names, such as ``strategies``, that would hide other
    packages from a trial, and it may hold anything.
    """
    folder = run / "trial_code"
    folder.mkdir(parents=True, exist_ok=True)
    if _forks(settings):
        from nni_robust.nni_adapter.warm import PRELOAD

        what = {"modules": _modules(settings), "task": as_mapping(settings.task)}
        write_json(folder / PRELOAD, what)
    if serves_store(settings):
        from nni_robust.store_server import make_token

        make_token(folder)
    return folder


def _forks(settings: Experiment) -> bool:
    """Whether trials are forked: where those of an experiment follow each other on a machine."""
    nni = settings.nni
    return nni.engine == "ts" and nni.fork_trials and on_machines(settings)
