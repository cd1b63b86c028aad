// What one thread needs beside the chunk: rows of scratch, and the pointers into them.

// Floats that vectors like: rows of `stride`, which is at least a padded product, from a cache line's beginning on.
class Table {
 public:
  Table(int64_t rows, int64_t columns)
      : stride_((padded(columns) + line - 1) / line * line), lines_((size_t)(rows * stride_ / line)) {}
  float* operator[](int64_t row) { return (float*)lines_.data() + row * stride_; }

 private:
  static constexpr int64_t line = 16;
  struct alignas(64) Line {
    float values[line];
  };
  int64_t stride_;
  std::vector<Line> lines_;
};

// Floats of a part's counts.
inline void copy_floats(const double* __restrict counts, float* __restrict values, int64_t n) {
  for (int64_t j = 0; j < n; j++) values[j] = from_count(counts[j]);
}

class Worker {
 public:
  const Chunk& chunk;
  const int64_t units, blocks;
  Rows at;
  Table sums, extra, read, kept, zi;
  std::vector<uint8_t> flags;
  bool finite = true;  // whether all products with a weight as it is were

  Worker(const Chunk& chunk, int64_t blocks, int64_t rows)
      : chunk(chunk), units(chunk.units), blocks(blocks), at(rows), sums(rows, blocks * chunk.units),
        extra(chunk.response ? rows : 0, blocks * chunk.units), read(rows, chunk.units), kept(rows, chunk.units),
        zi(1, chunk.units), flags((size_t)chunk.width + 8), tally_(chunk.tally ? 1025 : 0) {}

  ~Worker() {
    for (size_t z = 0; z < tally_.size(); z++)
      if (tally_[z]) __atomic_fetch_add(chunk.tally + z, tally_[z], __ATOMIC_RELAXED);
  }

  bool runs(int64_t position) const {
    if (!chunk.lengths && !chunk.starts) return true;
    const int64_t row = position % chunk.rows, step = chunk.first + position / chunk.rows;
    return (!chunk.lengths || step < chunk.lengths[row]) && (!chunk.starts || step >= chunk.starts[row]);
  }
  float* gates(int64_t position, int half) const { return chunk.gates + (position * 2 + half) * blocks * units; }
  float* rh(int64_t position, int half) const { return chunk.rh + (position * 2 + half) * units; }
  // Whether a row begins anew before a step.
  bool anew(int64_t position) const { return chunk.resets && chunk.resets[position]; }
  // States h and c after a step; null for a c that is not kept.
  float* y(int64_t position, int half) const { return chunk.y + (position * 2 + half) * units; }
  float* c(int64_t position, int half) const { return chunk.c ? chunk.c + (position * 2 + half) * units : nullptr; }
  // After the step before it, whether or not the row begins anew in between.
  float* y_earlier(int64_t position, int half) const { return earlier(chunk.y_start, chunk.y, position, half); }
  float* c_earlier(int64_t position, int half) const {
    return chunk.c ? earlier(chunk.c_start, chunk.c, position, half) : nullptr;
  }
  // As a step finds them.
  const float* y_before(int64_t position, int half) const {
    return anew(position) ? anew_state(0, position, half) : y_earlier(position, half);
  }
  const float* c_before(int64_t position, int half) const {
    return anew(position) ? anew_state(1, position, half) : c_earlier(position, half);
  }
  double* counts(int group, int half, int64_t row) const {
    return chunk.counts + ((group * 2 + half) * chunk.rows + row) * units;
  }
  double* heads(int group, int64_t row) const { return chunk.heads + (group * chunk.rows + row) * chunk.width; }

  // The other half's h as a half's gates find it, unmasked: half 1 reads it before the step, half 2 after.
  const float* other(int64_t position, int half) const { return half ? y(position, 0) : y_before(position, 1); }

  // Points the product's inputs at the other half of positions [begin, end), masked if there is a mask.
  void read_other(int64_t begin, int64_t end, int half) {
    const float* mask = chunk.mask[1 - half];
    for (int64_t p = begin; p < end; p++) {
      const float* values = other(p, half);
      at.inputs[p - begin] = mask ? masked(values, mask + p % chunk.rows * units, read[p - begin]) : values;
    }
  }

  // sums = W inputs, or W inputs + s * (V inputs); `column` is the product's first column in a row of gates.
  void recurrent(int64_t begin, int64_t end, int64_t outputs, int64_t offset, int64_t column) {
    if (chunk.weight) return multiply_direct(end - begin, outputs, chunk.weight + column * units);
    multiply_into(sums, end - begin, outputs, chunk.packed + offset);
    if (!chunk.response) return;
    multiply_into(extra, end - begin, outputs, chunk.response + offset);
    for (int64_t p = begin; p < end; p++) {
      const float* scale = chunk.scale + p % chunk.rows * 2 * blocks * units + column;
      float *sum = sums[p - begin], *more = extra[p - begin];
      for (int64_t j = 0; j < outputs; j++) sum[j] = sum[j] + scale[j] * more[j];
      if (chunk.answers) std::copy_n(more, outputs, chunk.answers + p * 2 * blocks * units + column);
    }
  }

