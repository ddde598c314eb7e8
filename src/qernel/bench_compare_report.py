"""Networks against each other: the two factors, time and weights, as JSON and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qernel.bench_compare import (
    Series,
    Window,
    at_equal_steps,
    at_equal_time,
    mean_of,
    time_ratio,
    windows,
)
from qernel.bench_machine import quantity
from qernel.stats import format_uncertainty


@dataclass(frozen=True)
class Rival:
    """A network of another kind against ours, at one λ and one end (of time or of steps)."""

    name: str
    parameters: int
    difference: float
    """E0, its energy less ours"""
    error: float

    @property
    def reaches(self) -> bool:
        """Is its energy not above ours by more than two standard errors?"""
        return self.difference <= 2 * self.error


def rivals(ours: tuple[Series, Window], others: Sequence[tuple[Series, Window]]) -> list[Rival]:
    """The others against ours, the fewest weights first."""
    _, w = ours
    found = [Rival(s.name, s.parameters, v.energy - w.energy, math.hypot(v.error, w.error)) for s, v in others]
    return sorted(found, key=lambda r: (r.parameters, r.name))


def smallest_reaching(found: Sequence[Rival]) -> Rival | None:
    """Of those that reach our energy the one with the fewest weights; none if none does."""
    return next((r for r in found if r.reaches), None)


def reaching_text(ours: Series, found: Sequence[Rival], after: str) -> str:
    """One sentence on the smallest rival that reaches our energy."""
    head = f"λ = {ours.lam:g}, after {after} each, {ours.name} with {ours.parameters} weights:"
    if not found:
        return f"{head} no PsiFormer tried."
    best = smallest_reaching(found)
    sizes = "; ".join(f"{r.name}, {r.parameters}: {format_uncertainty(r.difference, r.error)}" for r in found)
    listed = f"(energy less ours, E0: {sizes})"
    if best is None:
        return (
            f"{head} none of the {len(found)} PsiFormers tried comes within two standard errors of its energy {listed}."
        )
    factor = best.parameters / ours.parameters
    return f"{head} the smallest PsiFormer that reaches its energy has {factor:.3g} times as many {listed}."


def foreign_text(r: Rival) -> str:
    """One sentence on a network that another program trained with another optimiser."""
    return f"{r.name} ({r.parameters} weights): energy less ours {format_uncertainty(r.difference, r.error)} E0."


RATIOS = {
    "network and Laplacian": ("psiformer-equal", "qernel"),
    "network alone": ("psiformer-equal-forward", "qernel"),
    "Laplacian alone": ("psiformer-equal", "psiformer-equal-forward"),
}
"""ratios of times of a step, slow over fast, by what makes the difference"""


def ratios(all_series: Sequence[Series]) -> dict[str, dict[str, Any]]:
    """Ratios of the times of a step at equal weights, by what makes the difference: at each λ and the mean."""
    by_name = {(s.name.split(",")[0], s.lam): s for s in all_series}  # a family, too, is ours
    found: dict[str, dict[str, Any]] = {}
    for label, (slow, fast) in RATIOS.items():
        pairs = [(by_name[n, lam], by_name[fast, lam]) for n, lam in by_name if n == slow and (fast, lam) in by_name]
        if not pairs:
            continue
        each = [time_ratio(a, b) for a, b in pairs]
        value, error = mean_of(each)
        a, b = pairs[0]
        where = f"at λ = {a.lam:g}" if len(pairs) == 1 else f"mean over {len(pairs)} λ"
        words = (
            f"Time of a step, {label}: {a.name} ({a.parameters} weights, {a.laplacian}) over {b.name} "
            f"({b.parameters} weights, {b.laplacian}) = {format_uncertainty(value, error)}, {where}."
        )
        at = {f"{x.lam:g}": list(r) for (x, _), r in zip(pairs, each, strict=True)}
        found[label] = {"value": value, "error": error, "by_lam": at, "words": words}
    return found


def reaching(here: Sequence[Series]) -> list[dict[str, Any]]:
    """At one λ, for each network of ours: the PsiFormers against it after equal time and after equal steps."""
    found = []
    for end, last, unit in ((*at_equal_time(here), "s"), (*at_equal_steps(here), "steps")):
        both = list(zip(here, last, strict=True))
        others = [(s, w) for s, w in both if not s.name.startswith("qernel")]
        for s, w in both:
            if others and s.name.split(",")[0] == "qernel":
                against = rivals((s, w), others)
                own = {x.name for x in here if x.optimizer == s.optimizer}
                words = reaching_text(s, [r for r in against if r.name in own], f"{end:.4g} {unit}")
                words += "".join(" " + foreign_text(r) for r in against if r.name not in own)
                rows = [{**asdict(r), "reaches": r.reaches} for r in against]
                found.append({"name": s.name, "lam": s.lam, "end": end, "unit": unit, "rivals": rows, "words": words})
    return found


def row(s: Series) -> dict[str, Any]:
    """All of one network at one λ, without the single steps."""
    step = quantity(s.step_seconds)
    plain = {k: v for k, v in s.to_json().items() if k not in ("seconds", "energy", "variance")}
    return {
        **plain,
        "steps": len(s.seconds),
        "seconds": float(s.seconds[-1]),
        "seconds_per_step": {"median": step.value, "quartiles": [step.low, step.high]},
        "windows_of_steps": [asdict(w) for w in windows(s, s.numbers)],
        "windows_of_seconds": [asdict(w) for w in windows(s, s.seconds)],
    }


def compare(all_series: Sequence[Series]) -> dict[str, Any]:
    """Everything as plain values: a row for each series, last windows at equal time and steps, factors, sentences."""
    lams = sorted({s.lam for s in all_series})
    rows, claims = [], []
    for lam in lams:
        here = [s for s in all_series if s.lam == lam]
        claims += reaching(here)
        (_, timed), (_, stepped) = at_equal_time(here), at_equal_steps(here)
        for s, t, n in zip(here, timed, stepped, strict=True):
            rows.append({**row(s), "at_equal_time": asdict(t), "at_equal_steps": asdict(n)})
    times = ratios(all_series)
    sentences = [*(r["words"] for r in times.values()), *(c["words"] for c in claims)]
    return {"units": "E0, total; s", "rows": rows, "time_ratios": times, "weights": claims, "sentences": sentences}


def lines(result: dict[str, Any]) -> list[str]:
    """A table of Markdown, with energies at equal time, and the sentences."""
    names = ("λ", "network", "weights (active)", "Laplacian", "steps", "s a step", "set-up, s", "energy", "variance")
    out = [f"| {' | '.join(names)} |", "|--:|---|--:|---|--:|--:|--:|--:|--:|"]
    for r in result["rows"]:
        w, t = r["at_equal_time"], r["seconds_per_step"]
        low, high = t["quartiles"]
        energy = format_uncertainty(w["energy"], w["error"])
        weights = f"{r['parameters']}" + (f" ({r['active']})" if r["active"] != r["parameters"] else "")
        out.append(
            f"| {r['lam']:g} | {r['name']} | {weights} | {r['laplacian']} | {r['steps']} "
            f"| {t['median']:.3g} ({low:.3g}–{high:.3g}) | {r['setup']:.0f} | {energy} | {w['variance']:.3g} |"
        )
    return [*out, "", *result["sentences"]]
