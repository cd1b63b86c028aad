// RevLSTM: f, p, i, o = sigmoid(x + W h'), g = tanh(x + W h'), c <- f * c + i * g, h <- p * h + (1 - p) * o * tanh(c),
// each half from the other. The paper's own h <- p * h + o * tanh(c) has a share of 0, and rounds p likewise.

namespace lstm {

constexpr float top = 1023.0f;  // bounds c, and the paper's h, by 1025

inline void add_product(double* __restrict h, const float* __restrict a, const float* __restrict b, int64_t n,
                        double sign) {
  for (int64_t j = 0; j < n; j++) h[j] += sign * to_count(a[j] * b[j]);
}

// What couplings use of a gate, in 1024ths: rounded, unless nothing is forgotten.
inline float used(float gate, float slope, float floor, bool forgetting) {
  return forgetting ? forget_integer(gate, slope, floor, top) : 1024.0f * (slope * gate + floor);
}

inline void use_gate(Worker& worker, const float* __restrict gate) {
  const Chunk& chunk = worker.chunk;
  float* __restrict zi = worker.zi[0];
  for (int64_t j = 0; j < worker.units; j++) zi[j] = used(gate[j], chunk.slope, chunk.floor, chunk.forgetting);
}

// The part of o that h takes up, for a p as it is used.
inline float taken(float o, float zi, float share) { return (1.0f - share * (zi * (1.0f / 1024.0f))) * o; }

inline void add_output(Worker& worker, double* __restrict h, const float* __restrict o, const float* c, double sign) {
  const float share = worker.chunk.share;
  const float* __restrict zi = worker.zi[0];
  float* __restrict tanh_c = worker.read[0];
  tanh_of(c, tanh_c, worker.units);
  for (int64_t j = 0; j < worker.units; j++) h[j] += sign * to_count(taken(o[j], zi[j], share) * tanh_c[j]);
}

// h * zi / 1024 + update, without a buffer.
inline __attribute__((always_inline)) double moved(double h, float zi, float update) {
  return __builtin_rint(h * (double)(zi * (1.0f / 1024.0f))) + to_count(update);
}

// A half's gates from the two sums of them, into one of these. Loops of their own: together with what uses the gates,
// the chain of operations would be too long for one position's to overlap with the next ones'.
inline void activate(const float* projected, const float* sum, float* gates, int64_t n) {
  sigmoid_of_sums(projected, sum, gates, 4 * n);
  tanh_of_sums(projected + 4 * n, sum + 4 * n, gates + 4 * n, n);
}

// A half's step without a buffer: first c and, in the place of f and p, p as a forget integer and the part of o that h
// takes up; then h.
inline void infer_cell(float* __restrict gates, double* __restrict cell, float* __restrict c, int64_t n, float slope,
                       float floor, float share) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; j++) {
    const float f = gates[j], p = gates[n + j], i = gates[2 * n + j], o = gates[3 * n + j], g = gates[4 * n + j];
    cell[j] = moved(cell[j], forget_integer(f, slope, floor, top), i * g);
    c[j] = from_count(cell[j]);
    const float zi = forget_integer(p, slope, floor, top);
    gates[j] = zi;
    gates[n + j] = taken(o, zi, share);
  }
}

inline void infer_hidden(double* __restrict hidden, const float* __restrict gates, const float* __restrict tanh_c,
                         float* __restrict h, int64_t n) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; j++) {
    hidden[j] = moved(hidden[j], gates[j], gates[n + j] * tanh_c[j]);
    h[j] = from_count(hidden[j]);
  }
}

inline void step(Worker& worker, int64_t position, int half, Keep keep, float* c) {
  const int64_t n = worker.units, row = position % worker.chunk.rows;
  const float* gates = worker.gates(position, half);
  double *cell = worker.counts(1, half, row), *hidden = worker.counts(0, half, row);
  use_gate(worker, gates);
  if (worker.chunk.forgetting) worker.forget(1, half, row, worker.zi[0], keep);
  add_product(cell, gates + 2 * n, gates + 4 * n, n, 1.0);
  copy_floats(cell, c, n);
  use_gate(worker, gates + n);
  if (worker.chunk.forgetting) worker.forget(0, half, row, worker.zi[0], keep);
  add_output(worker, hidden, gates + 3 * n, c, 1.0);
  worker.round_slice(half, hidden);
  copy_floats(hidden, worker.y(position, half), n);
}

