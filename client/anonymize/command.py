"""``fedspact anonymize``: files, folders, cameras and pipes through a trained anonymizer.

Exit status: 0 everything is anonymized (a motion model's first frames are black, as they must be); 3 all is written,
but frames are black or missing because the input was damaged, cut off or silent; 1 inputs were refused; 2 a mistake in
the command; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from client.anonymize.job import Account, HowTo, anonymize_video
from client.anonymize.model import open_model
from client.anonymize.opening import is_address
from client.anonymize.plan import Job, plan
from client.anonymize.preview import PICTURE_HEIGHT, Gallery, open_gallery
from client.anonymize.sidecar import finished, write_json
from client.anonymize.sink import Encoding
from client.anonymize.source import open_source
from client.anonymize.stream import StreamAnonymizer
from client.video.decode import UnreadableVideo
from spact_models.checkpoint import ANONYMIZER_FILE
from spact_models.errors import UserError
from spact_models.interrupted import go_on_with
from spact_models.seeds import pick_device
from spact_models.speed import keep_freed_memory

SUMMARY = "anonymize.json"  # in the output folder: what was done and what was refused
SHOWN = 5  # names on the terminal; the summary has them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own flags."""
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="file, glob, folder, - (pipe), /dev/video0, rtsp://…"
    )
    parser.add_argument("-o", "--out", required=True, help="file, folder, or - for standard output (Matroska)")
    parser.add_argument("--model", required=True, type=Path, help=f"run folder or {ANONYMIZER_FILE}")
    parser.add_argument("--signed-only", action="store_true", help="refuse a model that no trusted key has signed")
    parser.add_argument("--height", type=int, help="of the output; default: the input's")
    parser.add_argument("--codec", help="h264 (default), hevc, vp9 (default in .webm), av1, ffv1")
    parser.add_argument("--crf", type=int, help="quality, lower is better; default: the codec's usual one")
    parser.add_argument("--container", default="mp4", choices=["mp4", "mov", "mkv", "webm"], help="inside folders")
    parser.add_argument("--keep-audio", action="store_true", help="copy the sound; it is dropped: voices identify")
    parser.add_argument("--batch", type=int, default=16, help="frames through the network together (16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--working-size", type=int, metavar="PX", help="other than the model's; see the next flag")
    parser.add_argument("--allow-unjudged-size", action="store_true", help="take a working size that nobody has judged")
    parser.add_argument("--smooth", type=float, default=0.0, metavar="SHARE", help="of the frame before; 0 = off")
    parser.add_argument("--seconds", type=float, help="stop after so much video (cameras: otherwise until Ctrl-C)")
    parser.add_argument(
        "--retry-seconds", type=float, default=60.0, help="how long a silent address is tried again (60)"
    )
    parser.add_argument(
        "--preview", action="store_true", help="also a page that compares input and output; it holds RAW video"
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that exist, finished ones too")


def run(args: argparse.Namespace) -> int:
    """Anonymize all inputs; one that cannot be read does not stop the others."""
    _check(args)
    how, note = _how_to(args)
    keep_freed_memory()
    jobs = plan(args.inputs, args.out, f".{args.container}")
    if any(not job.is_file or Path(job.source).is_file() for job in jobs):  # else another mistake is the one to tell
        _say(note)
    results = _Results(single=len(jobs) == 1)
    gallery = open_gallery(jobs, args.out, args.force) if args.preview else None
    with go_on_with(lambda: _onward(args)), _bar(jobs) as bar, _signals(jobs) as stopped:
        for number, job in enumerate(jobs, 1):
            bar.set_description(f"{number}/{len(jobs)} {Path(job.shown).name}"[:40])
            _one(job, how, args, results, bar, stopped, gallery)
            if stopped():
                break
    summary = Path(args.out).expanduser() / SUMMARY
    try:
        if jobs[0].output is not None and not results.single:
            write_json(summary, {"model": how.model, "settings": how.settings, **results.told()})
    except UserError:
        _say(results.sentence(None))
        raise
    _say(results.sentence(summary))
    if gallery is not None and gallery.write(how.model):
        _say(f"preview: {gallery.path}")
    return 1 if results.refused else 3 if results.with_losses else 0


def _say(line: str) -> None:
    if line:
        print(line, file=sys.stderr)


def _onward(args: argparse.Namespace) -> str:
    without = " without --force" if args.force else ""
    return f"go on with: the same command again{without}; videos that are finished stay"


@dataclass
class _Results:
    single: bool
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    with_losses: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    frames: int = 0
    black: int = 0

    def told(self) -> dict[str, Any]:
        return {"done": self.done, "skipped": self.skipped, "with_losses": self.with_losses, "refused": self.refused}

    def sentence(self, summary: Path | None) -> str:
        """For the terminal. ``summary`` is the file that lists all of it; None: it could not be written."""
        parts = [f"{len(self.done)} anonymized ({self.frames} frames, {self.black} of them black)"]
        if not self.done:
            parts = ["nothing was left to do"] if self.skipped and not self.refused else ["nothing was anonymized"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} finished before and left as they are (--force replaces them)")
        if self.with_losses:
            parts.append(f"{len(self.with_losses)} with losses: {', '.join(self.with_losses[:SHOWN])}")
        if not self.refused:
            return "; ".join(parts)
        lines = ["; ".join([*parts, f"{len(self.refused)} refused:"])]
        lines += [f"  {one['reason']}" for one in self.refused[:SHOWN]]
        if len(self.refused) > SHOWN:
            lines.append(f"  … {len(self.refused) - SHOWN} more")
        return "\n".join([*lines, f"all are listed in {summary}"] if summary is not None else lines)


def _one(
    job: Job, how: HowTo, args: argparse.Namespace, results: _Results, bar: Any, stopped: Any, gallery: Gallery | None
) -> None:
    before = bar.n
    try:
        if _is_done(job, how, args.force, results):
            return
        clip = gallery.clip(Path(job.shown).name) if gallery is not None else None
        raw_height = PICTURE_HEIGHT if clip is not None else 0
        source = open_source(job.source, how.streams.size_px, args.retry_seconds, how.keep_audio, raw_height)
        target = job.output if job.output is not None else sys.stdout.buffer

        def progress(seconds: Fraction, frames: int) -> None:
            share = min(1.0, float(seconds / source.seconds)) if source.seconds else 0.0
            bar.update(int(job.bytes * share) - (bar.n - before) if bar.total else frames)

        account = anonymize_video(source, target, how, progress, clip.add if clip is not None else None, stopped)
        if gallery is not None and clip is not None:
            gallery.keep(clip, account)
        _count(job, account, results)
    except UnreadableVideo as error:
        if results.single:
            raise UserError(f"{job.shown}: {error.reason}") from error
        results.refused.append({"name": Path(job.shown).name, "reason": f"{job.shown}: {error.reason}"})
    except UserError as error:
        if results.single:
            raise
        results.refused.append({"name": Path(job.shown).name, "reason": str(error)})
    finally:
        if bar.total:
            bar.update(job.bytes - (bar.n - before))


def _is_done(job: Job, how: HowTo, force: bool, results: _Results) -> bool:
    """Whether an earlier run has finished this output.

    Raises:
        UserError: there is one of another making, and nobody said to replace it.
    """
    if job.output is None or force or not job.output.exists():
        return False
    told = finished(job.output, Path(job.source), how.model, how.settings) if job.is_file else None
    if told is None:
        raise UserError(f"{job.output}: exists, and not from this input, model and settings; replace it with --force")
    results.skipped.append(job.output.name)
    if not told["complete"]:
        results.with_losses.append(job.output.name)
    return True


def _count(job: Job, account: Account, results: _Results) -> None:
    name = job.output.name if job.output is not None else "standard output"
    results.done.append(name)
    results.frames += account.frames
    results.black += sum(account.black.values())
    if not account.whole:
        results.with_losses.append(name)


def _how_to(args: argparse.Namespace) -> tuple[HowTo, str]:
    """How to work, and what its user is told of the model."""
    model = open_model(args.model, args.signed_only)
    own = model.anonymizer.config.size_px
    working_px = own if args.working_size is None else args.working_size
    if working_px != own and not args.allow_unjudged_size:
        raise UserError(
            f"--working-size {working_px}: this model was judged at {own}; what it hides at another size nobody has "
            "measured; add --allow-unjudged-size to take it all the same (the sidecar will say so)"
        )
    device = pick_device(args.device)
    streams = StreamAnonymizer(model.anonymizer, device, args.precision, working_px, args.smooth)
    settings = {
        "working_px": working_px,
        "judged_size": working_px == own,
        "smooth": args.smooth,
        "judged_smoothing": not args.smooth,
        "precision": args.precision,
        "height": args.height,
        "codec": args.codec,
        "crf": args.crf,
        "audio": "copied" if args.keep_audio else "dropped",
        "seconds": args.seconds,
    }
    encoding = Encoding(args.codec, args.crf, args.height)
    how = HowTo(streams, encoding, model.described, settings, args.batch, args.keep_audio, args.seconds)
    return how, model.note


def _check(args: argparse.Namespace) -> None:
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: must be at least 1")
    if args.seconds is not None and args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds:g}: must be above 0")
    if args.retry_seconds < 0:
        raise UserError(
            f"--retry-seconds {args.retry_seconds:g}: must be at least 0 (0 = a stream that drops has ended)"
        )
    if args.keep_audio and any(is_address(name) for name in args.inputs):
        raise UserError("--keep-audio: not for addresses, whose sound does not survive a lost connection; leave it out")


def _bar(jobs: list[Job]) -> Any:
    total = sum(job.bytes for job in jobs)
    unit = {"unit": "B", "unit_scale": True} if total else {"unit": " frames"}
    return tqdm(total=total or None, disable=None, file=sys.stderr, **unit)


@contextlib.contextmanager
def _signals(jobs: list[Job]) -> Iterator[Any]:
    """Cameras and addresses end in order on the first signal; files are given up, and nothing of them stays."""
    asked: list[int] = []
    live = all(not job.is_file for job in jobs)

    def on_signal(number: int, _: FrameType | None) -> None:
        if not live or asked:
            raise KeyboardInterrupt
        asked.append(number)

    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, on_signal) for name in names}
    try:
        yield lambda: bool(asked)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
