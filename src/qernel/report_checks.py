"""Is the result to be believed? Health checks of a scan, and in plain words what has not converged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qernel import tables
from qernel.cell import FloatArray
from qernel.labels import coupling_label
from qernel.report_data import RunData
from qernel.stats import format_uncertainty

MAX_SIGMA = 4.0
"""for quantities that are zero but for noise"""
MAX_BELOW = 5.0
"""for an energy below a converged exact one"""
MAX_R_HAT = 1.05
ACCEPTANCE = (0.2, 0.8)
MAX_V_SCORE = 0.01
"""of N·variance/E², which vanishes for an eigenstate (doi:10.1126/science.adg9774)"""
MAX_DRIFT = 4.0
"""of the energy over the last third of the training, in its standard errors"""

MAX_UNKNOWN_DRIFT = 0.005
"""error of that change, relative to the energy, above which it says nothing"""


@dataclass(frozen=True)
class Check:
    """One health check: what was asked, whether it passed (or tells nothing), and the numbers."""

    name: str
    status: Literal["ok", "attention", "no test"]
    text: str


def sigmas(value: FloatArray, error: FloatArray, scale: FloatArray) -> FloatArray:
    """value/error; 0 where the value is no more than rounding of numbers of size `scale`."""
    rounding = np.abs(value) < 1e-7 * np.maximum(1.0, np.abs(scale))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rounding, 0.0, value / error)


def checks(data: RunData) -> list[Check]:
    """All health checks of the scan, in the order of the page."""
    scale = data.values("energy")
    kinetic = sigmas(data.values("kinetic_gap"), data.values("kinetic_gap_error"), scale)
    imaginary = sigmas(data.values("energy_imag"), data.values("energy_imag_error"), scale)
    r_hat, acceptance = data.values("r_hat"), data.values("acceptance")
    low, high = ACCEPTANCE
    worst = int(np.argmax(np.abs(acceptance - (low + high) / 2)))
    found = [
        _noise(data, "Kinetic energy two ways", kinetic, "Laplacian and squared gradient differ by at most"),
        _noise(data, "Imaginary part of the energy", imaginary, "It is zero within"),
        Check(
            "Chains agree",
            "ok" if np.all(r_hat < MAX_R_HAT) else "attention",
            f"R̂ is at most {np.max(r_hat):.4f}, at {data.labels[int(np.argmax(r_hat))]} (limit {MAX_R_HAT}).",
        ),
        Check(
            "Acceptance",
            "ok" if np.all((acceptance > low) & (acceptance < high)) else "attention",
            f"{acceptance.min():.2f} to {acceptance.max():.2f} of the moves are accepted"
            f" (should be {low} to {high}; farthest off at {data.labels[worst]}).",
        ),
        _exact(data),
        _hartree_fock(data),
    ]
    outside = [label for label, x in zip(data.labels, data.values("outside"), strict=True) if x]
    text = f"Not trained there, extrapolated: {'; '.join(outside)}." if outside else "All couplings are inside it."
    found.append(Check("Trained range", "attention" if outside else "ok", text))
    if len(data.log.get("fallback", [])):
        first = data.log["coupling"] == 0
        failed, steps = int(np.nansum(data.log["fallback"][first])), int(first.sum())
        text = f"The Cholesky factorisation failed and eigenvalues were used in {failed} of {steps} steps."
        found.append(Check("Natural gradient", "ok" if failed <= 0.01 * steps else "attention", text))
    return found


def _noise(data: RunData, name: str, z: FloatArray, words: str) -> Check:
    worst = int(np.argmax(np.where(np.isnan(z), math.inf, np.abs(z))))
    status: Literal["ok", "attention"] = "ok" if np.all(np.abs(z) <= MAX_SIGMA) else "attention"
    return Check(name, status, f"{words} {abs(z[worst]):.1f}σ, at {data.labels[worst]} (limit {MAX_SIGMA:g}σ).")


def exact_difference(data: RunData) -> tuple[FloatArray, FloatArray]:
    """(E − E_exact)/|E_exact| in percent and (E − E_exact)/σ, NaN where there is no exact value."""
    energy, error, reference = data.values("energy"), data.values("energy_error"), data.reference("exact", "energy")
    return 100 * (energy - reference) / np.abs(reference), sigmas(energy - reference, error, energy)


def _exact(data: RunData) -> Check:
    name = "Not below the exact energy"
    reference = data.reference("exact", "energy")
    if np.all(np.isnan(reference)):
        return Check(name, "no test", "There is no exact energy to compare with.")
    energy, error = data.values("energy"), data.values("energy_error")
    below = -sigmas(energy - reference, error, energy)
    deepest = int(np.nanargmax(below))
    at = f"at {data.labels[deepest]}"
    if not data.references.exact_converged:
        bands = data.references.bands
        text = (
            f"{below[deepest]:.1f}σ below it {at}, which is fine: exact diagonalisation with {bands} bands is itself "
            "only an upper bound, and a good wavefunction lies below it."
            if below[deepest] > 0
            else f"Nowhere below it (closest {at}); with {bands} bands it is only an upper bound, and a good "
            "wavefunction would lie below it."
        )
        return Check(name, "no test", text)
    # What further bands would still gain is smaller than what the last one did.
    slack = data.reference("exact", "last_band")
    z = -sigmas(energy - reference + np.nan_to_num(slack), error, energy)
    text = f"{below[deepest]:.1f}σ below it {at}" if below[deepest] > 0 else f"Nowhere below it, closest {at}"
    status: Literal["ok", "attention"] = "ok" if np.nanmax(z) <= MAX_BELOW else "attention"
    return Check(name, status, f"{text} (limit {MAX_BELOW:g}σ beyond the error of the finite number of bands).")


def _hartree_fock(data: RunData) -> Check:
    name = "Better than one determinant"
    reference = data.reference("hartree_fock", "energy")
    if np.all(np.isnan(reference)):
        return Check(name, "no test", "There is no Hartree–Fock energy to compare with.")
    z = sigmas(data.values("energy") - reference, data.values("energy_error"), data.values("energy"))
    compared = int(np.sum(~np.isnan(z)))
    above = [label for label, x in zip(data.labels, z, strict=True) if x > 3]
    if above:
        return Check(name, "attention", f"The energy is above that of Hartree–Fock at {'; '.join(above)}.")
    gain = (reference - data.values("energy")) / data.n
    least = int(np.nanargmin(gain))
    amount = tables.text(float(gain[least]), float(data.values("energy_error")[least]) / data.n)
    words = (
        "Nowhere above the lower branch of Hartree–Fock by more than 3σ, and below it by more than that at "
        f"{int(np.sum(z < -3))} of the {compared} couplings that have one (of {len(z)}); least at "
        f"{data.labels[least]}, by {amount} E₀ per electron."
    )
    return Check(name, "ok", words)


def drift(steps: np.ndarray, energy: np.ndarray) -> tuple[float, float]:
    """(change, its standard error) of the energy over the last third of a training curve; NaN if it is too short.

    Straight line through the means of up to 20 successive blocks, which takes care of the correlation between steps.
    """
    tail = energy[steps >= steps.min() + (2 * (steps.max() + 1 - steps.min())) // 3] if len(steps) else energy
    blocks = min(20, len(tail) // 2)
    if blocks < 6:
        return math.nan, math.nan
    y = np.array([block.mean() for block in np.array_split(tail, blocks)])
    x = (np.arange(blocks) + 0.5) / blocks - 0.5
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (blocks - 2) / (x @ x)))


def not_converged(data: RunData) -> dict[str, list[str]]:
    """Coupling → reasons, in words, why its energy should not be taken as converged. Empty if all is fine."""
    reasons: dict[str, list[str]] = {}

    def add(label: str, text: str) -> None:
        reasons.setdefault(label, []).append(text)

    for k, row in enumerate(data.config.couplings):
        mine = data.log["coupling"] == k if data.log else np.zeros(0, bool)
        if not mine.any():
            continue
        change, error = drift(data.log["step"][mine], data.log["energy"][mine])
        label = coupling_label(data.config.family.names, row)
        if not error < MAX_UNKNOWN_DRIFT * abs(np.mean(data.log["energy"][mine][-10:])):
            add(label, "the training is too short or too noisy to tell whether the energy has settled")
        elif abs(change) > MAX_DRIFT * error:
            way = "fell" if change < 0 else "rose"
            amount = format_uncertainty(abs(change), error)
            add(label, f"the energy still {way} by {amount} E₀ over the last third of the training")
    energy, variance, r_hat = data.values("energy"), data.values("variance"), data.values("r_hat")
    percent, z = exact_difference(data)
    for c, label in enumerate(data.labels):
        score = data.n * variance[c] / energy[c] ** 2 if energy[c] else 0.0
        if not score <= MAX_V_SCORE:
            add(label, f"the variance is {variance[c]:.3g} E₀², N·variance/E² = {score:.2g} instead of at most 0.01")
        if not r_hat[c] < MAX_R_HAT:
            add(label, f"the chains disagree, R̂ = {r_hat[c]:.3f}")
        if z[c] > 3 and percent[c] > 0.5:
            add(label, f"the energy is {percent[c]:.2f} % ({z[c]:.0f}σ) above exact diagonalisation")
    return reasons


def convergence_sentences(data: RunData) -> list[str]:
    """The same in sentences, one for each coupling that has not converged, or one that says all is fine."""
    before = []
    if data.checkpoint.step == 0:
        before = ["No training step was made: the energies are those of the starting wavefunction."]
    trained = int(data.dataset.attrs["training_steps"])
    if trained != data.checkpoint.step:
        now = data.checkpoint.step
        before.append(f"The scan was made after step {trained}, the run is now at step {now}: scan it again.")
    reasons = not_converged(data)
    if not reasons:
        settled = "" if before else "energies have settled, "
        fine = f"Nothing points to a lack of convergence: {settled}variances are small and chains agree."
        return [*before, fine]
    return [*before, *(f"{label}: {'; '.join(text)}." for label, text in reasons.items())]
