"""From stories to one HTML file: the sections in order; charts, strips and style in it, nothing from outside."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from markupsafe import Markup, escape  # of jinja2

from simulations.report.alike import mixed
from simulations.report.arm_tables import comparison_facts, comparison_settings
from simulations.report.arm_words import comparison_headline, comparison_sentences, explanations
from simulations.report.arms import arm_chart, arm_table, paired_charts, paired_table
from simulations.report.collect import ComparisonStory, RunStory
from simulations.report.curves import game_charts, judged_rounds_chart
from simulations.report.drawing import Chart
from simulations.report.judged import ANONYMIZED, RAW
from simulations.report.lacking import not_attacked, not_measured
from simulations.report.run_tables import cost_table, facts_table, overview_table, settings_table, site_table
from simulations.report.strips import Strips, make_strips
from simulations.report.tables import Table, attack_table, reconstruction_table, representation_table
from simulations.report.tradeoff import arm_scatter, scatter
from simulations.report.wire_tables import audit_table, promise_table
from simulations.report.words import (
    Sentence,
    also_judged,
    byte_size,
    counted,
    duration,
    headline,
    measured,
    moment,
    percent,
    verdicts,
    without_folders,
)
from spact_models import __version__
from spact_models.files import BY_UMASK, check_writable, write_file

WHOLE = re.compile(r"--[a-z][\w-]*|\d{4}-\d\d-\d\d \d\d:\d\d UTC|top-1")
DRAWN = "real footage: the videos of this run are drawn, not filmed"


@dataclass(frozen=True)
class Tile:
    """One key figure."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class RunSection:
    """What the page says of one run."""

    run: RunStory
    key: str
    state: str
    lead: Sentence
    verdicts: Sequence[Sentence]
    how_judged: str
    also_judged: Sequence[str]  # a line for each other judgement
    charts: Sequence[Chart]
    tables: Sequence[Table]  # representations, attackers, reconstruction: those that there are
    strips: Strips
    sites: Table | None
    wire: Sequence[Table]  # promises about single sites and videos, attacks on them: those that there are
    facts: Table
    settings: Table
    not_measured: Sequence[str]


@dataclass(frozen=True)
class ComparisonSection:
    """What the page says of one comparison."""

    comparison: ComparisonStory
    key: str
    lead: Sentence
    sentences: Sequence[Sentence]
    charts: Sequence[Chart]
    tables: Sequence[Table]
    about: Sequence[str]
    scatter: Chart | None
    facts: Table
    settings: Table
    not_measured: Sequence[str]


