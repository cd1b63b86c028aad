// Matmuls over whole chunks, from the same small product: M positions times a weight, forward, back, and its gradient.
//
// Every number is again one chain of multiply-adds in a fixed order, one for each `panel_inputs` positions in a weight's
// gradient: its bits depend on no threads, and those of outputs not on M. Weights stay as they are; what has to be turned
// is turned a panel at a time, so that no copy of a weight is made, unless a small one was packed before.

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

// A panel of some inputs, turned or copied so that it lies densely, near and aligned.
constexpr int64_t panel_inputs = 512;
struct alignas(64) Panel {
  float values[panel_inputs * panel_width];
};

// Rows [column, column + panel_width) of W, (outputs, inputs), as the columns of a panel, for a span of inputs. Those of
// the next panel are asked for: far apart as they are, no processor sees them coming, and there is a product's time.
inline void turn_panel(const float* weight, int64_t outputs, int64_t inputs, int64_t column, Span span, float* packed) {
  const int64_t n = span.end - span.begin;
  weight += span.begin;
  for (int64_t j = 0; j < panel_width; j += lanes) {
    int64_t k = 0;
    if (column + j + lanes <= outputs)
      for (; k + lanes <= n; k += lanes) {
        Lanes block[lanes];
        for (int i = 0; i < lanes; i++) {
          const float* from = weight + (column + j + i) * inputs + k;
          block[i] = *(const Lanes*)from;
          __builtin_prefetch(from + panel_width * inputs, 0, 2);
        }
        transpose(block);
        for (int i = 0; i < lanes; i++) *(Lanes*)(packed + (k + i) * panel_width + j) = block[i];
      }
    for (; k < n; k++)
      for (int64_t i = j; i < j + lanes; i++)
        packed[k * panel_width + i] = column + i < outputs ? weight[(column + i) * inputs + k] : 0.0f;
  }
}

// Lay out `outputs` rows of W, (outputs, inputs), panel by panel, zeros at the end.
inline void pack_product(const float* weight, int64_t outputs, int64_t inputs, float* packed) {
  for (int64_t column = 0; column < outputs; column += panel_width, packed += inputs * panel_width)
    turn_panel(weight, outputs, inputs, column, {0, inputs}, packed);
}

// Columns [column, column + n) of rows of W as a panel, zeros beside them; those of the next panel are asked for.
inline void copy_panel(const float* weight, int64_t stride, int64_t column, int64_t n, Span span, float* packed) {
  for (int64_t k = span.begin; k < span.end; k++, packed += panel_width) {
    const float* row = weight + k * stride + column;
    if (n == panel_width) {
      *(Lanes*)packed = *(const Lanes*)row;
      *(Lanes*)(packed + lanes) = *(const Lanes*)(row + lanes);
      __builtin_prefetch(row + panel_width, 0, 2);
      __builtin_prefetch(row + panel_width + lanes, 0, 2);
    } else {
      for (int64_t j = 0; j < panel_width; j++) packed[j] = j < n ? row[j] : 0.0f;
    }
  }
}

// As `panel_for_all` for a panel of which outputs have room for n columns only.
inline void part_of_panel(const Rows& at, int64_t rows, Span span, const float* from, const float* weight,
                          int64_t column, int64_t n) {
  for (int64_t r = 0; r < rows; r++) {
    PanelRow whole;
    float *out = whole.values, *there = at.outputs[r] + column;
    std::copy(there, there + n, out);
    panel_of_rows<1, Ahead::nothing>(1, &at.inputs[r], span, from, weight, panel_width, &out, 0);
    std::copy(out, out + n, there);
  }
}

// Which of two loops over a weight is the outer one.
enum class Outer { columns, spans };