// c of one row before a step; false if its stack ran empty.
inline bool undo_cell(Worker& worker, int64_t position, int half) {
  const int64_t n = worker.units, row = position % worker.chunk.rows;
  const float* gates = worker.gates(position, half);
  double* counts = worker.counts(1, half, row);
  add_product(counts, gates + 2 * n, gates + 4 * n, n, -1.0);
  if (!worker.chunk.forgetting) return true;
  worker.round_gate(gates, top, worker.zi[0]);
  return worker.restore(1, half, row, worker.zi[0]);
}

inline bool undo_hidden(Worker& worker, int64_t position, int half) {
  const int64_t n = worker.units, row = position % worker.chunk.rows;
  const float* gates = worker.gates(position, half);
  double* counts = worker.counts(0, half, row);
  use_gate(worker, gates + n);
  add_output(worker, counts, gates + 3 * n, worker.c(position, half), -1.0);
  if (worker.chunk.forgetting && !worker.restore(0, half, row, worker.zi[0])) return false;
  worker.take_slice(half, counts, position);
  return true;
}

// The states of one half before and after a step, and the gradients of both, in and out; none overlap.
struct Half {
  const float *h_before, *c_before, *c_after;
  float *dh, *dc;
};

template <bool forgetting>
void undo_step(float* __restrict gates, Half at, int64_t n, float slope, float floor, float share) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; j++) {
    const float f = gates[j], p = gates[n + j], i = gates[2 * n + j], o = gates[3 * n + j], g = gates[4 * n + j];
    const float tanh_c = hyperbolic_tangent(at.c_after[j]), d = at.dh[j];
    const float zi = used(p, slope, floor, forgetting), o_taken = taken(o, zi, share);
    const float e = at.dc[j] + d * o_taken * (1.0f - tanh_c * tanh_c);
    const float f_used = forgetting ? forget_integer(f, slope, floor, top) * (1.0f / 1024.0f) : 1.0f;
    const float p_used = forgetting ? zi * (1.0f / 1024.0f) : 1.0f;
    const float dp = (forgetting ? at.h_before[j] : 0.0f) - share * o * tanh_c;
    gates[j] = forgetting ? e * at.c_before[j] * slope * f * (1.0f - f) : 0.0f;
    gates[n + j] = d * dp * slope * p * (1.0f - p);
    gates[2 * n + j] = e * g * i * (1.0f - i);
    gates[3 * n + j] = d * tanh_c * o_taken * (1.0f - o);
    gates[4 * n + j] = e * i * (1.0f - g * g);
    at.dh[j] = d * p_used;
    at.dc[j] = e * f_used;
  }
}

// The tangents of h and c, which are in `at`, one step on, from those of the gates before their functions.
template <bool forgetting>
void move_step(const float* __restrict gates, const float* __restrict da, Half at, int64_t n, float slope, float floor,
               float share) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; j++) {
    const float f = gates[j], p = gates[n + j], i = gates[2 * n + j], o = gates[3 * n + j], g = gates[4 * n + j];
    const float tanh_c = hyperbolic_tangent(at.c_after[j]);
    const float zi = used(p, slope, floor, forgetting), o_taken = taken(o, zi, share);
    const float f_used = forgetting ? forget_integer(f, slope, floor, top) * (1.0f / 1024.0f) : 1.0f;
    const float p_used = forgetting ? zi * (1.0f / 1024.0f) : 1.0f;
    const float df = forgetting ? at.c_before[j] * slope * f * (1.0f - f) * da[j] : 0.0f;
    const float dp = (forgetting ? at.h_before[j] : 0.0f) - share * o * tanh_c;
    const float dc = f_used * at.dc[j] + df + g * i * (1.0f - i) * da[2 * n + j] + i * (1.0f - g * g) * da[4 * n + j];
    at.dh[j] = p_used * at.dh[j] + dp * slope * p * (1.0f - p) * da[n + j] +
               o_taken * (tanh_c * (1.0f - o) * da[3 * n + j] + (1.0f - tanh_c * tanh_c) * dc);
    at.dc[j] = dc;
  }
}

struct Cell {
  static constexpr int64_t blocks = 5;

  static int64_t packed_size(int64_t units) { return padded(blocks * units) * units; }

  static void pack(const float* weight, int64_t units, float* packed) {
    pack_product(weight, blocks * units, units, packed);
  }

  static void multiply(Worker& worker, int64_t begin, int64_t end, int half) {
    const int64_t n = worker.units;
    worker.read_other(begin, end, half);
    worker.recurrent(begin, end, blocks * n, half * packed_size(n), half * blocks * n);
  }

