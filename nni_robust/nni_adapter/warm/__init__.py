"""Trials that start in a blink: forked from a process that has imported torch and NNI already.

Importing torch, Lightning and ``nni.nas`` takes four to eight seconds, which NNI pays for every
trial. Put in front of a trial's module, ::

    python -m nni_robust.nni_adapter.warm MODULE [ARGUMENT …]

runs ``python -m MODULE ARGUMENT …`` as a fork of a warm process, the same to the eye of NNI: its
output goes where this command's output goes, it ends with its exit code, and ends when this command
is killed. The first trial of an experiment on a machine starts the warm process, which ends with
NNI's manager (or trial keeper). Where anything about it fails, the module runs in this very
process, slower and otherwise the same.

==============  ===================================================================================
`__main__`      the command: light, it imports nothing but the standard library
`_protocol`     what the two say to each other
`server`        the warm process
`child`         what a fork must renew to be as good as a new process
==============  ===================================================================================
"""

from __future__ import annotations

__all__ = ["PRELOAD"]

#: File of the trial code that says what the warm process reads before it forks: a JSON mapping
#: with ``modules`` (names) and ``task`` (settings of a :class:`nni_robust.task.Task`).
PRELOAD = ".nni-robust-preload.json"
