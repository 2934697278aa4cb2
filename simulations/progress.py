"""Progress of long work on standard error: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_A_LINE = 30.0


class _Log:
    """Standard error for a bar that is no terminal's: each state a line, and nothing drawn over."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


class _Lines(tqdm):  # type: ignore[type-arg] # tqdm is no generic class at run time
    """A bar whose every change would be a line: words that change alone are no news."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:  # noqa: ARG002
        super().set_postfix_str(s, refresh=False)


def progress_bar(desc: str, unit: str, total: int | None = None, shown: bool = True) -> tqdm[Any]:
    """A bar of ``total`` units, to be used as a context; none where ``shown`` is false or ``TQDM_DISABLE`` is set."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=unit, leave=False, disable=not shown)
    return _Lines(
        total=total,
        desc=desc,
        unit=unit,
        disable=not shown,
        file=_Log(),
        ncols=0,
        mininterval=SECONDS_A_LINE,
        maxinterval=SECONDS_A_LINE,
        miniters=1,
    )
