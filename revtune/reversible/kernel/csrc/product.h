// The small product of a step: outputs = inputs * W for the few rows of a thread.
//
// Every output is one chain of multiply-adds over the inputs in their order, whatever the number of rows, their cut
// into blocks, the number of threads or the width of the vectors. So its bits depend on its row and on W alone.

constexpr int panel_width = 2 * lanes;

// The inputs [begin, end) of a product.
struct Span {
  int64_t begin, end;
};

// What a product asks for ahead, since it does not stay in the caches.
enum class Ahead { nothing, outputs, weight };

struct alignas(64) PanelRow {
  float values[panel_width];
};
constexpr PanelRow zeros{};

// The panel of outputs at `column` for R rows, whose chains begin with the numbers at `from`, or go on from the outputs
// if there are none. `weight` has the panel's values for the span's first input; those for the next are `stride` further
// on.
template <int R, Ahead ahead>
inline __attribute__((always_inline)) void panel_product(
    const float* const* inputs, Span span, const float* from, const float* weight, int64_t stride,
    float* const* outputs, int64_t column) {
  Lanes sums[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    const float* first = from ? from : outputs[r] + column;
    sums[r][0] = *(const Lanes*)first;
    sums[r][1] = *(const Lanes*)(first + lanes);
    if (ahead == Ahead::outputs) {
      __builtin_prefetch(outputs[r] + column, 1);
      __builtin_prefetch(outputs[r] + column + lanes, 1);
    }
  }
  for (int64_t k = span.begin; k < span.end; k++, weight += stride) {
    const Lanes left = *(const Lanes*)weight, right = *(const Lanes*)(weight + lanes);
    if (ahead == Ahead::weight)
      for (int i = 0; i <= 2; i++) __builtin_prefetch(weight + 32 * stride + i * lanes - i / 2);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Lanes input = broadcast(inputs[r][k]);
      sums[r][0] = multiply_add(left, input, sums[r][0]);
      sums[r][1] = multiply_add(right, input, sums[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    *(Lanes*)(outputs[r] + column) = sums[r][0];
    *(Lanes*)(outputs[r] + column + lanes) = sums[r][1];
  }
}

template <int R, Ahead ahead>
void panel_of_rows(int64_t rows, const float* const* inputs, Span span, const float* from, const float* weight,
                   int64_t stride, float* const* outputs, int64_t column) {
  if constexpr (R > 1) {
    if (rows < R) return panel_of_rows<R - 1, ahead>(rows, inputs, span, from, weight, stride, outputs, column);
  }
  panel_product<R, ahead>(inputs, span, from, weight, stride, outputs, column);
}

// Where the rows of a product begin; room for the pointers of one thread.
struct Rows {
  std::vector<const float*> inputs;
  std::vector<float*> outputs;

  explicit Rows(int64_t rows) : inputs(rows), outputs(rows) {}
};

// One panel for all rows, a block of them after another.
template <Ahead ahead = Ahead::nothing>
void panel_for_all(const Rows& at, int64_t rows, Span span, const float* from, const float* weight, int64_t stride,
                   int64_t column) {
  const int64_t blocks = (rows + most_rows - 1) / most_rows;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t begin = rows * b / blocks, end = rows * (b + 1) / blocks;
    panel_of_rows<most_rows, ahead>(end - begin, &at.inputs[begin], span, from, weight, stride, &at.outputs[begin],
                                    column);
  }
}

inline int64_t padded(int64_t outputs) { return (outputs + panel_width - 1) / panel_width * panel_width; }

// Panels of one row, `apart` from each other, at once: the multiply-adds of one row and panel wait for each other.
// Their chains begin with zero, or go on from the output.
template <int panels>
void panels_of_row(const float* input, Span span, const float* weight, int64_t stride, int64_t apart, float* output) {
  Lanes sums[panels][2] = {};
  if (span.begin) std::memcpy(sums, output, sizeof sums);
  for (int64_t k = span.begin; k < span.end; k++, weight += stride) {
    const Lanes factor = broadcast(input[k]);
#pragma GCC unroll 4
    for (int p = 0; p < panels; p++) {
      const float* panel = weight + p * apart;
      sums[p][0] = multiply_add(*(const Lanes*)panel, factor, sums[p][0]);
      sums[p][1] = multiply_add(*(const Lanes*)(panel + lanes), factor, sums[p][1]);
    }
  }
  std::memcpy(output, sums, sizeof sums);
}

// W times each input row, W being packed; output rows have room for `padded(outputs)`.
inline void product(Rows& at, int64_t rows, int64_t inputs, int64_t outputs, const float* packed) {
  constexpr int64_t wide = 4 * panel_width;
  int64_t column = 0;
  for (; rows == 1 && column + wide <= padded(outputs); column += wide)
    panels_of_row<4>(at.inputs[0], {0, inputs}, packed + column * inputs, panel_width, inputs * panel_width,
                     at.outputs[0] + column);
  for (; column < outputs; column += panel_width)
    panel_for_all(at, rows, {0, inputs}, zeros.values, packed + column * inputs, panel_width, column);
}

// Each input row times W, for W of shape (inputs, outputs) as it is, whose rows are `stride` apart; at least a panel of
// outputs. Inputs are taken some at a time, so that those of a block of rows stay near. A last panel that outputs do not
// fill ends where they end, over what the one before it wrote: the same values come out.
template <Ahead ahead>
void transposed_product(const Rows& at, int64_t rows, int64_t inputs, int64_t outputs, const float* weight,
                        int64_t stride) {
  constexpr int64_t some = 256;
  const int64_t filled = outputs / panel_width * panel_width;
  constexpr int64_t wide = 2 * panel_width;
  for (int64_t first = 0; first < inputs; first += some) {
    const Span span{first, std::min(first + some, inputs)};
    int64_t column = 0;
    for (; ahead == Ahead::nothing && rows == 1 && column + wide <= filled; column += wide)
      panels_of_row<2>(at.inputs[0], span, weight + first * stride + column, stride, panel_width,
                       at.outputs[0] + column);
    for (; column < filled; column += panel_width)
      panel_for_all<ahead>(at, rows, span, first ? nullptr : zeros.values, weight + first * stride + column, stride,
                           column);
  }
  if (filled < outputs)
    panel_for_all<ahead>(at, rows, {0, inputs}, zeros.values, weight + outputs - panel_width, stride,
                         outputs - panel_width);
}

// The same for a weight under a mask, of which those numbers are kept, times one factor, whose bytes are 1. A panel of it
// is laid out for some inputs at a time.
inline void masked_product(const Rows& at, int64_t rows, int64_t inputs, int64_t outputs, const float* weight,
                           const uint8_t* kept, float times) {
  constexpr int64_t some = 128;
  struct alignas(64) {
    float values[some * panel_width];
  } panel;
  const auto multiply = [&](int64_t first, int64_t column) {
    const Span span{first, std::min(first + some, inputs)};
    for (int64_t k = span.begin; k < span.end; k++) {
      const float* __restrict row = weight + k * outputs + column;
      const uint8_t* __restrict mask = kept + k * outputs + column;
      float* __restrict into = panel.values + (k - span.begin) * panel_width;
      for (int j = 0; j < panel_width; j++) into[j] = row[j] * ((float)mask[j] * times);
    }
    panel_for_all(at, rows, span, first ? nullptr : zeros.values, panel.values, panel_width, column);
  };
  const int64_t filled = outputs / panel_width * panel_width;
  for (int64_t first = 0; first < inputs; first += some)
    for (int64_t column = 0; column < filled; column += panel_width) multiply(first, column);
  for (int64_t first = 0; filled < outputs && first < inputs; first += some) multiply(first, outputs - panel_width);
}