def render(
    runs: Sequence[RunStory], comparisons: Sequence[ComparisonStory], title: str | None = None, show_raw: bool = False
) -> str:
    """The whole page."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simulations.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    environment.filters["data_uri"] = lambda content, kind: f"data:{kind};base64,{base64.b64encode(content).decode()}"
    tasks = list(dict.fromkeys(task for run in runs if run.judged for task in run.judged.tasks))
    main = next((run.judged.main_task for run in runs if run.judged and run.judged.main_task), None)
    ordered = [main, *(task for task in tasks if task != main)] if main else []
    scatters = [scatter(runs, task, f"scatter-{number}") for number, task in enumerate(ordered)]
    sections = [run_section(run, f"run-{number}", show_raw) for number, run in enumerate(runs, 1)]
    names = [*(run.name for run in runs), *(story.name for story in comparisons)]
    return environment.get_template("page.html.j2").render(
        title=title or "FedSPAct: " + ", ".join(names),
        created=moment(datetime.datetime.now(datetime.UTC).isoformat()),
        version=__version__,
        sections=sections,
        shows_raw=any(strip.raw for section in sections for strip in section.strips.strips),
        comparisons=[comparison_section(story, f"comparison-{n}") for n, story in enumerate(comparisons, 1)],
        scatters=[chart for chart in scatters if chart is not None],
        mixed=mixed(runs),
        tiles=_tiles(runs[0]) if len(runs) == 1 else [],
        overview=overview_table(runs) if len(runs) > 1 else None,
        costs=cost_table(runs) if runs else None,
        css=_source("page.css"),
        js=_source("page.js"),
        plotly=get_plotlyjs(),
    )


def unbroken(text: str) -> Markup:
    """A text for HTML whose flags, dates and ``top-1`` stay on one line: a browser would break them at a hyphen."""
    return Markup(WHOLE.sub(lambda found: f'<span class="whole">{found[0]}</span>', str(escape(text))))


def run_section(run: RunStory, key: str, show_raw: bool) -> RunSection:
    """Everything about one run."""
    judged = run.judged
    charts = [*game_charts(run, key), judged_rounds_chart(run, f"{key}-rounds")]
    judged_tables = (representation_table, attack_table, reconstruction_table) if judged else ()
    strips = make_strips(run, show_raw)
    return RunSection(
        run=run,
        key=key,
        state=_state(run),
        lead=headline(run),
        verdicts=verdicts(run),
        how_judged=_how_judged(run),
        also_judged=also_judged(run),
        charts=[chart for chart in charts if chart is not None],
        tables=[made for table in judged_tables if judged and (made := table(judged)) is not None],
        strips=strips,
        sites=site_table(run),
        wire=[table for table in (promise_table(run), audit_table(run.audit) if run.audit else None) if table],
        facts=facts_table(run),
        settings=settings_table(run.settings),
        not_measured=[*not_measured(run), *not_attacked(run), *([DRAWN] if strips.all_synthetic else [])],
    )


def comparison_section(story: ComparisonStory, key: str) -> ComparisonSection:
    """Everything about one comparison."""
    content = story.content
    arms = arm_chart(story, f"{key}-arms")
    tables = [arm_table(story), paired_table(story)]
    seeds = ", ".join(map(str, content.get("seeds") or [])) or "unknown"
    size = f"{content.get('sites', '?')} sites; seeds {seeds}; {content.get('test_videos', '?')} test videos; "
    size += f"made {moment(content.get('created'))}."
    return ComparisonSection(
        comparison=story,
        key=key,
        lead=comparison_headline(story),
        sentences=comparison_sentences(story),
        charts=[*([arms] if arms else []), *paired_charts(story, f"{key}-tests")],
        tables=[table for table in tables if table is not None],
        about=[size, *explanations(story)],
        scatter=arm_scatter(story, f"{key}-scatter"),
        facts=comparison_facts(story),
        settings=comparison_settings(story),
        not_measured=list(content.get("not_measured") or []),
    )


def checked_out(path: Path) -> Path:
    """The absolute path of the page.

    Raises:
        UserError: it is a folder, or cannot be written there.
    """
    path = Path(path).expanduser().absolute()
    check_writable(path, "--out", "report.html")
    return path


def write_page(path: Path, page: str) -> None:
    """A reader sees the old page or the whole new one. It is there to be shown: others may read it by the umask.

    Raises:
        UserError: it cannot be written there.
    """
    write_file(path, page, "free some space or name another file", flag="--out", mode=BY_UMASK)


def _tiles(run: RunStory) -> list[Tile]:
    """The few figures that one looks for first."""
    judged, tiles = run.judged, []
    if judged is not None:
        seen, raw, task = judged.representations[ANONYMIZED], judged.representations.get(RAW), judged.main_task
        if seen.action is not None:
            beside = f"raw\u00a0{measured(raw.action)}" if raw and raw.action else ""
            tiles.append(Tile("action top-1", measured(seen.action), beside))
        leakage = seen.leakage(task) if task else None
        if task and leakage is not None:
            on_raw = raw.leakage(task) if raw else None
            told = [f"raw\u00a0{measured(on_raw)}"] if on_raw else []
            told.append(f"chance\u00a0{percent(judged.chance.get(task))}")
            tiles.append(Tile("strongest attacker", measured(leakage), ", ".join(told)))
        tiles.append(Tile("held-out videos", str(judged.test_videos or "–"), counted(len(judged.seeds), "seed")))
    tiles.append(Tile("rounds", f"{run.rounds_done} of {run.rounds_planned}", counted(run.sites, "site")))
    tiles.append(Tile("time", duration(run.summary.get("seconds")), f"preset {run.settings.get('preset')}"))
    up = run.summary.get("bytes_up_per_round")
    if up:
        tiles.append(Tile("sent up a round", byte_size(up), "all sites together"))
    return tiles


def _state(run: RunStory) -> str:
    done = f"{run.rounds_done} of {run.rounds_planned} rounds"
    state = done if run.finished else f"unfinished: {done}"
    return f"{run.kind}, {counted(run.sites, 'site')}, {state}, begun {moment(run.created)}"


def _how_judged(run: RunStory) -> str:
    judged = run.judged
    command = f"fedspact evaluate {without_folders(run.path)}"
    if judged is None:
        return f"This run was not judged. Get its figures with: {command}"
    if judged.source == "summary.json":
        return f"The quick judgement that the run ended with: one seed, no intervals. For all of it: {command}"
    return ""


def _source(name: str) -> str:
    return resources.files("simulations.report").joinpath(name).read_text(encoding="utf-8")
