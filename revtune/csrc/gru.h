// RevGRU: z, r = sigmoid(x + W h'), g = tanh(x + U (r * h')), h <- z * h + (1 - z) * g, each half from the other.

namespace gru {

constexpr int64_t blocks = 3;

inline int64_t product_size(int64_t units) { return (padded(2 * units) + padded(units)) * units; }

inline void pack(const float* weight, int64_t units, float* packed) {
  pack_product(weight, 2 * units, units, packed);
  pack_product(weight + 2 * units * units, units, units, packed + padded(2 * units) * units);
}

// The one routine that evaluates gates, in either direction and from known outputs: a half of positions [begin, end).
void evaluate(Worker& worker, int64_t begin, int64_t end, int half) {
  const int64_t n = worker.units, column = half * blocks * n, packed = half * product_size(n);
  worker.read_other(begin, end, half);
  worker.recurrent(begin, end, 2 * n, packed, column);
  for (int64_t p = begin; p < end; p++) {
    const float *sum = worker.sums[p - begin], *read = worker.at.inputs[p - begin];
    float* gates = worker.gates(p, half);
    float* rh = worker.chunk.rh ? worker.rh(p, half) : worker.kept[p - begin];
    for (int64_t j = 0; j < 2 * n; j++) gates[j] = sigmoid(gates[j] + sum[j]);
    for (int64_t j = 0; j < n; j++) rh[j] = gates[n + j] * read[j];
    worker.at.inputs[p - begin] = rh;
  }
  worker.recurrent(begin, end, n, packed + padded(2 * n) * n, column + 2 * n);
  for (int64_t p = begin; p < end; p++) {
    const float* sum = worker.sums[p - begin];
    float* g = worker.gates(p, half) + 2 * n;
    for (int64_t j = 0; j < n; j++) g[j] = hyperbolic_tangent(g[j] + sum[j]);
  }
}

// h +- (1 - z) * g in counts.
inline void add_update(double* __restrict h, const float* __restrict z, const float* __restrict g, int64_t n,
                       float slope, float floor, double sign) {
  for (int64_t j = 0; j < n; j++) h[j] += sign * to_count((1.0f - (slope * z[j] + floor)) * g[j]);
}

inline void update(Worker& worker, int64_t position, int half, double sign, const float* zi) {
  const Chunk& chunk = worker.chunk;
  const float* gates = worker.gates(position, half);
  double* h = worker.counts(0, half, position % chunk.rows);
  if (chunk.forgetting)
    add_update(h, zi, gates + 2 * worker.units, worker.units, 1.0f / 1024.0f, 0.0f, sign);
  else
    add_update(h, gates, gates + 2 * worker.units, worker.units, chunk.slope, chunk.floor, sign);
}

bool forward(const Chunk& chunk, Keep keep, int64_t begin, int64_t end) {
  Worker worker(chunk, blocks, end - begin);
  const int64_t n = chunk.units;
  float* zi = worker.zi[0];
  bool fine = true;
  for (int64_t row = begin; row < end; row++)
    for (int half = 0; half < 2; half++)
      copy_floats(worker.counts(0, half, row), chunk.y_start + (row * 2 + half) * n, n);
  for (int64_t t = 0; t < chunk.steps; t++)
    for (int half = 0; half < 2; half++) {
      evaluate(worker, t * chunk.rows + begin, t * chunk.rows + end, half);
      for (int64_t row = begin; row < end; row++) {
        const int64_t position = t * chunk.rows + row;
        double* h = worker.counts(0, half, row);
        if (worker.runs(position)) {
          worker.round_gate(worker.gates(position, half), 1024.0f, zi);
          if (chunk.forgetting) worker.forget(0, half, row, zi, keep);
          update(worker, position, half, 1.0, zi);
          worker.round_slice(half, h);
          if (!chunk.forgetting) fine &= within_range(h, n);
        }
        copy_floats(h, worker.y(position, half), n);
      }
    }
  for (int64_t row = begin; row < end; row++) fine &= worker.all_within_range(row);
  return fine;
}

bool rewind(const Chunk& chunk, int64_t begin, int64_t end) {
  Worker worker(chunk, blocks, end - begin);
  const int64_t n = chunk.units, last = (chunk.steps - 1) * chunk.rows;
  float* zi = worker.zi[0];
  for (int64_t row = begin; row < end; row++)
    for (int half = 0; half < 2; half++) copy_floats(worker.counts(0, half, row), worker.y(last + row, half), n);
  for (int64_t t = chunk.steps - 1; t >= 0; t--)
    for (int half = 1; half >= 0; half--) {
      // Half 1 reads half 2 as it was before the step, which has just been found.
      evaluate(worker, t * chunk.rows + begin, t * chunk.rows + end, half);
      for (int64_t row = begin; row < end; row++) {
        const int64_t position = t * chunk.rows + row;
        double* h = worker.counts(0, half, row);
        if (worker.runs(position)) {
          worker.round_gate(worker.gates(position, half), 1024.0f, zi);
          update(worker, position, half, -1.0, zi);
          if (chunk.forgetting && !worker.restore(0, half, row, zi)) return false;
          worker.take_slice(half, h, position);
        }
        copy_floats(h, worker.y_before(position, half), n);
      }
    }
  return true;
}

void recall(const Chunk& chunk, int64_t begin, int64_t end) { recall_with(chunk, blocks, begin, end, evaluate); }

// From the gradient of h after the step to those of g, z (before their functions) and h before it.
template <bool forgetting>
void undo_update(float* __restrict gates, float* __restrict direction, const float* __restrict before, int64_t n,
                 float slope, float floor) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; j++) {
    const float s = gates[j], g = gates[2 * n + j], d = direction[j];
    const float z = forgetting ? forget_integer(s, slope, floor, 1024.0f) * (1.0f / 1024.0f) : slope * s + floor;
    const float dz = forgetting ? d * (before[j] - g) : -d * g;
    gates[j] = dz * slope * s * (1.0f - s);
    gates[2 * n + j] = d * (1.0f - z) * (1.0f - g * g);
    direction[j] = forgetting ? d * z : d;
  }
}

