"""What a run promises about its wire, and what attacks on it found (``fedspact audit``)."""

from __future__ import annotations

from typing import Any

from simulations.audit.findings import Audit, Finding
from simulations.report.collect import RunStory
from simulations.report.tables import Cell, Line, Table

MEASURES = {"ssim": "likeness (SSIM)", "auc": "AUC", "epsilon proved": "ε proved"}
MORE = {
    "psnr_db": "{:.1f} dB",
    "told_apart": "{:.0%} told apart from other clips",
    "found_at_1_percent_false_alarms": "{:.1%} found at 1 % false alarms",
    "sites": "{:.0f} sites",
    "videos_a_site": "{:.0f} videos each",
    "claimed": "claimed ε = {:.3g}",
    "delta": "δ = {:g}",
    "guesses": "{:.0f} guesses",
    "right": "{:.0f} right",
}


def promise_table(run: RunStory) -> Table | None:
    """Differential privacy and secure aggregation, with everything that belongs beside an epsilon; None: neither."""
    facts = {**_privacy(run), **_secure(run)}
    lines = [Line(Cell(name), [Cell(str(value))]) for name, value in facts.items() if value not in (None, "")]
    return Table("What is promised about single sites and videos", ["", "value"], lines, False) if lines else None


def audit_table(audit: Audit) -> Table:
    """One line a condition, grouped by attack."""
    lines: list[Line] = []
    for attack in dict.fromkeys(one.attack for one in audit.findings):
        lines.append(Line(Cell(attack), []))
        lines += [_line(one) for one in audit.findings if one.attack == attack]
    return Table("Attacks on the wire and the networks", ["what the attacker has", "found", "guessing", "more"], lines)


def _line(one: Finding) -> Line:
    span = f"{one.low:z.2f}–{one.high:z.2f}" if one.low is not None and one.high is not None else ""
    found = Cell(f"{one.value:z.2f}", f"{MEASURES.get(one.measure, one.measure)} {span}".strip(), strong=True)
    more = ", ".join(MORE.get(name, name + " {:.3g}").format(value) for name, value in one.more.items())
    return Line(Cell(one.condition), [found, Cell("–" if one.guess is None else f"{one.guess:.2f}"), Cell(more)])


def _privacy(run: RunStory) -> dict[str, Any]:
    told = dict(run.summary.get("privacy") or {})
    if not told:
        return {}
    return {
        "differential privacy": f"ε = {float(told['epsilon']):.4g} at δ = {float(told['delta']):g}",
        "unit": told.get("unit"),
        "neighbours": told.get("adjacency"),
        "sampling": told.get("sampling"),
        "accountant": told.get("accountant"),
        "noise multiplier, clip norm": f"{told.get('noise_multiplier')}, {told.get('clip_norm')}",
        "releases": told.get("releases"),
        "budget": f"ε = {told.get('epsilon_budget')}",
    }


def _secure(run: RunStory) -> dict[str, Any]:
    rounds = [line for line in run.history if line["kind"] == "train" and line.get("secure")]
    if not rounds:
        return {}
    opened = [line["secure"] for line in rounds if not line["void"]]
    lost = sum(len(told["lost"]) for told in opened)
    fewest = min((told["summed"] for told in opened), default=0)
    return {
        "secure aggregation": f"{len(opened)} of {len(rounds)} rounds' sums were opened",
        "sites in a sum": f"at least {fewest}; {lost} were lost after they had dealt their shares and made up for",
        "its short messages": f"{sum(told['bytes'] for told in opened) / max(1, len(opened)) / 1e3:.0f} kB a round",
    }
