// RevGRU: z, r = sigmoid(x + W h'), g = tanh(x + U (r * h')), h <- z * h + (1 - z) * g, each half from the other.

namespace gru {

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

// The tangent of r * h', from those of r (before its function) and h'.
inline void move_reset(const float* __restrict r, const float* __restrict read, const float* __restrict dr,
                       const float* __restrict moved, float* __restrict into, int64_t n) {
  for (int64_t j = 0; j < n; j++) into[j] = r[j] * moved[j] + r[j] * (1.0f - r[j]) * read[j] * dr[j];
}

// h's tangent one step on, as far as z moves it, and then as g does.
template <bool forgetting>
void move_kept(const float* __restrict gates, const float* __restrict before, const float* __restrict dz,
               float* __restrict moved, int64_t n, float slope, float floor) {
  for (int64_t j = 0; j < n; j++) {
    const float s = gates[j], kept = forgetting ? before[j] : 0.0f;
    const float z = forgetting ? forget_integer(s, slope, floor, 1024.0f) * (1.0f / 1024.0f) : 1.0f;
    moved[j] = z * moved[j] + slope * s * (1.0f - s) * (kept - gates[2 * n + j]) * dz[j];
  }
}

template <bool forgetting>
void move_update(const float* __restrict gates, const float* __restrict dg, float* __restrict moved, int64_t n,
                 float slope, float floor) {
  for (int64_t j = 0; j < n; j++) {
    const float s = gates[j], g = gates[2 * n + j];
    const float z = forgetting ? forget_integer(s, slope, floor, 1024.0f) * (1.0f / 1024.0f) : slope * s + floor;
    moved[j] += (1.0f - z) * (1.0f - g * g) * dg[j];
  }
}

struct Cell {
  static constexpr int64_t blocks = 3;

  static int64_t packed_size(int64_t units) { return (padded(2 * units) + padded(units)) * units; }

  static void pack(const float* weight, int64_t units, float* packed) {
    pack_product(weight, 2 * units, units, packed);
    pack_product(weight + 2 * units * units, units, units, packed + padded(2 * units) * units);
  }

  static void evaluate(Worker& worker, int64_t begin, int64_t end, int half) {
    const int64_t n = worker.units, column = half * blocks * n, packed = half * packed_size(n);
    worker.read_other(begin, end, half);
    worker.recurrent(begin, end, 2 * n, packed, column);
    for (int64_t p = begin; p < end; p++) {
      const float *sum = worker.sums[p - begin], *read = worker.at.inputs[p - begin];
      float* gates = worker.gates(p, half);
      float* rh = worker.chunk.rh ? worker.rh(p, half) : worker.kept[p - begin];
      sigmoid_of_sums(gates, sum, gates, 2 * n);
      for (int64_t j = 0; j < n; j++) rh[j] = gates[n + j] * read[j];
      worker.at.inputs[p - begin] = rh;
    }
    worker.recurrent(begin, end, n, packed + padded(2 * n) * n, column + 2 * n);
    for (int64_t p = begin; p < end; p++) {
      float* g = worker.gates(p, half) + 2 * n;
      tanh_of_sums(g, worker.sums[p - begin], g, n);
    }
  }

  static void prepare(Worker& worker, int64_t begin, int64_t end, int half, Keep) {
    evaluate(worker, begin, end, half);
  }

  static void advance(Worker& worker, int64_t position, int half, Keep keep, float*) {
    const Chunk& chunk = worker.chunk;
    const int64_t row = position % chunk.rows;
    double* h = worker.counts(0, half, row);
    float* zi = worker.zi[0];
    worker.round_gate(worker.gates(position, half), 1024.0f, zi);
    if (chunk.forgetting) worker.forget(0, half, row, zi, keep);
    update(worker, position, half, 1.0, zi);
    worker.round_slice(half, h);
    copy_floats(h, worker.y(position, half), worker.units);
  }

  static bool undo(Worker& worker, int64_t position, int half) {
    const int64_t row = position % worker.chunk.rows;
    float* zi = worker.zi[0];
    worker.round_gate(worker.gates(position, half), 1024.0f, zi);
    update(worker, position, half, -1.0, zi);
    if (worker.chunk.forgetting && !worker.restore(0, half, row, zi)) return false;
    worker.take_slice(half, worker.counts(0, half, row), position);
    return true;
  }

  static void differentiate(Backward& worker, int64_t position, int half) {
    const Chunk& chunk = worker.chunk;
    const auto undo_either = chunk.forgetting ? undo_update<true> : undo_update<false>;
    undo_either(worker.gates(position, half), worker.direction(0, half, position % chunk.rows),
                worker.y_before(position, half), worker.units, chunk.slope, chunk.floor);
  }

  static void carry(Backward& worker, int64_t begin, int64_t end, int half) {
    const int64_t n = worker.units;
    worker.through(begin, end, half, 2, 1, worker.sums);
    worker.read_other(begin, end, half);
    for (int64_t p = begin; p < end; p++)
      undo_reset(worker.gates(p, half) + n, worker.at.inputs[p - begin], worker.sums[p - begin], n);
    worker.through(begin, end, half, 0, 2, worker.more);
    for (int64_t p = begin; p < end; p++)
      worker.add_read(p % worker.chunk.rows, half, {worker.sums[p - begin], worker.more[p - begin]});
  }

  static void move(Moving& worker, int64_t begin, int64_t end, int half) {
    const Chunk& chunk = worker.chunk;
    const int64_t n = worker.units, column = half * blocks * n, packed = half * packed_size(n);
    const auto kept = chunk.forgetting ? move_kept<true> : move_kept<false>;
    const auto updated = chunk.forgetting ? move_update<true> : move_update<false>;
    worker.read_both(begin, end, half);
    worker.recurrent(begin, end, 2 * n, packed, column);
    for (int64_t p = begin; p < end; p++) {
      float *sum = worker.sums[p - begin], *reset = worker.reset[p - begin];
      const float* gates = worker.gates(p, half);
      worker.add_given(p, column, 2 * n, sum);
      move_reset(gates + n, worker.values[p - begin], sum + n, worker.at.inputs[p - begin], reset, n);
      worker.at.inputs[p - begin] = reset;
      if (worker.runs(p))
        kept(gates, worker.y_before(p, half), sum, worker.state(0, half, p % chunk.rows), n, chunk.slope, chunk.floor);
    }
    worker.recurrent(begin, end, n, packed + padded(2 * n) * n, column + 2 * n);
    for (int64_t p = begin; p < end; p++) {
      float* sum = worker.sums[p - begin];
      worker.add_given(p, column + 2 * n, n, sum);
      if (worker.runs(p))
        updated(worker.gates(p, half), sum, worker.state(0, half, p % chunk.rows), n, chunk.slope, chunk.floor);
      worker.write(p, half);
    }
  }
};

}  // namespace gru