// Columns [begin, end) of y = x P + bias, if there is one, or of y += x P, some rows after another so that they stay
// near; `pack(column, n, span, room)` tells where a panel of P lies for some of x's columns, having laid it out if need
// be.
template <Outer outer, class Pack>
inline __attribute__((always_inline)) void multiply_panels(
    const Matrix<const float>& x, const Matrix<float>& y, const float* bias, bool add, int64_t begin, int64_t end,
    const Pack& pack) {
  // Whole blocks of rows for every instruction set, as many as stay near.
  const int64_t some = 288 * std::clamp<int64_t>(panel_inputs / std::max<int64_t>(1, x.columns), 1, 4);
  Panel panel;
  Rows at(std::min(some, x.rows));
  const auto span_from = [&](int64_t first) { return Span{first, std::min(first + panel_inputs, x.columns)}; };
  for (int64_t top = 0; top < x.rows; top += some) {
    const int64_t rows = std::min(some, x.rows - top);
    for (int64_t r = 0; r < rows; r++) at.inputs[r] = x.row(top + r), at.outputs[r] = y.row(top + r);
    const auto multiply = [&](int64_t column, Span span) {
      const int64_t n = std::min<int64_t>(panel_width, end - column);
      PanelRow from{};
      if (bias) std::copy(bias + column, bias + column + n, from.values);
      const float* values = pack(column, n, span, panel.values);
      const float* first = span.begin || add ? nullptr : from.values;
      if (n == panel_width)
        panel_for_all<Ahead::outputs>(at, rows, span, first, values, panel_width, column);
      else
        part_of_panel(at, rows, span, first, values, column, n);
    };
    if (outer == Outer::columns)
      for (int64_t column = begin; column < end; column += panel_width)
        for (int64_t k = 0; k < x.columns; k += panel_inputs) multiply(column, span_from(k));
    else
      for (int64_t k = 0; k < x.columns; k += panel_inputs)
        for (int64_t column = begin; column < end; column += panel_width) multiply(column, span_from(k));
  }
}

// Columns [begin, end) of y = x W^T + bias; `packed` is W as `pack_product` lays it out, or null.
void project(const Matrix<const float>& x, const float* weight, const float* packed, const float* bias,
             const Matrix<float>& y, int64_t begin, int64_t end) {
  const auto pack = [&](int64_t column, int64_t, Span span, float* room) -> const float* {
    if (packed) return packed + column * x.columns + span.begin * panel_width;
    turn_panel(weight, y.columns, x.columns, column, span, room);
    return room;
  };
  multiply_panels<Outer::columns>(x, y, bias, false, begin, end, pack);
}

// Columns [begin, end) of x = d W or, to add, of x += d W, for W (d.columns, x.columns). Some rows of W are read whole
// before the next: a panel of all of them would have a page of memory for each row.
void project_back(const Matrix<const float>& d, const float* weight, const Matrix<float>& x, bool add, int64_t begin,
                  int64_t end) {
  const auto pack = [&](int64_t column, int64_t n, Span span, float* room) {
    copy_panel(weight, x.columns, column, n, span, room);
    return room;
  };
  multiply_panels<Outer::spans>(d, x, nullptr, add, begin, end, pack);
}

