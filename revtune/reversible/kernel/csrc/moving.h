// What one thread needs for tangents: the same rows, and those of the tangents that products read.
//
// With a gate's pre-activation moved by a', a RevGRU's half, with the other half's h as v and its own as h, moves by
//   z' = m s (1 - s) a_z'    r' = r (1 - r) a_r'    g' = (1 - g^2) a_g'    h' <- z h' + (h - g) z' + (1 - z) g'
// and a RevLSTM's by
//   c' <- f c' + c f' + g i' + i g'    h' <- p h' + (h - e o t) p' + (1 - e p) (t o' + o (1 - t^2) c')
// where s is the unrounded z, m the slope of its limit, t = tanh(c) after the step and e the share, 1 or 0. Rounding
// passes straight through, as on the way back. What moves pre-activations are their inputs, the bias, the responses of
// products, s * (V v), though they add nothing to values, and h' itself by the recurrent weight.

class Moving : public Worker {
 public:
  const Tangent& task;
  std::vector<const float*> values;  // what the gates have read
  Table reset;

  Moving(const Tangent& task, int64_t blocks, int64_t rows)
      : Worker(*task.chunk, blocks, rows), task(task), values(rows), reset(rows, units) {}

  float* state(int group, int half, int64_t row) const {
    return task.state + ((group * 2 + half) * chunk.rows + row) * units;
  }

  // A row that begins anew does so from a state that does not move.
  void cut(int64_t row) const {
    for (int group = 0; group < chunk.groups; group++)
      for (int half = 0; half < 2; half++) std::fill_n(state(group, half, row), units, 0.0f);
  }

  // Notes what a half's gates have read, and points the product's inputs at its tangents.
  void read_both(int64_t begin, int64_t end, int half) {
    read_other(begin, end, half);
    const float* mask = chunk.mask[1 - half];
    for (int64_t p = begin; p < end; p++) {
      const int64_t row = p % chunk.rows;
      const float* moved = state(0, 1 - half, row);
      values[p - begin] = at.inputs[p - begin];
      at.inputs[p - begin] = mask ? masked(moved, mask + row * units, kept[p - begin]) : moved;
    }
  }

  // Add to n pre-activations' tangents, from a column of a row of gates on, what is not the recurrent weight's.
  void add_given(int64_t position, int64_t column, int64_t n, float* __restrict sum) const {
    const int64_t width = 2 * blocks * units, there = position * width + column;
    const int64_t own = position % chunk.rows * width + column;
    if (task.projected)
      for (int64_t j = 0; j < n; j++) sum[j] += task.projected[there + j];
    if (task.shift)
      for (int64_t j = 0; j < n; j++) sum[j] += task.shift[own + j];
    for (int i = 0; i < 2; i++)
      if (task.answer[i])
        for (int64_t j = 0; j < n; j++) sum[j] += task.scale[i][own + j] * task.answer[i][there + j];
  }

  // The tangents of a half's outputs are those of its state, also of a row that no longer runs.
  void write(int64_t position, int half) const {
    std::copy_n(state(0, half, position % chunk.rows), units, task.dy + (position * 2 + half) * units);
  }
};
