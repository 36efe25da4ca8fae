"""What kernels calculate with, twice: for the GPU, and for numba's simulator, which has no libdevice."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import float32, int32, int64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, device

LOG2_E = float32(1 / math.log(2))
NOTHING = -(2**29)  # exponent of 0


if SIMULATED:
    fast_exp, larger = math.exp, max

    def exp2_less(x, shift):
        """2^(x log2 e - shift) = e^x / 2^shift."""
        return 2.0 ** (x * LOG2_E - shift) if x > -math.inf else x - x if x != x else 0.0

    def exp_split(x):
        """e^x as a mantissa near 1 and an exponent of 2; (0, NOTHING) for -inf. NaN stays a NaN mantissa."""
        if x < -1e8:
            return 0.0, NOTHING
        whole = round(x / math.log(2)) if x == x else 0
        return math.exp(x - whole * math.log(2)), whole

    def pack_number(mantissa, exponent):
        """A float32 and an int32 in one word."""
        return np.array([mantissa], np.float32).view(np.int32).astype(np.int64)[0] & 0xFFFFFFFF | int(exponent) << 32

    def unpack_number(word):
        return np.array([word], np.int64).view(np.float32)[0], int(word) >> 32

    def bits_of_single(x):
        return np.array([x], np.float32).view(np.int32)[0]

    def single_of_bits(word):
        return np.array([word], np.int32).view(np.float32)[0]

    def bits_of_double(x):
        return np.array([x], np.float64).view(np.int64)[0]

    def double_of_bits(word):
        return np.array([word], np.int64).view(np.float64)[0]

    def times_power_of_2(mantissa, exponent):
        """mantissa x 2^exponent, for exponents that float32 has; 0 below."""
        return math.ldexp(mantissa, int(exponent)) if exponent > -127 else mantissa * 0.0

    def sum_of_powers(a, a_exponent, b, b_exponent):
        """a 2^a_exponent + b 2^b_exponent, not normalised; of a sum 0 the exponent is at least NOTHING."""
        exponent = max(a_exponent, b_exponent, NOTHING)
        scaled = times_power_of_2(a, a_exponent - exponent) + times_power_of_2(b, b_exponent - exponent)
        return scaled, exponent

    def normalised(mantissa, exponent):
        """The same number with a mantissa in [1, 2); (0, NOTHING) for 0."""
        if not mantissa > 0:
            return mantissa, NOTHING
        fraction, shift = math.frexp(mantissa)
        return 2 * fraction, exponent + shift - 1

else:
    from numba.cuda import libdevice

    larger = libdevice.fmaxf  # one instruction; a NaN gives way to a number

    def _exp2():
        from llvmlite import ir
        from numba.core import types
        from numba.cuda.extending import intrinsic

        @intrinsic
        def exp2(typingctx, x):
            """2^x to 2 ulp, which is below what half precision keeps; 0 where it is no normal float32."""

            def codegen(context, builder, signature, arguments):
                single = ir.FloatType()
                instruction = ir.InlineAsm(ir.FunctionType(single, [single]), "ex2.approx.ftz.f32 $0, $1;", "=f,f")
                return builder.call(instruction, arguments)

            return types.float32(types.float32), codegen

        return exp2

    _power_of_2 = _exp2()

    @device
    def exp2_less(x, shift):
        """2^(x log2 e - shift) = e^x / 2^shift."""
        return _power_of_2(libdevice.fmaf(x, LOG2_E, -shift))

    @device
    def fast_exp(x):
        return _power_of_2(x * LOG2_E)

    @device
    def exp_split(x):
        """e^x as a mantissa near 1 and an exponent of 2; (0, NOTHING) for -inf. NaN stays a NaN mantissa."""
        low = max(x, float32(-1e8))
        whole = libdevice.rintf(low * float32(1.44269504))
        # ln 2 in two parts, the first with few bits: the remainder is exact to float32
        rest = libdevice.fmaf(whole, float32(2.12194440e-4), libdevice.fmaf(whole, float32(-0.693359375), low))
        mantissa, exponent = libdevice.fast_expf(rest), int32(whole)
        return (float32(0), int32(NOTHING)) if x < float32(-1e8) else (mantissa, exponent)

    @device
    def pack_number(mantissa, exponent):
        """A float32 and an int32 in one word."""
        return (int64(exponent) << int64(32)) | (int64(libdevice.float_as_int(mantissa)) & int64(0xFFFFFFFF))

    @device
    def unpack_number(word):
        return libdevice.int_as_float(int32(word)), int32(word >> int64(32))

    bits_of_single, single_of_bits = libdevice.float_as_int, libdevice.int_as_float
    bits_of_double, double_of_bits = libdevice.double_as_longlong, libdevice.longlong_as_double

    # numba adds two int32 as int64, which a GPU does in two instructions or three: so int32() at every step.

    @device
    def times_power_of_2(mantissa, exponent):
        """mantissa x 2^exponent, for exponents that float32 has; 0 below."""
        within = libdevice.min(libdevice.max(int32(exponent + int32(127)), int32(0)), int32(254))
        return mantissa * libdevice.int_as_float(int32(within << int32(23)))

    @device
    def sum_of_powers(a, a_exponent, b, b_exponent):
        """a 2^a_exponent + b 2^b_exponent, not normalised; of a sum 0 the exponent is at least NOTHING."""
        exponent = libdevice.max(libdevice.max(a_exponent, b_exponent), int32(NOTHING))
        a_within = libdevice.max(int32(int32(a_exponent - exponent) + int32(127)), int32(0))
        b_within = libdevice.max(int32(int32(b_exponent - exponent) + int32(127)), int32(0))
        a_scaled = a * libdevice.int_as_float(int32(a_within << int32(23)))
        b_scaled = b * libdevice.int_as_float(int32(b_within << int32(23)))
        return a_scaled + b_scaled, exponent

    @device
    def normalised(mantissa, exponent):
        """The same number with a mantissa in [1, 2); (0, NOTHING) for 0."""
        bits = libdevice.float_as_int(mantissa)
        shift = int32(int32(bits >> int32(23)) - int32(127))
        within = libdevice.int_as_float(int32(int32(bits & int32(0x007FFFFF)) | int32(0x3F800000)))
        return (within, int32(exponent + shift)) if mantissa > 0 else (mantissa, int32(NOTHING))


@cache
def exponentials(kind: str) -> SimpleNamespace:
    """e^(x - y), where many x meet one y: half precision takes two instructions, and y as it is scaled once.

    Args:
        kind: storage type: "float64", "float32", "float16" or "bfloat16".

    Returns:
        Device functions exp(x); exp_less(x, scaled(y)) = e^(x - y); maximum(a, b).
    """
    if kind in ("float16", "bfloat16"):

        @device
        def scaled(y):
            return y * LOG2_E

        return SimpleNamespace(exp=fast_exp, exp_less=exp2_less, scaled=scaled, maximum=larger)

    @device
    def exp_less(x, y):
        return math.exp(x - y)

    @device
    def scaled(y):
        return y

    @device
    def maximum(a, b):
        return a if a > b else b

    return SimpleNamespace(exp=math.exp, exp_less=exp_less, scaled=scaled, maximum=maximum)
