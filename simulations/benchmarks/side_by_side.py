"""Beside ``deface``, the released face blurrer: the same videos, the same machine, what each makes of damage.

``deface`` (MIT, https://github.com/ORB-HD/deface) lives in an environment of its own, since it brings its own OpenCV:

    python3 -m venv deface-env && deface-env/bin/pip install deface onnx onnxruntime
    python -m simulations.benchmarks.side_by_side --deface-python deface-env/bin/python \\
        --data MANIFEST --model RUN --out FOLDER

Both run as their users run them, in one process over all videos, with their defaults. What they make lies below
FOLDER afterwards, for ``fedspact evaluate RUN --delivered deface=FOLDER/deface --delivered ours=FOLDER/ours``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
from tqdm import tqdm

from client.video.rows import read_rows
from spact_models.errors import UserError

POSTFIX = "_anonymized"  # what deface calls its outputs
DEFACE = "import sys; from deface.deface import main; sys.exit(main())"
# How many faces deface's own detector finds in every frame, at deface's own threshold.
FACES = """
import json, sys
import imageio.v2 as iio
from deface.centerface import CenterFace
finder = CenterFace()
for path in sys.argv[1:]:
    print(json.dumps([len(finder(frame, threshold=0.2)[0]) for frame in iio.get_reader(path)]), flush=True)
"""
LONGEST_GAP = 5  # frames without a face between frames with one: a detector that blinked, not a person who turned away
SPOILED = 2048  # bytes
LOOKED_AT = 60  # videos, spread over all, for the detector alone: it costs as much as defacing


@dataclass(frozen=True)
class Ran:
    """One process over some videos; CPU seconds with its children's."""

    status: int
    seconds: float
    cpu_seconds: float
    said: str


def run_process(words: Sequence[str]) -> Ran:
    """Run a command to its end."""
    before, began = os.times(), time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Ran(done.returncode, time.monotonic() - began, cpu, (done.stdout + done.stderr).strip())


def frames_of(path: Path) -> int:
    """Frames that can be decoded; 0 where there is nothing."""
    if not path.is_file():
        return 0
    count = 0
    try:
        with av.open(str(path)) as file:
            for _ in file.decode(video=0):
                count += 1
    except (av.FFmpegError, IndexError):
        pass
    return count


def deface(python: Path, videos: Sequence[Path], out: Path) -> Ran:
    """Over all of ``videos``, in one process; its outputs, which it puts beside its inputs, are moved to ``out``."""
    ran = run_process([str(python), "-c", DEFACE, *map(str, videos)])
    out.mkdir(parents=True, exist_ok=True)
    for video in videos:
        made = video.with_name(video.stem + POSTFIX + video.suffix)
        if made.exists():
            made.replace(out / video.name)
    return ran


def ours(model: Path, videos: Sequence[Path], out: Path) -> Ran:
    """The same by ``fedspact anonymize``."""
    out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "fedspact", "anonymize", *map(str, videos), "-o", f"{out}/", "--model", str(model)]
    return run_process(words)


def blinks(faces: Sequence[int]) -> int:
    """Frames without a face in gaps of at most ``LONGEST_GAP`` between frames with one: shown as they are."""
    count, gap = 0, None
    for found in faces:
        if found:
            count += gap if gap is not None and gap <= LONGEST_GAP else 0
            gap = 0
        elif gap is not None:
            gap += 1
    return count


def missed(python: Path, videos: Sequence[Path]) -> dict[str, int]:
    """Where deface's detector finds anybody at all; what it does not find it shows.

    Raises:
        UserError: it did not run.
    """
    ran = run_process([str(python), "-c", FACES, *map(str, videos)])
    lines = [json.loads(line) for line in ran.said.splitlines() if line.startswith("[")]
    if len(lines) != len(videos):
        raise UserError(f"deface's detector ended after {len(lines)} of {len(videos)} videos: {ran.said[-300:]}")
    return {
        "videos": len(lines),
        "frames": sum(map(len, lines)),
        "frames_with_a_face": sum(bool(found) for line in lines for found in line),
        "videos_with_a_face": sum(any(line) for line in lines),
        "frames_between_without": sum(map(blinks, lines)),
    }


def damage(video: Path, folder: Path) -> dict[str, Path]:
    """Copies of one video: cut off, and with some bytes in the middle of its pictures overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    content = video.read_bytes()
    middle = content.find(b"mdat") + (len(content) - content.find(b"mdat")) // 2
    spoiled = content[:middle] + bytes(SPOILED) + content[middle + SPOILED :]
    copies = {"cut off": content[: 2 * len(content) // 3], "spoiled": spoiled, "no video": b"nothing\n" * 100}
    paths = {}
    for name, data in copies.items():
        paths[name] = folder / f"{name.replace(' ', '-')}{video.suffix}"
        paths[name].write_bytes(data)
    return paths


def _told(ran: Ran, frames: int) -> dict[str, Any]:
    return {
        "status": ran.status,
        "seconds": round(ran.seconds, 1),
        "cpu_seconds": round(ran.cpu_seconds, 1),
        "frames": frames,
        "frames_per_second": round(frames / ran.seconds, 1),
    }


def side_by_side(python: Path, model: Path, videos: Sequence[Path], out: Path) -> dict[str, Any]:
    """All of it; what is measured as JSON holds it.

    Raises:
        UserError: two videos of one name, or deface cannot be run.
    """
    if len({video.stem for video in videos}) < len(videos):
        raise UserError("two videos of one name: deface writes beside its inputs, so they are put in one folder")
    version = run_process([str(python), "-c", "import deface; print(deface.__version__)"])
    if version.status:
        raise UserError(f"--deface-python {python}: cannot import deface ({version.said.splitlines()[-1]})")
    inputs = out / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    copies = [Path(shutil.copy(video, inputs / video.name)) for video in videos]
    found: dict[str, Any] = {"deface": version.said, "videos": len(videos), "input_frames": sum(map(frames_of, copies))}
    with tqdm(total=5, desc="side by side", unit="part", disable=None) as bar:
        for name, run in (("deface", partial(deface, python)), ("ours", partial(ours, model))):
            ran = run(copies, out / name)
            made = (path for path in (out / name).iterdir() if path.suffix != ".json")
            found[f"by {name}"] = _told(ran, sum(map(frames_of, made)))
            bar.update()
        found["faces"] = missed(python, copies[:: -(-len(copies) // LOOKED_AT)])
        bar.update()
        for name, run in (("deface", partial(deface, python)), ("ours", partial(ours, model))):
            for kind, path in damage(videos[0], out / "damaged").items():
                target = out / f"damaged-{name}"
                ran = run([path], target)
                left = [frames_of(one) for one in target.glob(f"{path.stem}.*") if one.suffix != ".json"]
                told = {"status": ran.status, "frames": sum(left), "of": frames_of(videos[0]), "files": len(left)}
                found[f"{kind}, {name}"] = told | {"said": ran.said.splitlines()[-1][-200:] if ran.said else ""}
            bar.update()
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deface-python", type=Path, required=True, help="of an environment that holds deface")
    parser.add_argument("--data", type=Path, required=True, metavar="MANIFEST", help="the videos")
    parser.add_argument("--model", type=Path, required=True, metavar="RUN", help="run folder or anonymizer.safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="what both make of them")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N videos (default: all)")
    args = parser.parse_args(words)
    try:
        videos = [row.path for row in read_rows(args.data) if not row.is_image][: args.first]
        found = side_by_side(args.deface_python, args.model, videos, args.out)
    except UserError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
