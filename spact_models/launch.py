"""Commands of Flower's, printed and run: both halves of a federation start them, so that its documentation applies."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from spact_models.errors import UserError


def quoted(word: str) -> str:
    """A word as a shell takes it; around single quotes double ones, where these change nothing."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!\n') else shlex.quote(word)


def show_and_run(words: Sequence[str], only_print: bool) -> int:
    """Print a command as a shell takes it; then run it, unless ``only_print``. Returns its exit status.

    It is taken from the environment that this program runs in. Ctrl-C is the command's own matter.

    Raises:
        UserError: there is no such command.
    """
    print(" ".join(map(quoted, words)), flush=True)
    if only_print:
        return 0
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    environment.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    program = folder / words[0]
    try:
        process = subprocess.Popen([str(program) if program.exists() else words[0], *words[1:]], env=environment)
    except FileNotFoundError:
        raise UserError(f"{words[0]}: no such command; install flwr into this environment") from None
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the command as well, which ends in its own way
            continue