// From the gradient of r * h' to those of r (before its function) and h'.
inline void undo_reset(float* __restrict r, const float* __restrict read, float* __restrict d, int64_t n) {
  for (int64_t j = 0; j < n; j++) {
    const float drh = d[j];
    d[j] = drh * r[j];
    r[j] = drh * read[j] * r[j] * (1.0f - r[j]);
  }
}

void gradient(const Gradient& task, int64_t begin, int64_t end) {
  const Chunk& chunk = *task.chunk;
  Backward worker(task, blocks, end - begin);
  const int64_t n = chunk.units;
  const auto undo = chunk.forgetting ? undo_update<true> : undo_update<false>;
  for (int64_t t = chunk.steps - 1; t >= 0; t--) {
    worker.add_output_gradient(t, begin, end);
    for (int half = 1; half >= 0; half--) {
      const int64_t at = t * chunk.rows;
      for (int64_t row = begin; row < end; row++) {
        float* gates = worker.gates(at + row, half);
        if (worker.runs(at + row))
          undo(gates, worker.direction(0, half, row), worker.y_before(at + row, half), n, chunk.slope, chunk.floor);
        else
          std::fill(gates, gates + blocks * n, 0.0f);
      }
      worker.through(at + begin, at + end, half, 2, 1, worker.sums);
      worker.read_other(at + begin, at + end, half);
      for (int64_t row = begin; row < end; row++)
        undo_reset(worker.gates(at + row, half) + n, worker.at.inputs[row - begin], worker.sums[row - begin], n);
      worker.through(at + begin, at + end, half, 0, 2, worker.more);
      for (int64_t row = begin; row < end; row++)
        worker.add_read(row, half, {worker.sums[row - begin], worker.more[row - begin]});
    }
  }
}

}  // namespace gru
