// The gates' functions, evaluated alike wherever they are needed; compiled without contraction, fused where it says so.

// a * b + c, rounded once where the instruction set can.
inline __attribute__((always_inline)) float fused(float a, float b, float c) {
#if REVTUNE_LANES > 4 || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

constexpr float log2_e = 1.44269504088896341f;
constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n * ln2_high is exact

// exp(x) = scale * (1 + rest), for |x| < 87.5.
struct Exponential {
  float scale, rest;
};

inline __attribute__((always_inline)) Exponential exponential(float x) {
  constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves a whole number in the low bits
  const float shifted = fused(x, log2_e, rounder), n = shifted - rounder;
  const float r = fused(n, -ln2_low, fused(n, -ln2_high, x));
  // expm1(r) = r + r^2 P(r) on |r| <= ln(2) / 2, fitted at Chebyshev nodes: 3e-10 relative.
  float p = 1.9899332e-4f;
  p = fused(p, r, 1.3941161e-3f);
  p = fused(p, r, 8.333298e-3f);
  p = fused(p, r, 4.166635e-2f);
  p = fused(p, r, 1.6666667e-1f);
  p = fused(p, r, 0.5f);
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits << 23) + 0x3f800000u;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return {scale, fused(r * r, p, r)};
}

// 1 / (1 + exp(-x)), within 2.5 ulp down to x = -87.3, below which it stays at 1.2e-38. NaN stays NaN.
inline __attribute__((always_inline)) float sigmoid(float x) {
  const float a = __builtin_fabsf(x), t = a > 87.33f ? 87.33f : a;
  const Exponential e = exponential(__builtin_copysignf(t, -x));
  return 1.0f / (1.0f + fused(e.scale, e.rest, e.scale));
}

// (exp(2x) - 1) / (exp(2x) + 1), near zero a polynomial, 2e-9 relative; within 2 ulp. NaN stays NaN.
inline __attribute__((always_inline)) float hyperbolic_tangent(float x) {
  float a = __builtin_fabsf(x);
  a = a > 10.0f ? 10.0f : a;
  const Exponential e = exponential(a + a);
  const float t = fused(e.scale, e.rest, e.scale - 1.0f);
  const float w = a * a;
  float p = 1.9728318e-2f;
  p = fused(p, w, -5.379862e-2f);
  p = fused(p, w, 1.3332897e-1f);
  p = fused(p, w, -3.333333e-1f);
  const float near = fused(a, w * p, a), far = t / (t + 2.0f);
  return __builtin_copysignf(a < 0.35f ? near : far, x);
}

inline void sigmoid_of(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = sigmoid(x[i]);
}

inline void tanh_of(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = hyperbolic_tangent(x[i]);
}

// The forget integer of a sigmoid's value: its limit taken, rounded to 1..top of 1024.
inline __attribute__((always_inline)) float forget_integer(float value, float slope, float floor, float top) {
  float zi = __builtin_rintf((slope * value + floor) * 1024.0f);
  zi = zi < 1.0f ? 1.0f : zi;
  return zi > top ? top : zi;
}

inline __attribute__((always_inline)) double to_count(float value) {
  return __builtin_rint((double)value * 4294967296.0);
}

inline __attribute__((always_inline)) float from_count(double count) {
  return (float)(count * (1.0 / 4294967296.0));
}
