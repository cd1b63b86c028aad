"""Gates, counts and the information buffer as csrc/functions.h and csrc/coupling.h have them, without float64.

Counts are int64, heads int32, forget integers int32. Multiply-adds are fused where it says `fma` and nowhere else:
every kernel is compiled with `enable_fp_fusion=False`. No hardware approximation and no device library takes part, so
that the CPU kernel's own bits come out.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.44269504088896341)
LN2_HIGH = tl.constexpr(0.693359375)  # a whole number times it is exact
LN2_LOW = tl.constexpr(-2.12194440e-4)
ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2^23: added to a number below 2^22, it leaves a whole number in the low bits."""

HEAD_START = tl.constexpr(16384)
STATE_LIMIT = tl.constexpr(1048576.0)
COUNT_LIMIT = tl.constexpr(4503599627370496)
"""2^20 as a state, 2^52 as a count: both stay below."""


@triton.jit
def exponential(x):
    """exp(x) = scale (1 + rest), for |x| < 87.5: scale and rest."""
    shifted = tl.fma(x, LOG2_E, ROUNDER)
    n = shifted - ROUNDER
    r = tl.fma(n, -LN2_LOW, tl.fma(n, -LN2_HIGH, x))
    p = tl.full(x.shape, 1.9899332e-4, tl.float32)
    p = tl.fma(p, r, 1.3941161e-3)
    p = tl.fma(p, r, 8.333298e-3)
    p = tl.fma(p, r, 4.166635e-2)
    p = tl.fma(p, r, 1.6666667e-1)
    p = tl.fma(p, r, 0.5)
    power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return power.to(tl.float32, bitcast=True), tl.fma(r * r, p, r)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); NaN stays NaN."""
    held = tl.where(x > 87.33, 87.33, x)
    held = tl.where(held < -87.33, -87.33, held)
    scale, rest = exponential(-held)
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + tl.fma(scale, rest, scale))


@triton.jit
def tanh(x):
    """(exp(2x) - 1) / (exp(2x) + 1), near zero a polynomial; NaN stays NaN."""
    a = tl.abs(x)
    a = tl.where(a > 10.0, 10.0, a)
    scale, rest = exponential(a + a)
    t = tl.fma(scale, rest, scale - 1.0)
    w = a * a
    p = tl.full(x.shape, 1.9728318e-2, tl.float32)
    p = tl.fma(p, w, -5.379862e-2)
    p = tl.fma(p, w, 1.3332897e-1)
    p = tl.fma(p, w, -3.333333e-1)
    size = tl.where(a < 0.35, tl.fma(a, w * p, a), tl.div_rn(t, t + 2.0))
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    return ((size.to(tl.int32, bitcast=True) & 0x7FFFFFFF) | sign).to(tl.float32, bitcast=True)


@triton.jit
def forget_integer(z, slope, floor, TOP: tl.constexpr):
    """The forget integer of a sigmoid's value: its limit taken, rounded to 1..TOP of 1024."""
    rounded = ((z * slope + floor) * 1024.0 + ROUNDER) - ROUNDER
    return tl.minimum(tl.maximum(rounded.to(tl.int32), 1), TOP)


@triton.jit
def to_count(value):
    """rint(value 2^32) for |value| < 2^20. Scaling is exact; from 2^23 on a float32 is whole, else 2^23 rounds."""
    scaled = value * 4294967296.0
    size = tl.abs(scaled)
    whole = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size).to(tl.int64)
    return tl.where(scaled < 0.0, -whole, whole)


@triton.jit
def from_count(count):
    """The state of a count, rounded once."""
    return count.to(tl.float32) * 2.3283064365386963e-10


@triton.jit
def push(h, s, zi):
    """`multiply_turn` with a head that has room: h and s afterwards.

    a = 1024 s + (h mod 1024) takes 40 bits, so that it is divided digit by digit: two divisions of 32 bits.
    """
    z, digit = zi.to(tl.uint32), (h & 1023).to(tl.uint32)
    head = s.to(tl.uint32)
    high = head // z
    rest = ((head - high * z) << 10) + digit  # below 1024 z
    low = rest // z
    return (h >> 10) * zi.to(tl.int64) + (rest - low * z).to(tl.int64), ((high << 10) + low).to(tl.int32)


@triton.jit
def pop(h, s, zi):
    """`divide_turn`, the inverse of `push`: h and s before it, the latter without the word that it may want.

    |h| < 2^52 is divided in digits of base 2^22, the upper one signed.
    """
    z = zi.to(tl.uint32)
    top = (h >> 22).to(tl.int32)
    sign = top >> 31
    high = ((top ^ sign).to(tl.uint32) // z).to(tl.int32) ^ sign  # floor(top / z)
    rest = ((top - high * zi).to(tl.uint32) << 22) + (h & 4194303).to(tl.uint32)  # below 2^22 z
    low = rest // z
    head = s.to(tl.uint32)
    a = (head & 1023) * z + (rest - low * z)  # below 2^20
    quotient = (high.to(tl.int64) << 22) + low.to(tl.int64)
    return (quotient << 10) + (a & 1023).to(tl.int64), ((head >> 10) * z + (a >> 10)).to(tl.int32)


@triton.jit
def multiply_only(h, zi):
    """rint((h zi) / 1024) as float64 has it, whose product is rounded to 53 bits first; for |h| < 2^52."""
    product = h * zi.to(tl.int64)
    size = tl.where(product < 0, -product, product)
    lost = tl.zeros(size.shape, tl.int64)
    for bit in tl.static_range(53, 62):
        lost += (size >= (1 << bit)).to(tl.int64)
    size = tl.where(lost > 0, half_even(size, lost) << lost, size)
    whole = half_even(size, tl.full(size.shape, 10, tl.int64))
    return tl.where(product < 0, -whole, whole)


@triton.jit
def half_even(size, bits):
    """size / 2^bits to the nearest whole number, ties to even; nothing is asked of it where bits is 0."""
    some = tl.where(bits > 0, bits, 1)
    return (size + ((1 << (some - 1)) - 1) + ((size >> some) & 1)) >> some
