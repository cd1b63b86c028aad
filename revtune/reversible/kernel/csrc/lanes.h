// Vectors of floats as wide as the instruction set has them, with a fused multiply-add where it has one.
// REVTUNE_LANES tells which: 16 (AVX-512), 8 (AVX2 with FMA) or 4.

constexpr int lanes = REVTUNE_LANES, most_rows = lanes == 16 ? 12 : lanes == 8 ? 6 : 4;

typedef float Lanes __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * lanes)));

inline __attribute__((always_inline)) Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
#if REVTUNE_LANES == 16
  return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif REVTUNE_LANES == 8
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Lanes)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline __attribute__((always_inline)) Lanes broadcast(float value) { return value - Lanes{}; }

// The smaller and the larger of two numbers, `a` where it is NaN: compilers make a comparison and a choice of it.
inline __attribute__((always_inline)) Lanes least(Lanes a, float limit) {
#if REVTUNE_LANES == 16
  return (Lanes)_mm512_min_ps((__m512)broadcast(limit), (__m512)a);
#elif REVTUNE_LANES == 8
  return (Lanes)_mm256_min_ps((__m256)broadcast(limit), (__m256)a);
#else
  return a > limit ? broadcast(limit) : a;
#endif
}

inline __attribute__((always_inline)) Lanes most(Lanes a, float limit) {
#if REVTUNE_LANES == 16
  return (Lanes)_mm512_max_ps((__m512)broadcast(limit), (__m512)a);
#elif REVTUNE_LANES == 8
  return (Lanes)_mm256_max_ps((__m256)broadcast(limit), (__m256)a);
#else
  return a < limit ? broadcast(limit) : a;
#endif
}
