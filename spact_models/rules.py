"""What a field of a configuration may hold, and what is said where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from spact_models.errors import UserError

PRESET: Any = "preset"  # the preset decides; typed Any so that a field keeps the type of its resolved value


def refuse(condition: bool, text: str) -> None:
    """Raise a :class:`UserError` of this text where the condition holds."""
    if condition:
        raise UserError(text)


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raise a :class:`UserError` that names the field, its value and the rule it breaks."""
    if not condition:
        raise UserError(f"{name} = {value!r}, {rule}")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """:func:`require` that the value is among the known ones."""
    require(value in known, name, value, f"must be one of: {', '.join(known)}")


def positive(config: object, *names: str) -> None:
    """:func:`require` that these fields are finite and above 0."""
    for name in names:
        value = getattr(config, name)
        require(math.isfinite(value) and value > 0, name, value, "must be above 0")


def at_least(config: object, least: float, *names: str) -> None:
    """:func:`require` that these fields are finite and no less than ``least``."""
    for name in names:
        value = getattr(config, name)
        require(math.isfinite(value) and value >= least, name, value, f"must be at least {least}")
