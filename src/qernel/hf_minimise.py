"""Minimisation of the Hartree–Fock energy: conjugate gradients with compressed exchange as preconditioner.

Exact exchange is costly, and E_x is concave in the density matrix: its linearisation at the present orbitals
is an upper bound that touches E there, and stays one when the exchange operator is compressed to its action on
the occupied orbitals (ACE, Lin, doi:10.1021/acs.jctc.6b00092). The inner loop minimises this bound (kinetic,
potential, Hartree, linear exchange) at the price of a density functional. The step it suggests is the
preconditioned gradient of an outer nonlinear conjugate-gradient search in the exact energy, which crosses the
soft directions between nearly degenerate solutions many times faster than repeating inner minimisations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from qernel.bands import ComplexArray
from qernel.fock import Energy, Functional, Orbitals


def orthonormalise(c: ComplexArray) -> ComplexArray:
    """The orthonormal orbitals nearest to c [plane waves, n] (Löwdin)."""
    if c.shape[1] == 0:
        return c
    values, vectors = np.linalg.eigh(c.conj().T @ c)
    return c @ (vectors / np.sqrt(values)) @ vectors.conj().T


def _compress(c: ComplexArray, w: ComplexArray) -> ComplexArray:
    """ξ [plane waves, n] with −ξξ† c = w: the compressed exchange operator."""
    if c.shape[1] == 0:
        return w
    overlap = -0.5 * (c.conj().T @ w + w.conj().T @ c)
    if not overlap.any():  # no interaction
        return w
    lower = np.linalg.cholesky(overlap)
    return scipy.linalg.solve_triangular(lower, w.conj().T, lower=True).conj().T


class Bound:
    """The upper bound on the energy with exchange linearised and compressed (constants left out)."""

    def __init__(self, functional: Functional, orbitals: Orbitals, exchanged: Orbitals) -> None:
        self.f = functional
        self.xi = [_compress(c, w) for c, w in zip(orbitals, exchanged, strict=True)]

    def energy(self, orbitals: Orbitals) -> float:
        """Value of the bound."""
        rho = self.f.density(orbitals)
        value = float((rho * self.f.potential).mean()) + self.f.hartree(rho)[0]
        for c, xi in zip(orbitals, self.xi, strict=True):
            value += float((self.f.kinetic[:, None] * np.abs(c) ** 2).sum() - (np.abs(xi.conj().T @ c) ** 2).sum())
        return value

    def residual(self, orbitals: Orbitals) -> Orbitals:
        """(1 − CC†) F C, half the gradient."""
        local = self.f.potential + self.f.hartree(self.f.density(orbitals))[1]
        result: Orbitals = []
        for c, xi in zip(orbitals, self.xi, strict=True):
            g = self.f.one_body(c, local) - xi @ (xi.conj().T @ c)
            result.append(g - c @ (c.conj().T @ g))
        return result


def _dot(a: Orbitals, b: Orbitals) -> float:
    return sum(float(np.vdot(x, y).real) for x, y in zip(a, b, strict=True))


def descend(bound: Bound, orbitals: Orbitals, steps: int, reduction: float) -> Orbitals:
    """Preconditioned conjugate gradients on the bound, at most `steps`, until |residual| falls by `reduction`."""
    f = bound.f
    shift = max(sum(float((f.kinetic[:, None] * np.abs(c) ** 2).sum()) for c in orbitals) / f.h.n_electrons, 1.0)
    inverse = 1 / (f.kinetic + shift)[:, None]
    energy = bound.energy(orbitals)
    direction: Orbitals | None = None
    previous, first, trial = 0.0, 0.0, 1.0
    last: Orbitals = []
    for step in range(steps):
        r = bound.residual(orbitals)
        norm = np.sqrt(_dot(r, r))
        first = norm if step == 0 else first
        if norm <= reduction * first or norm < 1e-12:
            break
        z = [inverse * x for x in r]
        z = _tangent(z, orbitals)
        gamma = _dot(r, z)
        if direction is None:
            direction = [-x for x in z]
        else:
            beta = max(0.0, (gamma - _dot(last, z)) / previous)
            direction = [-x + beta * d for x, d in zip(z, direction, strict=True)]
            direction = _tangent(direction, orbitals)
        slope = 2 * _dot(r, direction)
        if slope >= 0:
            direction, slope = [-x for x in z], -2 * gamma
        orbitals, energy, trial, moved = _line_search(bound, orbitals, direction, energy, slope, trial)
        if not moved:
            break
        last, previous = r, gamma
    return orbitals


def _line_search(
    bound: Bound, orbitals: Orbitals, direction: Orbitals, energy: float, slope: float, trial: float
) -> tuple[Orbitals, float, float, bool]:
    """Parabola through the energy, the slope and one trial step; steps are halved until the energy falls."""

    def at(t: float) -> tuple[Orbitals, float]:
        moved = [orthonormalise(c + t * d) for c, d in zip(orbitals, direction, strict=True)]
        return moved, bound.energy(moved)

    best, value = at(trial)
    curvature = (value - energy - slope * trial) / trial**2
    step = -slope / (2 * curvature) if curvature > 0 else 2 * trial
    step = float(np.clip(step, 0.1 * trial, 4 * trial))
    if abs(step / trial - 1) > 0.1:
        other, other_value = at(step)
        if other_value < value:
            best, value = other, other_value
    else:
        step = trial
    for _ in range(20):
        if value <= energy:
            return best, value, step, True
        step *= 0.3
        best, value = at(step)
    return orbitals, energy, 1.0, False


@dataclass(frozen=True, eq=False)
class _Point:
    """Orbitals with everything that one evaluation of exact exchange gives."""

    orbitals: Orbitals
    exchanged: Orbitals
    energy: Energy
    residual: Orbitals

    @classmethod
    def at(cls, f: Functional, orbitals: Orbitals) -> _Point:
        exchanged = [f.exchange(c) for c in orbitals]
        gradient = f.fock(orbitals, exchanged)
        return cls(orbitals, exchanged, f.energy(orbitals, exchanged), _tangent(gradient, orbitals))


@dataclass(frozen=True, eq=False)
class Minimum:
    """What the minimisation ended with."""

    orbitals: Orbitals
    exchanged: Orbitals
    energy: Energy
    residual: float
    """norm of (1 − CC†) F C, E0"""
    iterations: int
    converged: bool


def minimise(f: Functional, orbitals: Orbitals, tolerance: float, max_iterations: int) -> Minimum:
    """Minimise the Hartree–Fock energy from the given orthonormal orbitals.

    Stops when two successive iterations lower the energy by less than `tolerance` (E0, total). The
    energy never rises, so the branch of the start is kept unless it is unstable.
    """
    point = _Point.at(f, orbitals)
    direction: Orbitals | None = None
    last: Orbitals = []
    previous, step, small = 0.0, 1.0, 0
    iterations, converged = 0, False
    while not converged and iterations < max_iterations:
        iterations += 1
        better = descend(Bound(f, point.orbitals, point.exchanged), point.orbitals, steps=10, reduction=0.1)
        z = _tangent([new - old for new, old in zip(better, point.orbitals, strict=True)], point.orbitals)
        gamma = -_dot(point.residual, z)
        beta = 0.0
        if direction is not None:
            beta = max(0.0, (gamma + _dot(last, z)) / previous)
            direction = _tangent([x + beta * d for x, d in zip(z, direction, strict=True)], point.orbitals)
        if direction is None or _dot(point.residual, direction) >= 0:
            direction = z
        last, previous = point.residual, max(gamma, 1e-300)
        found, step = _exact_search(f, point, direction, step if beta > 0 else max(step, 1.0))
        if found is None:
            found, step = _Point.at(f, better), 1.0
            direction = None
        drop = point.energy.total - found.energy.total
        if drop >= 0:
            point = found
        small = small + 1 if drop < tolerance else 0
        converged = small == 2 or previous < 1e-14
    residual = float(np.sqrt(_dot(point.residual, point.residual)))
    return Minimum(point.orbitals, point.exchanged, point.energy, residual, iterations, converged)


def _exact_search(f: Functional, point: _Point, direction: Orbitals, step: float) -> tuple[_Point | None, float]:
    """Lower the exact energy along a direction: one trial, a second one if the slope there is still large."""

    def at(t: float) -> _Point:
        moved = [orthonormalise(c + t * d) for c, d in zip(point.orbitals, direction, strict=True)]
        return _Point.at(f, moved)

    slope = _dot(point.residual, direction)
    trial = at(step)
    end = _dot(trial.residual, direction)
    falls = trial.energy.total <= point.energy.total
    if falls and abs(end) < 0.4 * abs(slope):
        return trial, step
    # The secant through both slopes, unless they say that the energy is not convex here.
    secant = float(np.clip(step * slope / (slope - end), 0.1 * step, 4 * step)) if end > slope else 3 * step
    other_step = secant if falls else min(secant, 0.5 * step)
    other = at(other_step)
    best, best_step = (other, other_step) if other.energy.total < trial.energy.total else (trial, step)
    if best.energy.total <= point.energy.total:
        return best, best_step
    return None, 1.0


def _tangent(x: Orbitals, orbitals: Orbitals) -> Orbitals:
    """The part of x orthogonal to the occupied orbitals."""
    return [a - c @ (c.conj().T @ a) for a, c in zip(x, orbitals, strict=True)]