  // Multiply part (group, half) of a row by forget integers.
  void forget(int group, int half, int64_t row, const float* zi_row, Keep keep) {
    double* h = counts(group, half, row);
    if (keep == Keep::nothing) return multiply_only(h, zi_row, units);
    const bool stored = keep == Keep::all || (keep == Keep::cells && group == 1);
    const int64_t kept = sliced(group, half);
    if (stored) count(zi_row + kept, units - kept);
    multiply_only(h, zi_row, kept);
    multiply(h + kept, zi_row + kept, heads(group, row), units - kept, chunk.width,
             stored ? chunk.stacks + row : nullptr, flags.data());
  }

  bool restore(int group, int half, int64_t row, const float* zi_row) {
    const int64_t kept = sliced(group, half);
    double* h = counts(group, half, row) + kept;
    return divide(h, zi_row + kept, heads(group, row), units - kept, chunk.width, chunk.stacks[row], flags.data());
  }

  // Begin a row anew. What it loses goes on its stack, group by group, as far as that is kept; heads begin anew too, so
  // that the row goes on as if it stood alone.
  void begin_anew(int64_t row, Keep keep) {
    for (int group = 0; group < chunk.groups; group++) {
      Stack* stack = keep == Keep::all || (keep == Keep::cells && group == 1) ? chunk.stacks + row : nullptr;
      for (int half = 0; half < 2; half++) {
        double* h = counts(group, half, row);
        if (stack) push_whole(*stack, h, units, count_words);
        std::copy_n(anew_counts(group, half, row), units, h);
      }
      if (keep == Keep::nothing) continue;
      if (stack) push_whole(*stack, heads(group, row), chunk.width, head_words);
      std::fill_n(heads(group, row), chunk.width, head_start);
    }
  }

  // What one group of a row's states was before it began anew; false if it has not come back to there.
  bool take_lost(int group, int64_t row) {
    Stack& stack = chunk.stacks[row];
    double* head = heads(group, row);
    for (int64_t i = 0; i < chunk.width; i++)
      if (head[i] != head_start) return false;
    if (!pop_whole(stack, head, chunk.width, head_words)) return false;
    for (int half = 1; half >= 0; half--) {
      double* h = counts(group, half, row);
      if (!std::equal(h, h + units, anew_counts(group, half, row))) return false;
      if (!pop_whole(stack, h, units, count_words)) return false;
    }
    return true;
  }

  // The sliced units of h on floats, after a step and as they were kept before it.
  void round_slice(int half, double* h) const {
    for (int64_t j = 0; j < sliced(0, half); j++) h[j] = to_count(from_count(h[j]));
  }
  void take_slice(int half, double* h, int64_t position) const {
    const int64_t kept = sliced(0, half);
    for (int64_t j = 0; j < kept; j++) h[j] = to_count(chunk.slices[position * kept + j]);
  }

  // Forget integers of a gate as it was evaluated.
  void round_gate(const float* gate, float top, float* zi_row) const {
    const float slope = chunk.slope, floor = chunk.floor;
    for (int64_t j = 0; j < units; j++) zi_row[j] = forget_integer(gate[j], slope, floor, top);
  }

  // Floats of a half's states, of c if there is room for them.
  void copy_states(int64_t row, int half, float* h, float* c) const {
    copy_floats(counts(0, half, row), h, units);
    if (c) copy_floats(counts(1, half, row), c, units);
  }

  bool in_range(int64_t row, int half) const {
    bool fine = true;
    for (int group = 0; group < chunk.groups; group++) fine &= within_range(counts(group, half, row), units);
    return fine;
  }

 protected:
  const float* masked(const float* values, const float* mask, float* into) const {
    for (int64_t j = 0; j < units; j++) into[j] = values[j] * mask[j];
    return into;
  }

 private:
  std::vector<int64_t> tally_;

  int64_t sliced(int group, int half) const { return group == 0 && half == 0 ? chunk.sliced : 0; }

  static constexpr int count_words = 4, head_words = 2;  // counts are below 2^52, heads below 2^30

  const double* anew_counts(int group, int half, int64_t row) const {
    return chunk.anew + ((group * 2 + half) * chunk.rows + row) * units;
  }
  const float* anew_state(int group, int64_t position, int half) const {
    return chunk.anew_state + ((group * chunk.rows + position % chunk.rows) * 2 + half) * units;
  }

  float* earlier(float* start, float* values, int64_t position, int half) const {
    return position < chunk.rows ? start + (position * 2 + half) * units
                                 : values + ((position - chunk.rows) * 2 + half) * units;
  }

  void multiply_into(Table& table, int64_t rows, int64_t outputs, const float* packed) {
    for (int64_t r = 0; r < rows; r++) at.outputs[r] = table[r];
    product(at, rows, units, outputs, packed);
  }

  void multiply_direct(int64_t rows, int64_t outputs, const float* weight) {
    for (int64_t r = 0; r < rows; r++) at.outputs[r] = sums[r];
    finite &= direct_product(at, rows, units, outputs, nullptr, weight);
  }

  void count(const float* zi_row, int64_t n) {
    if (tally_.empty()) return;
    for (int64_t j = 0; j < n; j++)
      if (zi_row[j] >= 1.0f) tally_[(size_t)zi_row[j]]++;
  }
};
