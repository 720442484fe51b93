"""Policies in files: ``policy.safetensors`` and ``policy.json`` in a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nni_robust.errors import UserError
from nni_robust.policy.choices import Choice
from nni_robust.policy.policy import Policy
from nni_robust.store import read_json, write_json

__all__ = ["load_policy", "save_policy"]

_FORMAT = "nni-robust policy 1"


def save_policy(policy: Policy, folder: str | Path, about: dict[str, Any] | None = None) -> None:
    """Write a policy.

    Parameters
    ----------
    policy
        The policy.
    folder
        Made if it is not there.
    about
        JSON-able facts to keep with it, such as the tasks it was trained on.
    """
    from nni_robust.training.weights import save_weights

    folder = Path(folder)
    save_weights(policy.network, folder / "policy.safetensors", {"format": _FORMAT})
    write_json(
        folder / "policy.json",
        {
            "format": _FORMAT,
            "settings": policy.settings,
            "choices": [dataclasses.asdict(choice) for choice in policy.choices],
            "lipschitz": policy.lipschitz,
            "about": about or {},
        },
    )


def load_policy(folder: str | Path) -> Policy:
    """Read a policy that :func:`save_policy` wrote.

    Raises
    ------
    UserError
        If a file is missing or damaged, or the two do not belong together.
    """
    from nni_robust.training.weights import load_weights

    folder = Path(folder).expanduser()
    if not (folder / "policy.json").is_file() and (folder / "policy" / "policy.json").is_file():
        folder = folder / "policy"  # a run folder was given
    if not (folder / "policy.json").is_file():
        raise UserError(f"no policy in '{folder}': there is no file policy.json")
    value = read_json(folder / "policy.json")
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise UserError(f"'{folder / 'policy.json'}' is no policy of this program ({_FORMAT})")
    try:
        choices = [
            Choice(
                label=str(entry["label"]),
                position=int(entry["position"]),
                role=str(entry["role"]),
                ordered=bool(entry["ordered"]),
                values=tuple(entry["values"]),
                prior=tuple(float(weight) for weight in entry["prior"]),
            )
            for entry in value["choices"]
        ]
        policy = Policy(
            choices,
            hidden=int(value["settings"]["hidden"]),
            keep_bias=float(value["settings"]["keep_bias"]),
            seed=int(value["settings"]["seed"]),
        )
        lipschitz = value.get("lipschitz")
        policy.lipschitz = None if lipschitz is None else float(lipschitz)
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"'{folder / 'policy.json'}' is damaged: {type(e).__name__}: {e}") from None
    load_weights(policy.network, folder / "policy.safetensors")
    return policy
