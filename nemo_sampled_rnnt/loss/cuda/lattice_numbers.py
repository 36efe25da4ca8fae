"""The numbers of the lattice on the GPU, from e^0 down to e^-10000.

In float32 a mantissa and an exponent of 2, which multiply and add in few steps and as exactly as float32 does; in
float64 a logarithm, with an exponent of 0. In memory: a word of 64 bits.
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


def word_of_one(kind: str) -> int:
    """e^0 as it lies in memory, for the host."""
    return 0 if kind == "float64" else 0x3F800000  # a logarithm of 0; a mantissa of 1.0 with an exponent of 0


@cache
def lattice_numbers(kind: str) -> SimpleNamespace:
    """Device functions on numbers, a number being two values (mantissa, exponent).

    Args:
        kind: storage type of the logits; "float64" has logarithms, the others mantissas.

    Returns:
        number(log value), stored(number) -> word, loaded(word) -> number, log_of(number) float64;
        sum_of_products(a, p, b, q) = a p + b q, added(a, b, q) = a + b q, settled(number), which normalises what these
        return; product(a, b), normalised; posterior(alpha, arc, beta, log P), of words; zero, zero_exponent: 0.
    """
    real = float64 if kind == "float64" else float32
    wide_infinity = float64(math.inf)
    infinity = real(math.inf)
    if kind == "float64":

        @device
        def number(log_value):
            return log_value, int32(0)

        @device
        def stored(mantissa, exponent):
            return bits_of_double(mantissa)

        @device
        def loaded(word):
            return double_of_bits(word), int32(0)

        @device
        def sum_of_products(a, a_exponent, p, p_exponent, b, b_exponent, q, q_exponent):
            high, low = a + p, b + q
            if low > high:
                high, low = low, high
            if low == -infinity:
                return high, int32(0)
            return high + math.log1p(math.exp(low - high)), int32(0)

        @device
        def log_of(mantissa, exponent):
            return mantissa

        @device
        def posterior(alpha, arc, beta, log_likelihood):
            return math.exp(double_of_bits(alpha) + double_of_bits(arc) + double_of_bits(beta) - log_likelihood)

        @device
        def added(a, a_exponent, b, b_exponent, q, q_exponent):
            return sum_of_products(a, a_exponent, real(0), int32(0), b, b_exponent, q, q_exponent)

        @device
        def product(a, a_exponent, b, b_exponent):
            return a + b, int32(0)

        @device
        def settled(a, a_exponent):
            return a, int32(0)

        zero, zero_exponent = -infinity, int32(0)
    else:

        @device
        def number(log_value):
            return exp_split(log_value)

        @device
        def stored(mantissa, exponent):
            return pack_number(mantissa, exponent)

        @device
        def loaded(word):
            return unpack_number(word)

        @device
        def sum_of_products(a, a_exponent, p, p_exponent, b, b_exponent, q, q_exponent):
            """a p + b q; mantissas double or halve by it, so that now and then they must be settled."""
            return sum_of_powers(a * p, int32(a_exponent + p_exponent), b * q, int32(b_exponent + q_exponent))

        @device
        def log_of(mantissa, exponent):
            if mantissa == 0:
                return -wide_infinity
            return float64(exponent) * LOG_2 + float64(math.log(mantissa))

        @device
        def posterior(alpha, arc, beta, log_likelihood):
            """alpha arc beta / P."""
            a, a_exponent = unpack_number(alpha)
            p, p_exponent = unpack_number(arc)
            b, b_exponent = unpack_number(beta)
            whole = math.floor(log_likelihood / LOG_2)
            rest = math.exp(real(whole * LOG_2 - log_likelihood))
            exponent = int32(int32(a_exponent + p_exponent) + int32(b_exponent - int32(whole)))
            return times_power_of_2(a * p * b * rest, exponent)

        @device
        def added(a, a_exponent, b, b_exponent, q, q_exponent):
            return sum_of_powers(a, a_exponent, b * q, int32(b_exponent + q_exponent))

        @device
        def product(a, a_exponent, b, b_exponent):
            return normalised(a * b, int32(a_exponent + b_exponent))

        @device
        def settled(a, a_exponent):
            return normalised(a, a_exponent)

        zero, zero_exponent = real(0), int32(NOTHING)

    return SimpleNamespace(
        number=number,
        stored=stored,
        loaded=loaded,
        log_of=log_of,
        sum_of_products=sum_of_products,
        posterior=posterior,
        zero=zero,
        zero_exponent=zero_exponent,
        added=added,
        product=product,
        settled=settled,
    )
