"""One writer a run folder: a server that was thought dead must not write beside the one that took its place."""

from __future__ import annotations

import logging
import os
import weakref
from pathlib import Path
from typing import Any

from spact_models.errors import UserError

LOG = logging.getLogger("fedspact.server")


def lock_folder(owner: Any, path: Path) -> weakref.finalize[..., Any] | None:
    """Hold ``path`` for ``owner`` alone; calling what this returns, or the owner's end, lets it go.

    The lock lies on the folder itself and dies with the process, so nothing is left to clean up after a crash. Where
    the system has no such locks (Windows, some network disks) there is none.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"run folder {path}: another process writes to it. Wait for its end, or end it (`flwr stop`), before you "
            "resume the run."
        ) from None
    except OSError as error:
        LOG.debug("run folder %s: cannot be locked (%s)", path, error)
    return weakref.finalize(owner, os.close, descriptor)
