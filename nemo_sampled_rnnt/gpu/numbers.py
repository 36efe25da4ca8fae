"""The numbers of a lattice, from e^0 down to e^-100000.

In float32 a mantissa and an exponent of 2, which multiply and add in few steps and as exactly as float32 does, where a
logarithm of thousands would keep three digits after the point; in float64 a logarithm, with an exponent of 0. In
memory: a word of 64 bits.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import float32, float64, int32

from nemo_sampled_rnnt.gpu.arithmetic import (
    NOTHING,
    bits_of_double,
    double_of_bits,
    exp_split,
    normalised,
    pack_number,
    sum_of_powers,
    times_power_of_2,
    unpack_number,
)
from nemo_sampled_rnnt.gpu.launch import device

LOG_2 = float64(math.log(2))


@cache
def numbers(kind: str) -> SimpleNamespace:
    """Device functions on numbers, a number being two values (mantissa, exponent).

    Args:
        kind: storage type of the logits; "float64" has logarithms, the others mantissas.

    Returns:
        number(log value), stored(number) -> word, loaded(word) -> number, log_of(number) float64;
        plus(a, b) = a + b, sum_of_products(a, p, b, q) = a p + b q, added(a, b, q) = a + b q, none of them normalised;
        settled(number), which normalises; product(a, b), normalised; of words and log P, posterior(alpha, arc, beta) =
        alpha arc beta / P, and posterior_of_state(alpha, beta, arc) = alpha beta / (arc P), where both hold the arc;
        zero, zero_exponent: 0.
    """
    return _logarithms() if kind == "float64" else _mantissas()


def _logarithms() -> SimpleNamespace:
    infinity = float64(math.inf)

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
    def log_of(mantissa, exponent):
        return mantissa

    @device
    def plus(a, a_exponent, b, b_exponent):
        high, low = a, b
        if low > high:
            high, low = low, high
        if low == -infinity:
            return high, int32(0)
        return high + math.log1p(math.exp(low - high)), int32(0)

    @device
    def sum_of_products(a, a_exponent, p, p_exponent, b, b_exponent, q, q_exponent):
        return plus(a + p, int32(0), b + q, int32(0))

    @device
    def added(a, a_exponent, b, b_exponent, q, q_exponent):
        return plus(a, int32(0), b + q, int32(0))

    @device
    def product(a, a_exponent, b, b_exponent):
        return a + b, int32(0)

    @device
    def settled(a, a_exponent):
        return a, int32(0)

    @device
    def posterior(alpha, arc, beta, log_likelihood):
        return math.exp(double_of_bits(alpha) + double_of_bits(arc) + double_of_bits(beta) - log_likelihood)

    @device
    def posterior_of_state(alpha, beta, arc, log_likelihood):
        p = double_of_bits(arc)
        total = double_of_bits(alpha) + double_of_bits(beta)
        return math.exp(total - p - log_likelihood) if p > -infinity else float64(0)

    return SimpleNamespace(
        number=number, stored=stored, loaded=loaded, log_of=log_of, plus=plus, sum_of_products=sum_of_products,
        added=added, product=product, settled=settled, posterior=posterior, posterior_of_state=posterior_of_state,
        zero=-infinity, zero_exponent=int32(0),
    )  # fmt: skip


def _mantissas() -> SimpleNamespace:
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

    @device
    def log_of(mantissa, exponent):
        if mantissa == 0:
            return -infinity
        return float64(exponent) * LOG_2 + float64(math.log(mantissa))

    @device
    def sum_of_products(a, a_exponent, p, p_exponent, b, b_exponent, q, q_exponent):
        """Mantissas double or halve by it, so that now and then they must be settled."""
        return sum_of_powers(a * p, int32(a_exponent + p_exponent), b * q, int32(b_exponent + q_exponent))

    @device
    def added(a, a_exponent, b, b_exponent, q, q_exponent):
        return sum_of_powers(a, a_exponent, b * q, int32(b_exponent + q_exponent))

    @device
    def product(a, a_exponent, b, b_exponent):
        return normalised(a * b, int32(a_exponent + b_exponent))

    @device
    def settled(a, a_exponent):
        return normalised(a, a_exponent)

    @device
    def posterior(alpha, arc, beta, log_likelihood):
        a, a_exponent = unpack_number(alpha)
        p, p_exponent = unpack_number(arc)
        b, b_exponent = unpack_number(beta)
        whole = math.floor(log_likelihood / LOG_2)
        rest = math.exp(float32(whole * LOG_2 - log_likelihood))
        exponent = int32(int32(a_exponent + p_exponent) + int32(b_exponent - int32(whole)))
        return times_power_of_2(a * p * b * rest, exponent)

    @device
    def posterior_of_state(alpha, beta, arc, log_likelihood):
        a, a_exponent = unpack_number(alpha)
        b, b_exponent = unpack_number(beta)
        p, p_exponent = unpack_number(arc)
        whole = math.floor(log_likelihood / LOG_2)
        rest = math.exp(float32(whole * LOG_2 - log_likelihood))
        ratio = a * b / p * rest if p > 0 else float32(0)
        exponent = int32(int32(a_exponent + b_exponent) - int32(p_exponent + int32(whole)))
        return times_power_of_2(ratio, exponent)

    return SimpleNamespace(
        number=number, stored=stored, loaded=loaded, log_of=log_of, plus=sum_of_powers,
        sum_of_products=sum_of_products, added=added, product=product, settled=settled, posterior=posterior,
        posterior_of_state=posterior_of_state, zero=float32(0), zero_exponent=int32(NOTHING),
    )  # fmt: skip
