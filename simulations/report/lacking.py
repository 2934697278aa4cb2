"""What nobody measured of a run: what its judgement says that it lacks, and what one can see that it lacks."""

from __future__ import annotations

from simulations.protocols.evaluation import ALL, SAME_SOURCE
from simulations.protocols.suite import REPRESENTATIONS
from simulations.report.collect import RunStory
from simulations.report.judged import ANONYMIZED, RAW, Judged, Seen
from simulations.report.words import counted, name_of, percent, without_folders


def not_measured(run: RunStory) -> list[str]:
    """A line for each thing, whichever command wrote the judgement."""
    judged = run.judged
    if judged is None:
        return ["everything that fresh networks would tell: the run was not judged"]
    seen = judged.representations[ANONYMIZED]
    lacking = list(judged.not_measured)
    if RAW not in judged.representations:
        lacking.append("raw video: without it nobody knows what there was to keep and to hide")
    lacking += _rows_and_questions(judged, seen)
    if seen.action is not None and seen.action.low is None:
        lacking.append("how sure the figures are: no intervals over the test videos")
    if len(judged.seeds) < 3:
        lacking.append(f"the spread over seeds: {counted(len(judged.seeds), 'seed')}, three are needed to see it")
    task = judged.main_task
    if task is not None and seen.attacks[task].leakage.at_least:
        knew = percent(seen.attacks[task].leakage.learned, 0)
        lacking.append(
            f"what a fresh attacker with more steps finds: one was right in only {knew} of its own training clips when "
            f"its steps ended: the figure of {name_of(task)} is a lower bound (fedspact evaluate --set judge.steps=…)"
        )
    if task is not None and len(seen.attacks[task].attackers) < 3:
        lacking.append("attackers of three different architectures")
    if not judged.rounds:
        lacking.append("fresh attackers at earlier rounds")
    return lacking


def not_attacked(run: RunStory) -> list[str]:
    """The same of attacks on what a federation gives away."""
    if run.audit is not None:
        return list(run.audit.not_measured)
    return [f"what updates and networks give away: attack them with fedspact audit {without_folders(run.path)}"]


def _rows_and_questions(judged: Judged, seen: Seen) -> list[str]:
    """Representations that were not judged, and questions that nobody asked, but for those that the notes name."""
    noted = [note.partition(":")[0] for note in judged.not_measured]

    def silent(word: str) -> bool:
        return not any(word in head for head in noted)

    lacking = []
    absent = [name for name in REPRESENTATIONS if name not in judged.representations and name not in (RAW, ANONYMIZED)]
    named = [name_of(name) for name in absent if silent(name)]
    if named:
        lacking.append(f"what other pictures keep and hide: {', '.join(named)} (fedspact evaluate without --quick)")
    if not any(told.reconstruction for told in judged.representations.values()) and silent("reconstruction"):
        lacking.append("whether a trained inverter can give the raw video back (fedspact evaluate --inversion)")
    named_of = [task for task in seen.attacks if task not in ("attributes", ALL, SAME_SOURCE)]
    if named_of and not any("(" in task for task in named_of) and silent("person only"):
        lacking.append("whether the person or the place tells: no crops (fedspact evaluate --crops)")
    if ALL not in seen.attacks and SAME_SOURCE not in seen.attacks and silent("retrieval"):
        lacking.append(
            "whether a video is found again without any label: no retrieval (fedspact evaluate without --quick)"
        )
    return lacking
