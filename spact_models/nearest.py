"""The known name that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.6  # of difflib's ratio, 0 to 1: a letter or two wrong; below it a guess misleads more than it helps


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that ``word`` is near to; empty where none is."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=NEAR)
    return found[0] if found else ""


def known_names(word: str, known: Iterable[str]) -> str:
    """A sentence for who wrote ``word``: the nearest known name, or where none is near all of them."""
    names = list(known)
    near = nearest(word, names)
    return f"The nearest known one is {near!r}." if near else f"Known are: {', '.join(names)}."


def known_settings(key: str, known: Iterable[str]) -> str:
    """As :func:`known_names` for keys such as ``game.omega``: of a section that is known the other half decides."""
    names = list(known)
    section, dot, leaf = key.rpartition(".")
    inside = [name for name in names if dot and name.rpartition(".")[0] == section]
    near = nearest(leaf, [name.rpartition(".")[2] for name in inside])
    if near:
        return f"The nearest known one is {f'{section}.{near}'!r}."
    if inside:
        moved = [name for name in names if name.rpartition(".")[2] == leaf]  # the right name in the wrong section
        if moved:
            return f"The nearest known one is {moved[0]!r}."
        return f"In {section} there are: {', '.join(name.rpartition('.')[2] for name in inside)}."
    near = nearest(key, names)
    ends = [name for name in names if name.rpartition(".")[2] == leaf]
    if ends or near:
        return f"The nearest known one is {(ends or [near])[0]!r}."
    return "`fedspact check` shows them all."
