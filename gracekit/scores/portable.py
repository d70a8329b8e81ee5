"""Logarithm and exponential that are the same to the bit on every machine.

NumPy and the C library take different ways on different processors, and a last digit that differs
would be another draw. These take only exact steps, products, quotients and sums in a fixed order.
"""

from __future__ import annotations

import numpy as np

from gracekit.types import Float64

_LN2 = 0.6931471805599453
_TERMS_OF_LOG, _TERMS_OF_EXP = 12, 16


def log(values: Float64) -> Float64:
    """Natural logarithm [n] of numbers above 0, to about 1e-16 of its size or of 1.

    x = m · 2^e with m in [√½, √2), and log m = 2 artanh((m - 1) / (m + 1)) by its series.
    """
    fraction, exponent = np.frexp(values)
    is_low = fraction < 0.7071067811865476
    fraction = np.where(is_low, 2 * fraction, fraction)
    power = exponent - is_low
    ratio = (fraction - 1) / (fraction + 1)
    square, total = ratio * ratio, np.zeros(len(values))
    for k in range(_TERMS_OF_LOG, -1, -1):
        total = total * square + 1 / (2 * k + 1)
    result: Float64 = power * _LN2 + 2 * ratio * total
    return result


def exp(values: Float64) -> Float64:
    """E to the power of each of the numbers [n], to about 1e-15 of it; they are at most 500 apart
    from 0.

    e^x = 2^k · e^r with |r| at most half of log 2, by the series.
    """
    power = np.rint(values / _LN2)
    rest, total = values - power * _LN2, np.ones(len(values))
    for k in range(_TERMS_OF_EXP, 0, -1):
        total = 1 + rest / k * total
    result: Float64 = np.ldexp(total, power.astype(np.int32))
    return result
