"""What an interrupted command says of how to go on: a note on the interrupt, which the front door prints."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def go_on_with(said: Callable[[], str]) -> Iterator[None]:
    """Should Ctrl-C end the work in this block, note ``said()``; a block within this one that has noted is kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not getattr(stop, "__notes__", []):
            stop.add_note(said())
        raise


def as_typed(path: Path) -> str:
    """A path as one would type it in a shell here: below the working folder relative to it."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
