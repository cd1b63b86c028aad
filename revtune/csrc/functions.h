// The gates' functions, evaluated alike wherever they are needed; compiled without contraction.

constexpr float log2_e = 1.44269504088896341f;
constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n * ln2_high is exact

// exp(x) = scale * (1 + rest), for |x| < 87.5.
struct Exponential {
  float scale, rest;
};

inline __attribute__((always_inline)) Exponential exponential(float x) {
  const float n = __builtin_rintf(x * log2_e);
  const float r = (x - n * ln2_high) - n * ln2_low;
  // expm1(r) = r + r^2 P(r) on |r| <= ln(2) / 2, fitted at Chebyshev nodes: 3e-10 relative.
  float p = 1.9899332e-4f;
  p = p * r + 1.3941161e-3f;
  p = p * r + 8.333298e-3f;
  p = p * r + 4.166635e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return {scale, r + (r * r) * p};
}

// 1 / (1 + exp(-x)), within 2.5 ulp down to x = -87.3, below which it stays at 1.2e-38. NaN stays NaN.
inline __attribute__((always_inline)) float sigmoid(float x) {
  float t = -x;
  t = t > 87.33f ? 87.33f : t;
  t = t < -87.33f ? -87.33f : t;
  const Exponential e = exponential(t);
  return 1.0f / (1.0f + (e.scale + e.scale * e.rest));
}

// (exp(2x) - 1) / (exp(2x) + 1), near zero a polynomial, 2e-9 relative; within 2 ulp. NaN stays NaN.
inline __attribute__((always_inline)) float hyperbolic_tangent(float x) {
  float a = __builtin_fabsf(x);
  a = a > 10.0f ? 10.0f : a;
  const Exponential e = exponential(a + a);
  const float t = (e.scale - 1.0f) + e.scale * e.rest;
  const float w = a * a;
  float p = 1.9728318e-2f;
  p = p * w - 5.379862e-2f;
  p = p * w + 1.3332897e-1f;
  p = p * w - 3.333333e-1f;
  const float near = a + a * (w * p), far = t / (t + 2.0f);
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
