// The small product with a weight as it is stored, for a single step: to pack it would cost more than to use it.
//
// Each output is the chain of multiply-adds of product.h, so the same bits come out. Four columns of `lanes` rows of the
// weight are turned at a time, in registers, and used at once by all rows of inputs.

constexpr int direct_rows = lanes == 16 ? 16 : 6;  // whose sums the registers hold beside what is turned

// Four columns of `lanes` rows that are `stride` apart: `lanes / 4` rows stand side by side in each of `four`.
inline __attribute__((always_inline)) void load_rows(const float* from, int64_t stride, Lanes* four) {
  for (int r = 0; r < 4; r++, from += stride) {
#if REVTUNE_LANES == 16
    __m512 rows = _mm512_castps128_ps512(_mm_loadu_ps(from));
    rows = _mm512_insertf32x4(rows, _mm_loadu_ps(from + 4 * stride), 1);
    rows = _mm512_insertf32x4(rows, _mm_loadu_ps(from + 8 * stride), 2);
    four[r] = (Lanes)_mm512_insertf32x4(rows, _mm_loadu_ps(from + 12 * stride), 3);
#elif REVTUNE_LANES == 8
    const __m256 rows = _mm256_castps128_ps256(_mm_loadu_ps(from));
    four[r] = (Lanes)_mm256_insertf128_ps(rows, _mm_loadu_ps(from + 4 * stride), 1);
#else
    four[r] = *(const Lanes*)from;
#endif
  }
}

// Turns each quarter of `lanes / 4` blocks of 4 x 4 numbers: from rows side by side to columns.
inline __attribute__((always_inline)) void turn_quarters(Lanes* v) {
#if defined(__clang__)
  const Lanes a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5), b = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const Lanes c = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5), d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), v[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  v[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5), v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
#else
  typedef int Index __attribute__((vector_size(4 * lanes)));
  Index low, high, left, right;
  for (int l = 0; l < lanes; l++) {
    const int block = l / 4 * 4, i = l % 4;
    low[l] = block + i / 2 + i % 2 * lanes, high[l] = low[l] + 2;
    left[l] = block + i % 2 + i / 2 * lanes, right[l] = left[l] + 2;
  }
  const Lanes a = __builtin_shuffle(v[0], v[1], low), b = __builtin_shuffle(v[0], v[1], high);
  const Lanes c = __builtin_shuffle(v[2], v[3], low), d = __builtin_shuffle(v[2], v[3], high);
  v[0] = __builtin_shuffle(a, c, left), v[1] = __builtin_shuffle(a, c, right);
  v[2] = __builtin_shuffle(b, d, left), v[3] = __builtin_shuffle(b, d, right);
#endif
}

// `lanes` outputs at `column` for R rows, whose chains begin with the numbers of `from`, or zero if there are none;
// `weight` has the first of these outputs' rows. Sums that are not finite make `finite` NaN.
template <int R, class Inputs>
inline __attribute__((always_inline)) void direct_outputs(
    const Inputs& inputs, int64_t n, const float* from, const float* weight, float* const* outputs,
    int64_t column, Lanes& finite) {
  Lanes sums[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) sums[r] = from ? *(const Lanes*)(from + column) : Lanes{};
  int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    Lanes four[4];
    // The next outputs' rows, in the order of memory: their cuts across would come too late, and in no order.
    for (int i = 0; i < 4; i++) __builtin_prefetch(weight + lanes * n + lanes * k + lanes * i);
    load_rows(weight + k, n, four);
    turn_quarters(four);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) sums[r] = multiply_add(four[i], broadcast(inputs(r, k + i)), sums[r]);
  }
  for (; k < n; k++) {
    Lanes last;
    for (int l = 0; l < lanes; l++) last[l] = weight[l * n + k];
    for (int r = 0; r < R; r++) sums[r] = multiply_add(last, broadcast(inputs(r, k)), sums[r]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    *(Lanes*)(outputs[r] + column) = sums[r];
    finite += sums[r] * 0.0f;
  }
}

// All outputs of R rows. A last vector that they do not fill ends where they end, over what the one before it wrote.
template <int R>
bool direct_rows_of(int64_t rows, const float* const* inputs, int64_t n, int64_t outputs, const float* from,
                    const float* weight, float* const* into) {
  if constexpr (R > 1) {
    if (rows < R) return direct_rows_of<R - 1>(rows, inputs, n, outputs, from, weight, into);
  }
  Lanes finite{};
  const auto all_outputs = [&](const auto& numbers) {
    for (int64_t column = 0; column < outputs; column += lanes) {
      const int64_t first = std::min(column, outputs - lanes);
      direct_outputs<R>(numbers, n, from, weight + first * n, into, first, finite);
    }
  };
  if constexpr (R > 4) {  // so many pointers do not stay in registers: the rows are laid side by side
    std::vector<float> beside((size_t)(n * R));
    for (int64_t k = 0; k < n; k++)
      for (int r = 0; r < R; r++) beside[k * R + r] = inputs[r][k];
    all_outputs([values = beside.data()](int r, int64_t k) { return values[k * R + r]; });
  } else {
    all_outputs([inputs](int r, int64_t k) { return inputs[r][k]; });
  }
  float sum = 0.0f;
  for (int l = 0; l < lanes; l++) sum += finite[l];
  return sum == 0.0f;
}

// Fewer outputs than a vector holds.
inline bool direct_few(const float* input, int64_t n, int64_t outputs, const float* from, const float* weight,
                       float* into) {
  float finite = 0.0f;
  for (int64_t j = 0; j < outputs; j++, weight += n) {
    float sum = from ? from[j] : 0.0f;
    for (int64_t k = 0; k < n; k++) sum = fused(weight[k], input[k], sum);
    into[j] = sum;
    finite += sum * 0.0f;
  }
  return finite == 0.0f;
}

// W times each input row, for W (outputs, n) as it is, each chain from a number of `from`, or zero if there are none.
// False if any result is not finite: that is so wherever an input or a weight is not.
inline bool direct_product(const Rows& at, int64_t rows, int64_t n, int64_t outputs, const float* from,
                           const float* weight) {
  bool finite = true;
  if (outputs < lanes) {
    for (int64_t r = 0; r < rows; r++) finite &= direct_few(at.inputs[r], n, outputs, from, weight, at.outputs[r]);
    return finite;
  }
  const int64_t blocks = (rows + direct_rows - 1) / direct_rows;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t begin = rows * b / blocks, end = rows * (b + 1) / blocks;
    finite &= direct_rows_of<direct_rows>(end - begin, &at.inputs[begin], n, outputs, from, weight, &at.outputs[begin]);
  }
  return finite;
}
