"""Eight values of a row at a time: what makes numba-cuda read and write 16 bytes with one instruction.

Rows of hidden, logits and weights are padded to multiples of eight and start at multiples of 16 bytes. In half
precision an octet is one access, in float32 two, in float64 four; numba by itself makes one for each value. Half
precision arrives as 16-bit integers, since bfloat16 does not cross ``__cuda_array_interface__``.

In the simulator, which runs Python on NumPy arrays, the same functions work on single values.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np

from nemo_sampled_rnnt.gpu.launch import SIMULATED

OCTET = 8


@cache
def octets(kind: str, native: bool = True) -> SimpleNamespace:
    """How values of one storage type are read and written.

    Args:
        kind: "float64", "float32", "float16" or "bfloat16".
        native: the GPU rounds to bfloat16 by itself (compute capability 8.0 or later).

    Returns:
        Device functions load8(rows, place, out, first), store8(rows, place, values, first), load1(rows, place),
        store1(rows, place, value), and fetch(rows, place): what will be loaded is on its way to the L2 cache.
        ``rows`` is a pointer, ``place`` the first of eight elements, ``out`` and ``values`` are local arrays of float32
        (float64 for float64), worked on from ``first`` on.
    """
    return _simulated(kind) if SIMULATED else _compiled(kind, native)


def _simulated(kind: str) -> SimpleNamespace:
    def widen(values):
        if kind == "bfloat16":
            return (values.astype(np.int32) << 16).view(np.float32)
        return values.view(np.float16).astype(np.float32) if kind == "float16" else values

    def narrow(values):
        if kind == "bfloat16":
            bits = np.asarray(values, dtype=np.float32).view(np.int32)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.int16)
            return np.where(np.isnan(values), np.int16(0x7FC0), rounded)
        return np.asarray(values).astype(np.float16).view(np.int16) if kind == "float16" else values

    def array(rows):
        """The NumPy array that the simulator wraps, once or twice."""
        rows = getattr(rows, "_item", rows)
        return getattr(rows, "_ary", rows)

    def load8(rows, place, out, first):
        array(out)[first : first + OCTET] = widen(array(rows)[place : place + OCTET])

    def store8(rows, place, values, first):
        array(rows)[place : place + OCTET] = narrow(array(values)[first : first + OCTET])

    def load1(rows, place):
        return widen(array(rows)[place : place + 1])[0]

    def store1(rows, place, value):
        array(rows)[place] = narrow(np.asarray([value]))[0]

    def fetch(rows, place):
        array(rows)[place]  # beyond the end it fails here, as the memory checker would

    return SimpleNamespace(load8=load8, store8=store8, load1=load1, store1=store1, fetch=fetch)


def _compiled(kind: str, native: bool) -> SimpleNamespace:
    from llvmlite import ir
    from numba.core import types
    from numba.cuda.extending import intrinsic

    word, half, single, double = ir.IntType(32), ir.IntType(16), ir.FloatType(), ir.DoubleType()
    real = types.float64 if kind == "float64" else types.float32
    at_once = 2 if kind == "float64" else 4
    vector = ir.VectorType(double if kind == "float64" else single, at_once)

    def vectors(builder, rows, place, vector, how_many):
        """Pointers to the vectors that begin at an element."""
        first = builder.bitcast(builder.gep(rows, [place]), vector.as_pointer())
        return [builder.gep(first, [word(n)]) for n in range(how_many)]

    def locals_of(context, builder, array_type, array, first):
        """Pointers to eight elements of a local array."""
        data = context.make_array(array_type)(context, builder, array).data
        return [builder.gep(data, [builder.add(first, first.type(n))]) for n in range(OCTET)]

    def widen(builder, bits):
        """16 bits in the low half of a word to float32."""
        if kind == "bfloat16":
            return builder.bitcast(builder.shl(bits, word(16)), single)
        return builder.fpext(builder.bitcast(builder.trunc(bits, half), ir.HalfType()), single)

    def narrow_pair(builder, low, high):
        """Two float32, rounded to nearest even, as a word."""
        if kind == "bfloat16" and native:
            instruction = ir.InlineAsm(
                ir.FunctionType(word, [single, single]), "cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,f,f"
            )
            return builder.call(instruction, [high, low])
        bits = []
        for value in (low, high):
            if kind == "bfloat16":
                whole = builder.bitcast(value, word)
                odd = builder.and_(builder.lshr(whole, word(16)), word(1))
                rounded = builder.lshr(builder.add(builder.add(whole, word(0x7FFF)), odd), word(16))
                nan = builder.fcmp_unordered("uno", value, value)
                bits.append(builder.select(nan, word(0x7FC0), rounded))
            else:
                bits.append(builder.zext(builder.bitcast(builder.fptrunc(value, ir.HalfType()), half), word))
        return builder.or_(builder.shl(bits[1], word(16)), bits[0])

    def load_values(builder, rows, place):
        if kind in ("bfloat16", "float16"):
            (address,) = vectors(builder, rows, place, ir.VectorType(word, 4), 1)
            words, values = builder.load(address, align=16), []
            for n in range(4):
                both = builder.extract_element(words, word(n))
                if kind == "bfloat16":
                    upper = builder.bitcast(builder.and_(both, word(0xFFFF0000)), single)
                else:
                    upper = widen(builder, builder.lshr(both, word(16)))
                values += [widen(builder, both), upper]
            return values
        loaded = [builder.load(x, align=16) for x in vectors(builder, rows, place, vector, OCTET // at_once)]
        return [builder.extract_element(x, word(n)) for x in loaded for n in range(at_once)]

    def store_values(builder, rows, place, values):
        if kind in ("bfloat16", "float16"):
            values = [narrow_pair(builder, *values[n : n + 2]) for n in range(0, OCTET, 2)]
        of = ir.VectorType(word, 4) if len(values) == 4 else vector
        for i, address in enumerate(vectors(builder, rows, place, of, len(values) // of.count)):
            packed = ir.Constant(of, ir.Undefined)
            for n in range(of.count):
                packed = builder.insert_element(packed, values[i * of.count + n], word(n))
            builder.store(packed, address, align=16)

    @intrinsic
    def load8(typingctx, rows, place, out, first):
        def codegen(context, builder, signature, arguments):
            rows, place, out, first = arguments
            addresses = locals_of(context, builder, signature.args[2], out, first)
            for value, address in zip(load_values(builder, rows, place), addresses, strict=True):
                builder.store(value, address)
            return context.get_dummy_value()

        return types.void(rows, types.int64, out, types.int64), codegen

    @intrinsic
    def store8(typingctx, rows, place, values, first):
        def codegen(context, builder, signature, arguments):
            rows, place, values, first = arguments
            addresses = locals_of(context, builder, signature.args[2], values, first)
            store_values(builder, rows, place, [builder.load(address) for address in addresses])
            return context.get_dummy_value()

        return types.void(rows, types.int64, values, types.int64), codegen

    @intrinsic
    def load1(typingctx, rows, place):
        def codegen(context, builder, signature, arguments):
            value = builder.load(builder.gep(arguments[0], [arguments[1]]))
            return widen(builder, builder.zext(value, word)) if value.type == half else value

        return real(rows, types.int64), codegen

    @intrinsic
    def store1(typingctx, rows, place, value):
        def codegen(context, builder, signature, arguments):
            rows, place, value = arguments
            value = context.cast(builder, value, signature.args[2], real)
            if kind in ("bfloat16", "float16"):
                value = builder.trunc(narrow_pair(builder, value, value), half)
            builder.store(value, builder.gep(rows, [place]))
            return context.get_dummy_value()

        return types.void(rows, types.int64, value), codegen

    @intrinsic
    def fetch(typingctx, rows, place):
        def codegen(context, builder, signature, arguments):
            address = builder.ptrtoint(builder.gep(arguments[0], [arguments[1]]), ir.IntType(64))
            kind_of_call = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
            builder.call(ir.InlineAsm(kind_of_call, "prefetch.global.L2 [$0];", "l", side_effect=True), [address])
            return context.get_dummy_value()

        return types.void(rows, types.int64), codegen

    return SimpleNamespace(load8=load8, store8=store8, load1=load1, store1=store1, fetch=fetch)
