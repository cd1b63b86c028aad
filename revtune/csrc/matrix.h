// Matmuls over whole chunks, from the same small product: M positions times a weight, forward, back, and its gradient.
//
// Every number is again one chain of multiply-adds in a fixed order: its bits depend on neither M nor threads. Weights
// stay as they are; what has to be turned is turned a panel at a time, so that no copy of a weight is ever made.

// lanes vectors of a row each become one of a column each.
inline __attribute__((always_inline)) void transpose(Lanes* v) {
#if !defined(__clang__)
  typedef int Index __attribute__((vector_size(4 * lanes)));
#pragma GCC unroll 8
  for (int w = lanes / 2; w; w /= 2) {
    Index low, high;
    for (int l = 0; l < lanes; l++) {
      low[l] = l & w ? lanes + l - w : l;
      high[l] = l & w ? lanes + l : l + w;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++) {
      if (i & w) continue;
      const Lanes a = v[i], b = v[i + w];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + w] = __builtin_shuffle(a, b, high);
    }
  }
#else
  float t[lanes][lanes];
  for (int i = 0; i < lanes; i++)
    for (int j = 0; j < lanes; j++) t[j][i] = v[i][j];
  for (int i = 0; i < lanes; i++) v[i] = *(const Lanes*)t[i];
#endif
}

// Rows [column, column + panel_width) of W, (outputs, inputs), as the columns of a packed panel.
inline void pack_panel(const float* weight, int64_t outputs, int64_t inputs, int64_t column, float* packed) {
  for (int64_t j = 0; j < panel_width; j += lanes) {
    int64_t k = 0;
    if (column + j + lanes <= outputs)
      for (; k + lanes <= inputs; k += lanes) {
        Lanes block[lanes];
        for (int i = 0; i < lanes; i++) block[i] = *(const Lanes*)(weight + (column + j + i) * inputs + k);
        transpose(block);
        for (int i = 0; i < lanes; i++) *(Lanes*)(packed + (k + i) * panel_width + j) = block[i];
      }
    for (; k < inputs; k++)
      for (int64_t i = j; i < j + lanes; i++)
        packed[k * panel_width + i] = column + i < outputs ? weight[(column + i) * inputs + k] : 0.0f;
  }
}

inline void point_at(Rows& at, const Matrix& x, const Matrix& y, int64_t column, bool whole, std::vector<float>& spare) {
  for (int64_t r = 0; r < x.rows; r++) {
    at.inputs[r] = x.row(r);
    at.outputs[r] = whole ? y.row(r) + column : spare.data() + r * panel_width;
  }
}

// Panels [begin, end) of y = x W^T + bias.
void project(const Matrix& x, const float* weight, const float* bias, const Matrix& y, int64_t begin, int64_t end) {
  std::vector<float> packed((size_t)(x.columns * panel_width)), spare((size_t)(x.rows * panel_width));
  Rows at(x.rows);
  for (int64_t panel = begin; panel < end; panel++) {
    const int64_t column = panel * panel_width, n = std::min<int64_t>(panel_width, y.columns - column);
    pack_panel(weight, y.columns, x.columns, column, packed.data());
    point_at(at, x, y, column, n == panel_width, spare);
    panel_for_all(at, x.rows, {0, x.columns}, packed.data(), panel_width, 0);
    for (int64_t r = 0; r < x.rows; r++) {
      float *out = y.row(r) + column, *in = at.outputs[r];
      if (bias || in != out)
        for (int64_t j = 0; j < n; j++) out[j] = in[j] + (bias ? bias[column + j] : 0.0f);
    }
  }
}

// Columns [begin, end) of x = d W, for W (d.columns, x.columns). Columns that fill no panel go through a copy.
void project_back(const Matrix& d, const float* weight, const Matrix& x, int64_t begin, int64_t end) {
  const int64_t n = end - begin;
  Rows at(d.rows);
  for (int64_t r = 0; r < d.rows; r++) at.inputs[r] = d.row(r), at.outputs[r] = x.row(r) + begin;
  if (n >= panel_width) return transposed_product(at, d.rows, d.columns, n, weight + begin, x.columns);
  std::vector<float> wide((size_t)(d.columns * panel_width)), spare((size_t)(d.rows * panel_width));
  for (int64_t k = 0; k < d.columns; k++)
    std::copy(weight + k * x.columns + begin, weight + k * x.columns + end, wide.data() + k * panel_width);
  for (int64_t r = 0; r < d.rows; r++) at.outputs[r] = spare.data() + r * panel_width;
  transposed_product(at, d.rows, d.columns, panel_width, wide.data(), panel_width);
  for (int64_t r = 0; r < d.rows; r++) std::copy(at.outputs[r], at.outputs[r] + n, x.row(r) + begin);
}

// R rows and one panel of columns of W += d^T v: `d` and `v` point at the first position's numbers.
template <int R>
inline __attribute__((always_inline)) void outer_panel(
    const float* d, int64_t d_stride, const float* v, int64_t v_stride, int64_t positions, float* into, int64_t stride,
    int64_t columns) {
  Lanes sums[R][2];
  for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = Lanes{};
  for (int64_t p = 0; p < positions; p++, d += d_stride, v += v_stride) {
    const Lanes left = *(const Lanes*)v, right = *(const Lanes*)(v + lanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Lanes factor = broadcast(d[r]);
      sums[r][0] = multiply_add(left, factor, sums[r][0]);
      sums[r][1] = multiply_add(right, factor, sums[r][1]);
    }
  }
  for (int r = 0; r < R; r++, into += stride)
    if (columns == panel_width) {
      *(Lanes*)into += sums[r][0];
      *(Lanes*)(into + lanes) += sums[r][1];
    } else {
      for (int64_t j = 0; j < columns; j++) into[j] += sums[r][j / lanes][j % lanes];
    }
}

template <int R>
void outer_rows(int64_t rows, const float* d, int64_t d_stride, const float* v, int64_t v_stride, int64_t positions,
                float* into, int64_t stride, int64_t columns) {
  if constexpr (R > 1) {
    if (rows < R) return outer_rows<R - 1>(rows, d, d_stride, v, v_stride, positions, into, stride, columns);
  }
  outer_panel<R>(d, d_stride, v, v_stride, positions, into, stride, columns);
}

// Rows [begin, end) of W += d^T v. A last panel of columns that v does not fill is read from a copy.
void add_outer(const Matrix& d, const Matrix& v, const Matrix& into, int64_t begin, int64_t end) {
  constexpr int64_t group = 8 * most_rows;
  const int64_t left = v.columns % panel_width, filled = v.columns - left;
  std::vector<float> rest(left ? (size_t)(v.rows * panel_width) : 0);
  for (int64_t p = 0; left && p < v.rows; p++)
    std::copy(v.row(p) + filled, v.row(p) + v.columns, rest.data() + p * panel_width);
  for (int64_t first = begin; first < end; first += group)
    for (int64_t column = 0; column < v.columns; column += panel_width) {
      const bool whole = column < filled;
      for (int64_t g = first; g < std::min(first + group, end); g += most_rows)
        outer_rows<most_rows>(
            std::min<int64_t>(most_rows, end - g), d.values + g, d.stride, whole ? v.values + column : rest.data(),
            whole ? v.stride : panel_width, d.rows, into.row(g) + column, into.stride, whole ? panel_width : left);
    }
}
