"""Seconds of a step as a function of its size, learnt from noisy measurements that never stop.

The rounds of a ragged batch score another number of tokens every time, so no size is measured often and an average per
size would be noise. Instead the logarithm of the time is a line through fixed sizes (the knots), with a Gaussian prior
that says: the level is unknown, doubling the size multiplies the time by about the square root of two, the curve may
bend. A Kalman step takes in each measurement; it moves the level of the whole curve, which machines change often (other
load, longer contexts), and the neighbourhood of the measured size, which kernels determine. What is known fades slowly.

Additive cost tables of serving systems have the same shape with fixed entries; here every entry has a variance, which
tells a hiccup of the machine (one impossible measurement) from a change (two in a row).

Shape letters: n sizes, G knots.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from specbatch.specdec.accept import IntArray
from specbatch.specdec.policy.buckets import buckets_of

FloatArray = NDArray[np.float64]

_KNOT = np.array(sorted({1} | {2**i for i in range(1, 15)} | {3 * 2**i for i in range(13)}), dtype=np.float64)
_LOG_KNOT = np.log(_KNOT)
_PRIOR_SECONDS = 0.02
_PRIOR_ELASTICITY = 0.5
# Standard deviations of the prior, in the logarithm: e^3 either way for the level, the rest per e-fold of the size.
_LEVEL_SD = 3.0
_ELASTICITY_SD = 0.3
_BEND_SD = 0.25
_PRIOR_COVARIANCE = (
    _LEVEL_SD**2
    + _ELASTICITY_SD**2 * np.outer(_LOG_KNOT, _LOG_KNOT)
    + _BEND_SD**2 * np.minimum.outer(_LOG_KNOT, _LOG_KNOT)
)
# Share of the prior that comes back with every measurement: the level then wanders by 2 % a step, the shape by 0.3 %.
_FADE = 5e-5
# Relative noise of one measurement: where it starts, and the range that its running estimate may take.
_FIRST_NOISE = 0.08
_LEAST_NOISE, _MOST_NOISE = 0.02, 0.25
_NOISE_WEIGHT = 0.03
# Further than this from what was expected is a hiccup or a change. The second bound keeps a calm machine from
# taking its own first small step for one.
_OUTLIER_SD = 4.0
_LEAST_OUTLIER = math.log(1.4)
_CHANGE_LEVEL_SD = 0.7
_CHANGE_SHAPE_SHARE = 0.05
_DOUBT_LEVEL_SD = 0.3
_LEAST_SECONDS = 1e-7


class StepTimes:
    """One curve: seconds by size. Sizes are whole numbers from 1.

    Args:
        in_buckets: what is worked on is padded to the next bucket, so that all sizes within one take the same time.
    """

    def __init__(self, *, in_buckets: bool = False) -> None:
        self._in_buckets = in_buckets
        self._mean_G: FloatArray = math.log(_PRIOR_SECONDS) + _PRIOR_ELASTICITY * _LOG_KNOT
        self._covariance_GG: FloatArray = _PRIOR_COVARIANCE.copy()
        self._noise_variance = _FIRST_NOISE**2
        self._suspect: tuple[int, float] | None = None
        self._is_known = False

    @property
    def is_known(self) -> bool:
        """Whether anything was ever measured; before that the curve is only a guess."""
        return self._is_known

    def add(self, size: int, seconds: float, relative_noise: float | None = None) -> None:
        """Take in one measurement.

        Args:
            size: what was worked on, at least 1. seconds: how long it took.
            relative_noise: how far this measurement may be off, as a share; by default what measurements of this
                curve have shown. Prior knowledge is given with a larger one, so that measurements outweigh it.

        A single impossible value is put aside; when the next one is impossible in the same direction, the machine or
        the model has changed: both count, and the level is learnt anew.
        """
        size, seconds = int(self._worked_on(size, size)[0]), max(seconds, _LEAST_SECONDS)
        variance = self._noise_variance if relative_noise is None else relative_noise**2
        surprise, spread = self._surprise(size, seconds, variance)
        if self._is_known and abs(surprise) > max(_OUTLIER_SD * spread, _LEAST_OUTLIER):
            if self._suspect is None or (self._surprise(*self._suspect, variance)[0] > 0) != (surprise > 0):
                self._suspect = (size, seconds)
                return
            level, shape = _CHANGE_LEVEL_SD**2, _CHANGE_SHAPE_SHARE * (_PRIOR_COVARIANCE - _LEVEL_SD**2)
            self._covariance_GG += level + shape
            self._update(*self._suspect, variance)
        elif relative_noise is None and spread**2 < 3 * variance:
            # Only where the curve is known well does a deviation speak of the noise of the measurement.
            seen = surprise**2 - (spread**2 - variance)
            blended = self._noise_variance + _NOISE_WEIGHT * (seen - self._noise_variance)
            self._noise_variance = min(max(blended, _LEAST_NOISE**2), _MOST_NOISE**2)
        self._suspect = None
        self._is_known = True
        self._update(size, seconds, variance)

    def doubt(self) -> None:
        """What is known may be old: let the next measurements move the level faster."""
        self._covariance_GG += _DOUBT_LEVEL_SD**2

    def at(self, size: int) -> float:
        """Estimate of the seconds at one size."""
        return float(self.between(size, size)[0])

    def between(self, first: int, last: int) -> FloatArray:
        """Estimates for all sizes from ``first`` to ``last``, both included; a size of 0 costs what 1 does.

        Between knots nothing overshoots; beyond the last knot the time grows in proportion.
        """
        size_n = self._worked_on(first, last)
        seconds_n: FloatArray = np.exp(np.interp(size_n, _KNOT, self._mean_G))
        if size_n[-1] > _KNOT[-1]:
            seconds_n *= np.maximum(size_n / _KNOT[-1], 1.0)
        return seconds_n

    def doubt_between(self, first: int, last: int, reference: int) -> FloatArray:
        """Relative standard deviation of the ratio of the seconds at each size to those at a reference size."""
        left, weight = self._locate(int(self._worked_on(reference, reference)[0]))
        covariance = self._covariance_GG
        with_reference_G = (1 - weight) * covariance[:, left] + weight * covariance[:, left + 1]
        own = (1 - weight) * with_reference_G[left] + weight * with_reference_G[left + 1]
        variance_G = np.diagonal(covariance) - 2 * with_reference_G + own
        doubt_n: FloatArray = np.sqrt(np.maximum(np.interp(self._worked_on(first, last), _KNOT, variance_G), 0.0))
        return doubt_n

    def _worked_on(self, first: int, last: int) -> IntArray:
        """What the sizes from ``first`` to ``last`` are padded to."""
        size_n = np.arange(first, last + 1)
        return buckets_of(size_n) if self._in_buckets else size_n

    def _locate(self, size: int) -> tuple[int, float]:
        """Knot to the left and weight of the one to its right."""
        left = min(max(int(np.searchsorted(_KNOT, size, side="right")) - 1, 0), len(_KNOT) - 2)
        weight = (size - _KNOT[left]) / (_KNOT[left + 1] - _KNOT[left])
        return left, float(min(max(weight, 0.0), 1.0))

    def _surprise(self, size: int, seconds: float, variance: float) -> tuple[float, float]:
        """How far a measurement lies from the estimate, in the logarithm, and the deviation that was to be expected."""
        left, weight = self._locate(size)
        mean, covariance = self._mean_G, self._covariance_GG
        expected = (1 - weight) * mean[left] + weight * mean[left + 1]
        known = (
            (1 - weight) ** 2 * covariance[left, left]
            + 2 * weight * (1 - weight) * covariance[left, left + 1]
            + weight**2 * covariance[left + 1, left + 1]
        )
        return math.log(seconds) - float(expected), math.sqrt(float(known) + variance)

    def _update(self, size: int, seconds: float, variance: float) -> None:
        left, weight = self._locate(size)
        surprise, spread = self._surprise(size, seconds, variance)
        covariance_GG = self._covariance_GG
        with_size_G = (1 - weight) * covariance_GG[:, left] + weight * covariance_GG[:, left + 1]
        gain_G = with_size_G / spread**2
        self._mean_G = self._mean_G + gain_G * surprise
        covariance_GG = covariance_GG - np.outer(gain_G, with_size_G)
        self._covariance_GG = (1 - _FADE) * covariance_GG + _FADE * _PRIOR_COVARIANCE