// R rows and one panel of columns of W += d^T v: `d` and `v` point at the first position's numbers.
template <int R>
inline __attribute__((always_inline)) void outer_panel(
    const float* d, int64_t d_stride, const float* v, int64_t v_stride, int64_t positions, float* into, int64_t stride,
    int64_t columns) {
  Lanes sums[R][2];
  for (int r = 0; r < R; r++) {
    sums[r][0] = sums[r][1] = Lanes{};
    __builtin_prefetch(into + r * stride, 1);
    __builtin_prefetch(into + r * stride + lanes, 1);
  }
  for (int64_t p = 0; p < positions; p++, d += d_stride, v += v_stride) {
    const Lanes left = *(const Lanes*)v, right = *(const Lanes*)(v + lanes);
    // Positions lie too far apart for the processor to see the next ones coming.
    __builtin_prefetch(d + 12 * d_stride);
    __builtin_prefetch(d + 12 * d_stride + R - 1);
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

// Rows [begin, end) of W += d^T v.
void add_outer(const Matrix<const float>& d, const Matrix<const float>& v, const Matrix<float>& into, int64_t begin,
               int64_t end) {
  constexpr int64_t group = 8 * most_rows;
  Panel panel;
  for (int64_t p = 0; p < v.rows; p += panel_inputs) {
    const Span span{p, std::min(p + panel_inputs, v.rows)};
    for (int64_t first = begin; first < end; first += group)
      for (int64_t column = 0; column < v.columns; column += panel_width) {
        const int64_t n = std::min<int64_t>(panel_width, v.columns - column);
        copy_panel(v.values, v.stride, column, n, span, panel.values);
        for (int64_t g = first; g < std::min(first + group, end); g += most_rows)
          outer_rows<most_rows>(std::min<int64_t>(most_rows, end - g), d.row(p) + g, d.stride, panel.values,
                                panel_width, span.end - p, into.row(g) + column, into.stride, n);
      }
  }
}

// Positions [begin, end) of a projection become (y + bias) + s * products, if each row has a bias of its own. The row of
// a position is as `index` says, or, for (K, B, G), all rows take turns.
void add_answer(const Matrix<float>& y, const float* products, const float* scale, const float* bias,
                const int64_t* index, int64_t rows, int64_t begin, int64_t end) {
  const int64_t n = y.columns;
  for (int64_t p = begin; p < end; p++) {
    const int64_t row = (index ? index[p] : p % rows) * n;
    const float *__restrict factor = scale + row, *__restrict more = products + p * n, *__restrict own = bias + row;
    float* __restrict sum = y.row(p);
    if (bias)
      for (int64_t j = 0; j < n; j++) sum[j] = (sum[j] + own[j]) + factor[j] * more[j];
    else
      for (int64_t j = 0; j < n; j++) sum[j] = sum[j] + factor[j] * more[j];
  }
}

// For rows [begin, end) of the batch, d being a projection's gradient (K, B, G): sum += d * V x over steps, and s * d in
// the place of V's products, if they are asked for. Each row's steps are added up by themselves first.
void scale_back(const Matrix<const float>& d, const float* scale, float* products, float* sum, int64_t rows,
                bool scaled, int64_t begin, int64_t end) {
  constexpr int64_t some = 512;
  const int64_t n = d.columns;
  for (int64_t row = begin; row < end; row++)
    for (int64_t column = 0; column < n; column += some) {
      const int64_t width = std::min(some, n - column);
      float total[some] = {};
      const float* __restrict factor = scale + row * n + column;
      for (int64_t p = row; p < d.rows; p += rows) {
        const float* __restrict grad = d.row(p) + column;
        float* __restrict there = products + p * n + column;
        if (sum)
          for (int64_t j = 0; j < width; j++) total[j] += grad[j] * there[j];
        if (scaled)
          for (int64_t j = 0; j < width; j++) there[j] = grad[j] * factor[j];
      }
      if (sum)
        for (int64_t j = 0; j < width; j++) sum[row * n + column + j] += total[j];
    }
}

// For columns [begin, end) of the gradient (N, G) of `add_answer`'s positions, which are of the rows that `index` says:
// those of s and of the bias are added up by row, and s * d takes the place of V's products, if it is asked for.
void answer_back(const Matrix<const float>& d, const float* scale, const int64_t* index, float* products,
                 float* scale_sum, float* bias_sum, bool scaled, int64_t begin, int64_t end) {
  // So few that the sums of all rows stay near while positions go by.
  constexpr int64_t some = 512;
  const int64_t n = d.columns;
  for (int64_t column = begin; column < end; column += some) {
    const int64_t width = std::min(some, end - column);
    for (int64_t p = 0; p < d.rows; p++) {
      const int64_t row = index[p] * n + column;
      const float *__restrict grad = d.row(p) + column, *__restrict factor = scale + row;
      float *__restrict there = products + p * n + column, *__restrict sum = scale_sum + row;
      float* __restrict shift = bias_sum + row;
      for (int64_t j = 0; j < width; j++) sum[j] += grad[j] * there[j];
      for (int64_t j = 0; j < width; j++) shift[j] += grad[j];
      if (scaled)
        for (int64_t j = 0; j < width; j++) there[j] = grad[j] * factor[j];
    }
  }
}