  static void evaluate(Worker& worker, int64_t begin, int64_t end, int half) {
    const int64_t n = worker.units;
    multiply(worker, begin, end, half);
    for (int64_t p = begin; p < end; p++) {
      float* gates = worker.gates(p, half);
      activate(gates, worker.sums[p - begin], gates, n);
    }
  }

  // Without a buffer there is no way back, and gates are kept nowhere.
  static bool infers(const Worker& worker, Keep keep) { return keep == Keep::nothing && worker.chunk.forgetting; }

  static void prepare(Worker& worker, int64_t begin, int64_t end, int half, Keep keep) {
    (infers(worker, keep) ? multiply : evaluate)(worker, begin, end, half);
  }

  static void advance(Worker& worker, int64_t position, int half, Keep keep, float* sum) {
    const Chunk& chunk = worker.chunk;
    const int64_t row = position % chunk.rows;
    float* c = chunk.c ? worker.c(position, half) : worker.kept[0];
    if (!infers(worker, keep)) return step(worker, position, half, keep, c);
    double* hidden = worker.counts(0, half, row);
    float* tanh_c = worker.read[0];
    activate(worker.gates(position, half), sum, sum, worker.units);
    infer_cell(sum, worker.counts(1, half, row), c, worker.units, chunk.slope, chunk.floor, chunk.share);
    tanh_of(c, tanh_c, worker.units);
    infer_hidden(hidden, sum, tanh_c, worker.y(position, half), worker.units);
    worker.round_slice(half, hidden);
  }

  static bool undo(Worker& worker, int64_t position, int half) {
    return undo_hidden(worker, position, half) && undo_cell(worker, position, half);
  }

  static void differentiate(Backward& worker, int64_t position, int half) {
    const Chunk& chunk = worker.chunk;
    const int64_t row = position % chunk.rows;
    const Half states{worker.y_before(position, half), worker.c_before(position, half), worker.c(position, half),
                      worker.direction(0, half, row), worker.direction(1, half, row)};
    const auto undo_either = chunk.forgetting ? undo_step<true> : undo_step<false>;
    undo_either(worker.gates(position, half), states, worker.units, chunk.slope, chunk.floor, chunk.share);
  }

  static void carry(Backward& worker, int64_t begin, int64_t end, int half) {
    worker.through(begin, end, half, 0, blocks, worker.sums);
    for (int64_t p = begin; p < end; p++) worker.add_read(p % worker.chunk.rows, half, {worker.sums[p - begin]});
  }

  static void move(Moving& worker, int64_t begin, int64_t end, int half) {
    const Chunk& chunk = worker.chunk;
    const int64_t n = worker.units, column = half * blocks * n;
    const auto moved = chunk.forgetting ? move_step<true> : move_step<false>;
    worker.read_both(begin, end, half);
    worker.recurrent(begin, end, blocks * n, half * packed_size(n), column);
    for (int64_t p = begin; p < end; p++) {
      const int64_t row = p % chunk.rows;
      float* sum = worker.sums[p - begin];
      worker.add_given(p, column, blocks * n, sum);
      const Half states{worker.y_before(p, half), worker.c_before(p, half), worker.c(p, half),
                        worker.state(0, half, row), worker.state(1, half, row)};
      if (worker.runs(p)) moved(worker.gates(p, half), sum, states, n, chunk.slope, chunk.floor, chunk.share);
      worker.write(p, half);
    }
  }
};

// With gates recalled, only c is left to rewind: no product, rows by themselves.
bool recall_cells(const Chunk& chunk, int64_t begin, int64_t end) {
  Worker worker(chunk, Cell::blocks, 1);
  const int64_t n = chunk.units, last = (chunk.steps - 1) * chunk.rows;
  for (int64_t row = begin; row < end; row++) {
    for (int half = 0; half < 2; half++) copy_floats(worker.counts(1, half, row), worker.c(last + row, half), n);
    for (int64_t t = chunk.steps - 1; t >= 0; t--) {
      const int64_t position = t * chunk.rows + row;
      for (int half = 1; half >= 0; half--)
        if (worker.runs(position) && !undo_cell(worker, position, half)) return false;
      if (worker.anew(position) && !worker.take_lost(1, row)) return false;
      for (int half = 0; half < 2; half++)
        copy_floats(worker.counts(1, half, row), worker.c_earlier(position, half), n);
    }
  }
  return true;
}

}  // namespace lstm
