"""The lattice's numbers, from e^0 down to e^-100000, each a word in memory.

In float32 a mantissa and an exponent, which multiply and add in few steps and as exactly as float32 does, where a
logarithm of thousands would keep three digits after the point. In float64 a logarithm, with an exponent of 0.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import float32, float64, int32

from nemo_sampled_rnnt.gpu.launch import (
    NOTHING,
    bits_of_double,
    device,
    double_of_bits,
    exp_split,
    normalised,
    pack_number,
    sum_of_powers,
    times_power_of_2,
    unpack_number,
)

LOG_2 = float64(math.log(2))


@cache
def numbers(kind: str) -> SimpleNamespace:
    """Device functions for a storage type.

    Returns:
        number(log) -> the pair of a logarithm; stored(pair) -> word; loaded(word) -> pair; plus(pair, pair);
        times(pair, pair); log_of(pair) -> float64; posterior(alpha, beta, arc, log P) -> alpha beta / (arc P) of three
        words; zero, zero_exponent: the pair of 0.
    """
    if kind == "float64":
        infinity = float64(math.inf)

        @device
        def number(log_value):
            return log_value, int32(0)

        @device
        def stored(value, exponent):
            return bits_of_double(value)

        @device
        def loaded(word):
            return double_of_bits(word), int32(0)

        @device
        def plus(a, a_exponent, b, b_exponent):
            high, low = (b, a) if b > a else (a, b)
            if low == -infinity:
                return high, int32(0)
            return high + math.log1p(math.exp(low - high)), int32(0)

        @device
        def times(a, a_exponent, b, b_exponent):
            return a + b, int32(0)

        @device
        def log_of(value, exponent):
            return value

        @device
        def posterior(alpha, beta, arc, log_likelihood):
            p = double_of_bits(arc)
            total = double_of_bits(alpha) + double_of_bits(beta)
            return math.exp(total - p - log_likelihood) if p > -infinity else float64(0)

        zero, zero_exponent = -infinity, int32(0)
    else:
        infinity = float64(math.inf)

        @device
        def number(log_value):
            return exp_split(log_value)

        @device
        def stored(mantissa, exponent):
            return pack_number(mantissa, exponent)

        @device
        def loaded(word):
            return unpack_number(word)

        plus = sum_of_powers

        @device
        def times(a, a_exponent, b, b_exponent):
            return normalised(a * b, int32(a_exponent + b_exponent))

        @device
        def log_of(mantissa, exponent):
            if mantissa == 0:
                return -infinity
            return float64(exponent) * LOG_2 + float64(math.log(mantissa))

        @device
        def posterior(alpha, beta, arc, log_likelihood):
            a, a_exponent = unpack_number(alpha)
            b, b_exponent = unpack_number(beta)
            p, p_exponent = unpack_number(arc)
            whole = math.floor(log_likelihood / LOG_2)
            rest = math.exp(float32(whole * LOG_2 - log_likelihood))
            ratio = a * b / p * rest if p > 0 else float32(0)
            exponent = int32(int32(a_exponent + b_exponent) - int32(p_exponent + int32(whole)))
            return times_power_of_2(ratio, exponent)

        zero, zero_exponent = float32(0), int32(NOTHING)

    return SimpleNamespace(
        number=number, stored=stored, loaded=loaded, plus=plus, times=times, log_of=log_of, posterior=posterior,
        zero=zero, zero_exponent=zero_exponent,
    )  # fmt: skip
