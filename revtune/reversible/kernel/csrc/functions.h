// The gates' functions, evaluated alike wherever they are needed; compiled without contraction, fused where it says so.

// a * b + c, rounded once where the instruction set can.
inline __attribute__((always_inline)) float fused(float a, float b, float c) {
#if REVTUNE_LANES > 4 || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline __attribute__((always_inline)) Lanes fused(Lanes a, Lanes b, Lanes c) { return multiply_add(a, b, c); }

// A number as every lane of a vector, or as it is.
template <class Number>
inline __attribute__((always_inline)) Number all(float value) {
  return value - Number{};
}

inline __attribute__((always_inline)) float least(float a, float limit) { return a > limit ? limit : a; }
inline __attribute__((always_inline)) float most(float a, float limit) { return a < limit ? limit : a; }

inline __attribute__((always_inline)) float magnitude(float x) { return __builtin_fabsf(x); }
inline __attribute__((always_inline)) Lanes magnitude(Lanes x) { return (Lanes)((Words)x & 0x7fffffffu); }

// A number that is not negative, with the sign of x.
inline __attribute__((always_inline)) float signed_as(float value, float x) { return __builtin_copysignf(value, x); }
inline __attribute__((always_inline)) Lanes signed_as(Lanes value, Lanes x) {
  return (Lanes)((Words)value | ((Words)x & 0x80000000u));
}

// 2^n, for n in the lowest bits.
inline __attribute__((always_inline)) float power_of_two(float n) {
  uint32_t bits;
  std::memcpy(&bits, &n, 4);
  bits = (bits << 23) + 0x3f800000u;
  float power;
  std::memcpy(&power, &bits, 4);
  return power;
}
inline __attribute__((always_inline)) Lanes power_of_two(Lanes n) { return (Lanes)(((Words)n << 23) + 0x3f800000u); }

constexpr float log2_e = 1.44269504088896341f;
constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n * ln2_high is exact

// exp(x) = scale * (1 + rest), for |x| < 87.5.
template <class Number>
struct Exponential {
  Number scale, rest;
};

template <class Number>
inline __attribute__((always_inline)) Exponential<Number> exponential(Number x) {
  const auto constant = all<Number>;
  const Number rounder = constant(12582912.0f);  // 1.5 * 2^23: adding it leaves a whole number in the low bits
  const Number shifted = fused(x, constant(log2_e), rounder), n = shifted - rounder;
  const Number r = fused(n, constant(-ln2_low), fused(n, constant(-ln2_high), x));
  // expm1(r) = r + r^2 P(r) on |r| <= ln(2) / 2, fitted at Chebyshev nodes: 3e-10 relative.
  Number p = constant(1.9899332e-4f);
  p = fused(p, r, constant(1.3941161e-3f));
  p = fused(p, r, constant(8.333298e-3f));
  p = fused(p, r, constant(4.166635e-2f));
  p = fused(p, r, constant(1.6666667e-1f));
  p = fused(p, r, constant(0.5f));
  return {power_of_two(shifted), fused(r * r, p, r)};
}

// 1 / (1 + exp(-x)), within 2.5 ulp down to x = -87.3, below which it stays at 1.2e-38. NaN stays NaN.
template <class Number>
inline __attribute__((always_inline)) Number sigmoid(Number x) {
  const Exponential<Number> e = exponential(-most(least(x, 87.33f), -87.33f));
  return 1.0f / (1.0f + fused(e.scale, e.rest, e.scale));
}

// (exp(2x) - 1) / (exp(2x) + 1), near zero a polynomial, 2e-9 relative; within 2 ulp. NaN stays NaN.
template <class Number>
inline __attribute__((always_inline)) Number hyperbolic_tangent(Number x) {
  const auto constant = all<Number>;
  const Number a = least(magnitude(x), 10.0f);
  const Exponential<Number> e = exponential(a + a);
  const Number t = fused(e.scale, e.rest, e.scale - 1.0f);
  const Number w = a * a;
  Number p = constant(1.9728318e-2f);
  p = fused(p, w, constant(-5.379862e-2f));
  p = fused(p, w, constant(1.3332897e-1f));
  p = fused(p, w, constant(-3.333333e-1f));
  const Number near = fused(a, w * p, a), far = t / (t + 2.0f);
  return signed_as(a < 0.35f ? near : far, x);
}

inline __attribute__((always_inline)) Lanes some(const float* x, int64_t n) {
  PanelRow row{};
  std::copy_n(x, n, row.values);
  return *(const Lanes*)row.values;
}

// y = function(x) or function(x1 + x2), vector by vector; y may be any of these.
template <Lanes function(Lanes), class... Floats>
inline __attribute__((always_inline)) void apply(float* y, int64_t n, const Floats*... x) {
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) *(Lanes*)(y + j) = function((*(const Lanes*)(x + j) + ...));
  if (j == n) return;
  const Lanes last = function((some(x + j, n - j) + ...));
  std::copy_n((const float*)&last, n - j, y + j);
}

inline void sigmoid_of(const float* x, float* y, int64_t n) { apply<sigmoid<Lanes>>(y, n, x); }
inline void tanh_of(const float* x, float* y, int64_t n) { apply<hyperbolic_tangent<Lanes>>(y, n, x); }

inline void sigmoid_of_sums(const float* a, const float* b, float* y, int64_t n) {
  apply<sigmoid<Lanes>>(y, n, a, b);
}
inline void tanh_of_sums(const float* a, const float* b, float* y, int64_t n) {
  apply<hyperbolic_tangent<Lanes>>(y, n, a, b);
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
