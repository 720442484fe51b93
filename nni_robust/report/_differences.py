"""In what the settings of several runs differ, and which of that forbids to compare figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nni_robust.report import _format as fmt
from nni_robust.report._run import Run, attack_keys

__all__ = ["differences", "flat", "incomparable"]

#: Settings that say nothing about what was measured.
_SILENT = ("name", "nni", "task.root", "final.examples")
#: Settings that move accuracy whatever was searched: data, threat, recipe, test.
_WEIGHTY = {
    "data": ("task.dataset", "task.validation", "task.train_limit", "task.validation_limit"),
    "test pictures": ("task.test_limit", "final.limit"),
    "threat model": ("task.threat",),
    "recipe of the final training": ("final.train",),
    "teacher": ("task.teacher",),
    "attacks of the test": ("final.attacks",),
}
_ABSENT = object()


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys: ``{"task.threat.eps": 0.1, …}``; lists are values."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix: settings} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def differences(
    labels: Sequence[str], settings: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Every setting in which the runs differ.

    Returns
    -------
    list of dict
        ``key`` (dotted), ``values`` (texts, one per run; a dash where a run has no such setting)
        and ``weighs``: what it changes besides the search, or an empty text. Weighty ones first.
    """
    columns = [flat(one) for one in settings]
    assert len(columns) == len(labels)
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key, _ABSENT) for column in columns]
        if _within(key, _SILENT) or all(_same(value, values[0]) for value in values):
            continue
        weighs = next((what for what, keys in _WEIGHTY.items() if _within(key, keys)), "")
        rows.append({"key": key, "values": [_text(value) for value in values], "weighs": weighs})
    return sorted(rows, key=lambda row: not row["weighs"])


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _text(value: Any) -> str:
    if value is _ABSENT:
        return fmt.MISSING
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def incomparable(runs: Sequence[Run]) -> list[str]:
    """What differs between the runs besides their search, in words; empty where nothing does."""
    found = [
        row["weighs"]
        for row in differences([run.name for run in runs], [run.config for run in runs])
        if row["weighs"]
    ]
    unknown = sum(not run.config for run in runs)
    if unknown:
        found.append(f"settings (those of {unknown} of {len(runs)} runs are not known)")
    tested = [run.networks for run in runs if run.networks]
    pictures = {fmt.number(n.get("pictures")) for networks in tested for n in networks}
    if len(pictures - {None}) > 1:
        found.append("test pictures")
    if len({tuple(sorted(attack_keys(networks))) for networks in tested}) > 1:
        found.append("attacks of the test")
    return list(dict.fromkeys(found))
