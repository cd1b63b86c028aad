// What one thread needs for gradients: the same rows, and products with W and V as they are stored.

class Backward : public Worker {
 public:
  const Gradient& task;
  Table more;

  Backward(const Gradient& task, int64_t blocks, int64_t rows)
      : Worker(*task.chunk, blocks, rows), task(task), more(rows, units), extra_(task.response ? rows : 0, units),
        scaled_(task.response ? rows : 0, blocks * units), stride_(std::max<int64_t>(units, panel_width)),
        weight_(widened(task.weight)), response_(task.response ? widened(task.response) : std::vector<float>()) {}

  float* direction(int group, int half, int64_t row) const {
    return task.direction + ((group * 2 + half) * chunk.rows + row) * units;
  }

  // The gradients of step t's outputs reach the state of every row, also of one that no longer runs.
  void add_output_gradient(int64_t t, int64_t begin, int64_t end) {
    if (!task.dy) return;
    for (int64_t row = begin; row < end; row++)
      for (int half = 0; half < 2; half++) {
        const float* dy = task.dy + ((t * chunk.rows + row) * 2 + half) * units;
        add(direction(0, half, row), dy);
      }
  }

  // No gradient crosses where a row begins anew: what has come there is that of the state from which it does.
  void cut(int64_t row) {
    for (int group = 0; group < chunk.groups; group++)
      for (int half = 0; half < 2; half++) {
        float* d = direction(group, half, row);
        if (task.anew) add(task.anew + (d - task.direction), d);
        std::fill_n(d, units, 0.0f);
      }
  }

  // Carry the gradients of gate blocks [first, first + some) of positions [begin, end) through the product they came
  // from: `into` gets the gradients of what it read.
  void through(int64_t begin, int64_t end, int half, int64_t first, int64_t some, Table& into) {
    const int64_t column = (half * blocks + first) * units, rows = end - begin;
    for (int64_t p = begin; p < end; p++) at.inputs[p - begin] = gates(p, half) + first * units;
    carry(into, rows, some, column, task.weight, weight_);
    if (!task.response) return;
    for (int64_t p = begin; p < end; p++) {
      const float *scale = chunk.scale + p % chunk.rows * 2 * blocks * units + column, *gate = at.inputs[p - begin];
      float* scaled = scaled_[p - begin];
      for (int64_t j = 0; j < some * units; j++) scaled[j] = gate[j] * scale[j];
      at.inputs[p - begin] = scaled;
    }
    carry(extra_, rows, some, column, task.response, response_);
    for (int64_t r = 0; r < rows; r++) add(into[r], extra_[r]);
  }

  // Add gradients of what a half read to the direction of the other half, under the mask it was read with.
  void add_read(int64_t row, int half, std::initializer_list<const float*> pieces) {
    const float* mask = chunk.mask[1 - half] ? chunk.mask[1 - half] + row * units : nullptr;
    float* into = direction(0, 1 - half, row);
    for (const float* piece : pieces)
      if (mask)
        for (int64_t j = 0; j < units; j++) into[j] += piece[j] * mask[j];
      else
        add(into, piece);
  }

 private:
  Table extra_, scaled_;
  const int64_t stride_;
  const std::vector<float> weight_, response_;

  // Weights narrower than a panel as they are used, with zeros beside them; nothing for others.
  std::vector<float> widened(const float* weight) const {
    if (units >= panel_width) return {};
    std::vector<float> wide((size_t)(2 * blocks * units * panel_width));
    for (int64_t row = 0; row < 2 * blocks * units; row++)
      for (int64_t j = 0; j < units; j++) {
        const float times = task.kept ? (float)task.kept[row * units + j] * task.kept_times : 1.0f;
        wide[(size_t)(row * panel_width + j)] = weight[row * units + j] * times;
      }
    return wide;
  }

  void add(float* __restrict into, const float* __restrict piece) const {
    for (int64_t j = 0; j < units; j++) into[j] += piece[j];
  }

  // Through the rows from `column` on of a weight, or of what it was widened to.
  void carry(Table& into, int64_t rows, int64_t some, int64_t column, const float* weight,
             const std::vector<float>& wide) {
    constexpr int64_t near = 6 << 20;  // bytes of both halves' weights that stay in the caches from step to step
    for (int64_t r = 0; r < rows; r++) at.outputs[r] = into[r];
    if (task.kept && wide.empty()) {
      const int64_t begin = column * units;
      return masked_product(at, rows, some * units, units, weight + begin, task.kept + begin, task.kept_times);
    }
    const bool far = 2 * blocks * units * units * (int64_t)sizeof(float) > near;
    const auto multiply = far ? transposed_product<Ahead::weight> : transposed_product<Ahead::nothing>;
    multiply(at, rows, some * units, stride_, (wide.empty() ? weight : wide.data()) + column * stride_, stride_);
  }
};
