"""The one kind of error that is a user's mistake and not ours."""


class UserError(Exception):
    """Something the user can mend: a path, a key, a value, a video.

    The message names the thing, its value, the rule and the remedy, for example
    ``clip.stride_frames = 0, must be at least 1 (1 = every frame)``. The front door prints it without a
    traceback and exits with status 2.
    """


class RunStopped(Exception):
    """A run that cannot go on, through nobody's typing: too few sites, or too few valid replies for too long."""
