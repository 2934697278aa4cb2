"""Which inputs become which outputs: files, globs, folders, one by one. Decided before anything is read."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.anonymize.opening import is_address, is_camera, without_secret
from client.anonymize.sink import CONTAINERS, container_of
from client.video.folders import VIDEO_SUFFIXES
from spact_models.errors import UserError

PIPE = "-"


@dataclass(frozen=True)
class Job:
    """One input and its output; ``output`` None is standard output."""

    source: str
    output: Path | None

    @property
    def bytes(self) -> int:
        """Of the input, for the progress bar; 0 where nobody knows."""
        try:
            return Path(self.source).stat().st_size if self.is_file else 0
        except OSError:
            return 0

    @property
    def is_file(self) -> bool:
        return self.source != PIPE and not is_address(self.source) and not is_camera(self.source)

    @property
    def shown(self) -> str:
        return "standard input" if self.source == PIPE else without_secret(self.source)


def plan(inputs: Sequence[str], out: str, suffix: str) -> list[Job]:
    """The jobs of a command line.

    One file, camera, address or pipe goes to the file ``out``, or into the folder ``out``. A folder's tree is mirrored
    in the folder ``out``; of several inputs each folder's tree lies under its own name. Inside a folder outputs have
    ``suffix``; where two inputs would meet (a.avi and a.mov) both keep their own suffix too.

    Raises:
        UserError: nothing there, an output that is its own input or lies inside one, or two outputs of one name.
    """
    found = [name for given in inputs for name in _expanded(given)]
    single = len(found) == 1 and not Path(found[0]).is_dir()
    if out == PIPE:
        if not single:
            raise UserError(f"--out -: {len(found)} inputs, must be one video; name a folder")
        return [Job(found[0], None)]
    target = Path(out).expanduser()
    if single and not target.is_dir() and not out.endswith("/") and (target.suffix or found[0] == PIPE):
        container_of(target)
        jobs = [Job(found[0], target)]
    else:
        jobs = _into_folder(found, target, suffix)
    for job in jobs:
        _check(job)
    return jobs


def _expanded(given: str) -> list[str]:
    if given == PIPE or is_address(given) or is_camera(given):
        return [given]
    path = Path(given).expanduser()
    if path.exists() or not glob.has_magic(given):
        return [str(path)]
    found = sorted(name for name in glob.glob(str(path), recursive=True) if _is_video(Path(name)))  # noqa: PTH207
    if not found:
        raise UserError(f"{given}: no video has such a name")
    return found


def _into_folder(found: Sequence[str], target: Path, suffix: str) -> list[Job]:
    if target.exists() and not target.is_dir():
        raise UserError(f"--out {target}: a file, must be a folder for {len(found)} inputs")
    pairs: list[tuple[str, Path]] = []
    for name in found:
        path = Path(name)
        if name == PIPE:
            pairs.append((name, Path("stdin")))
        elif is_address(name) or is_camera(name):
            pairs.append((name, Path(without_secret(name).partition("://")[2].replace("/", "_") or path.name)))
        elif path.is_dir():
            pairs += _tree(path, target, Path(path.name) if len(found) > 1 else Path())
        else:
            pairs.append((name, Path(path.name)))
    met = Counter(place.with_suffix(suffix) for _, place in pairs)
    jobs = []
    for name, place in pairs:
        alone = met[place.with_suffix(suffix)] == 1
        jobs.append(Job(name, target / (place.with_suffix(suffix) if alone else place.with_name(place.name + suffix))))
    twice = [output for output, count in Counter(job.output for job in jobs).items() if count > 1]
    if twice:
        both = ", ".join(job.shown for job in jobs if job.output == twice[0])
        raise UserError(f"{twice[0]}: would be the output of {both}; give them one after the other")
    return jobs


def _tree(folder: Path, target: Path, top: Path) -> list[tuple[str, Path]]:
    inside, outside = target.resolve(), folder.resolve()
    if inside == outside or inside.is_relative_to(outside):
        raise UserError(f"--out {target}: lies inside the input {folder}, where outputs would become inputs")
    files = sorted(path for path in folder.rglob("*") if _is_video(path) and path.is_file())
    if not files:
        raise UserError(f"{folder}: holds no videos ({', '.join(sorted(VIDEO_SUFFIXES)[:6])}, …)")
    return [(str(path), top / path.relative_to(folder)) for path in files]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | set(CONTAINERS) and not path.name.startswith(".")


def _check(job: Job) -> None:
    if job.output is None:
        return
    container_of(job.output)
    if job.output.is_dir():
        raise UserError(f"--out {job.output}: is a folder, must be a file")
    if job.is_file and job.output.exists() and Path(job.source).exists() and job.output.samefile(job.source):
        raise UserError(f"--out {job.output}: is the input itself; raw video is never overwritten, name another file")
