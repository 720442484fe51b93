"""How numbers and names are written in tables, cards and captions."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = [
    "MISSING",
    "attack_name",
    "attack_parts",
    "count",
    "duration",
    "exact",
    "interval",
    "number",
    "percent",
]

MISSING = "–"

_SPELLING = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "mifgsm": "MI-FGSM",
    "mi-fgsm": "MI-FGSM",
    "cw": "CW",
    "apgd": "APGD",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "fab": "FAB",
    "fab-t": "FAB-T",
    "square": "Square",
    "deepfool": "DeepFool",
    "autoattack": "AutoAttack",
    "autoattack-light": "AutoAttack light",
}


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (a failed trial has no numbers)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: Any) -> str:
    """An accuracy in [0, 1] as percent, one decimal, no sign: ``0.523`` → ``"52.3"``."""
    share = number(value)
    return MISSING if share is None else f"{100 * share:.1f}"


def interval(share: Any, pictures: Any) -> str:
    """What an accuracy may be by chance: ``"45.1 to 59.4"`` for 0.523 of 188 pictures.

    Wilson's 95 % interval in percent; empty where either is missing.
    """
    value, n = number(share), number(pictures)
    if value is None or n is None or n < 1 or not 0 <= value <= 1:
        return ""
    from scipy.stats import binomtest

    found = binomtest(round(value * n), round(n)).proportion_ci(method="wilson")
    return f"{percent(found.low)} to {percent(found.high)}"


def count(value: Any) -> str:
    """A count with three significant digits: ``4359574`` → ``"4.36 M"``, ``950`` → ``"950"``."""
    amount = number(value)
    if amount is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 0.9995 of a unit would be written as "1000" of the one below
        if abs(amount) >= 0.9995 * size:
            scaled = amount / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{amount:g}"


def exact(value: Any) -> str:
    """The same count in full: ``"4,359,574"``."""
    amount = number(value)
    return MISSING if amount is None else f"{amount:,.0f}" if amount.is_integer() else f"{amount:,}"


def duration(value: Any) -> str:
    """Seconds for people: ``"4.2 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    seconds = number(value)
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def attack_parts(key: str) -> tuple[str, str]:
    """Split a metric key: ``"pgd20@8/255"`` → ``("PGD-20", "8/255")``."""
    label, _, eps = key.partition("@")
    spelled = _SPELLING.get(label.lower())
    match = re.fullmatch(r"([a-zA-Z-]+?)-?(\d+)", label)
    if spelled is None and match and match[1].lower() in _SPELLING:
        spelled = f"{_SPELLING[match[1].lower()]}-{match[2]}"
    return spelled or label, eps


def attack_name(key: str) -> str:
    """``"pgd20@8/255"`` → ``"PGD-20, eps 8/255"``."""
    name, eps = attack_parts(key)
    return f"{name}, eps {eps}" if eps else name
