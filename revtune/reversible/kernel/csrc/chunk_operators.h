// The operators on a chunk: its tensors checked and put together, its rows cut over threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <tuple>
#include <vector>

#include "digest_operator.h"
#include "instruction_sets.h"
#include "tensors.h"
#include "words.h"

namespace revtune {

struct Shape {
  int64_t steps, rows, units, blocks, groups;

  Shape(int64_t blocks, const Tensor& y) : blocks(blocks), groups(blocks == 3 ? 1 : 2) {
    STD_TORCH_CHECK(y.dim() == 3, "y must be (K, B, H)");
    steps = y.size(0), rows = y.size(1), units = y.size(2) / 2;
    STD_TORCH_CHECK(steps > 0 && rows > 0 && units > 0 && y.size(2) % 2 == 0, "empty or odd y");
  }
  Shape(int64_t blocks, int64_t rows, int64_t units)
      : steps(1), rows(rows), units(units), blocks(blocks), groups(blocks == 3 ? 1 : 2) {}
  Shape(const Tensor& gates, const Tensor& y) : Shape(blocks_of(gates, y), y) {
    STD_TORCH_CHECK((blocks == 3 || blocks == 5) && gates.size(2) == 2 * units * blocks,
                    "gates must have 3 or 5 blocks of N columns for each half, got ", gates.size(2), " for N = ",
                    units);
  }
  int cell() const { return blocks == 3 ? 0 : 1; }
  int64_t states() const { return groups * 2 * rows * units; }

 private:
  static int64_t blocks_of(const Tensor& gates, const Tensor& y) {
    STD_TORCH_CHECK(gates.dim() == 3 && y.dim() == 3 && y.size(2) > 0, "gates and y must be (K, B, G) and (K, B, H)");
    return gates.size(2) / y.size(2);
  }
};

// Rows cut over torch's threads, each taking its own for a whole chunk; a thread is worth some hundred thousand
// multiplications.
template <class Work>
void over_rows(int64_t rows, int64_t multiplications, const Work& work) {
  const int64_t least = 1 + 400000 / (1 + multiplications / rows);
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), rows / least));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) work(rows * i / threads, rows * (i + 1) / threads);
  });
}

// A chunk without gates and states yet.
inline Chunk bare_chunk(
    const Shape& shape, const Maybe& mask1, const Maybe& mask2, const Maybe& scale, const Maybe& lengths, int64_t first,
    double slope, bool forgetting, bool bounded) {
  const int64_t state = shape.rows * 2 * shape.units;
  Chunk chunk{};
  chunk.steps = shape.steps, chunk.rows = shape.rows, chunk.units = shape.units, chunk.groups = shape.groups;
  chunk.first = first, chunk.width = shape.units;
  chunk.slope = (float)slope, chunk.floor = (float)(1.0 - slope), chunk.forgetting = forgetting;
  chunk.share = bounded ? 1.0f : 0.0f;
  chunk.mask[0] = readable<float>(mask1, state / 2, "mask1");
  chunk.mask[1] = readable<float>(mask2, state / 2, "mask2");
  chunk.scale = readable<float>(scale, state * shape.blocks, "scale");
  chunk.lengths = readable<int64_t>(lengths, shape.rows, "lengths");
  return chunk;
}

// States are writable, since some operators write them; of a lazy clone that others only read this makes a copy.
inline Chunk chunk_of(
    const Shape& shape, const Tensor& gates, const Tensor& y, const Tensor& y_start, const Maybe& c,
    const Maybe& c_start, const Maybe& mask1, const Maybe& mask2, const Maybe& scale, const Maybe& lengths,
    int64_t first, double slope, bool forgetting, bool bounded) {
  const int64_t state = shape.rows * 2 * shape.units;
  Chunk chunk = bare_chunk(shape, mask1, mask2, scale, lengths, first, slope, forgetting, bounded);
  chunk.gates = writable<float>(gates, shape.steps * state * shape.blocks, "gates");
  chunk.y = writable<float>(y, shape.steps * state, "y");
  chunk.y_start = writable<float>(y_start, state, "y_start");
  chunk.c = writable<float>(c, shape.steps * state, "c");
  chunk.c_start = writable<float>(c_start, state, "c_start");
  return chunk;
}

// The parts of a chunk that evaluating gates needs.
inline void read_weights(Chunk& chunk, const Shape& shape, const Tensor& packed, const Maybe& response) {
  const int64_t size = variant().packed_size(shape.blocks, shape.units);
  chunk.packed = readable<float>(packed, size, "packed");
  chunk.response = readable<float>(response, size, "response");
  STD_TORCH_CHECK(!chunk.response == !chunk.scale, "a response needs both V and s");
}

inline void write_answers(Chunk& chunk, const Shape& shape, const Maybe& answers) {
  STD_TORCH_CHECK(!answers || chunk.response, "answers are those of a response");
  chunk.answers = writable<float>(answers, shape.steps * shape.rows * 2 * shape.blocks * shape.units, "answers");
}

inline void read_buffer(Chunk& chunk, const Shape& shape, const Tensor& counts, const Tensor& heads) {
  STD_TORCH_CHECK(heads.dim() == 3 && heads.size(0) == shape.groups && heads.size(1) == shape.rows &&
                      heads.size(2) > 0 && heads.size(2) <= shape.units,
                  "heads must be (S, B, width)");
  chunk.counts = writable<double>(counts, shape.states(), "counts");
  chunk.width = heads.size(2);
  chunk.heads = writable<double>(heads, shape.groups * shape.rows * chunk.width, "heads");
}

// Where a chunk's rows begin anew and from which counts; these as floats, which live as long as the chunk does.
inline std::vector<float> read_resets(Chunk& chunk, const Shape& shape, const Maybe& resets, const Maybe& anew) {
  STD_TORCH_CHECK(resets.has_value() == anew.has_value(), "resets need the states from which rows begin anew");
  if (!resets) return {};
  chunk.resets = readable<uint8_t>(resets, shape.steps * shape.rows, "resets");
  chunk.anew = readable<double>(anew, shape.states(), "anew");
  std::vector<float> floats((size_t)shape.states());
  const int64_t n = shape.units;
  for (int64_t i = 0; i < shape.groups * 2 * shape.rows; i++) {
    const int64_t group = i / (2 * shape.rows), half = i / shape.rows % 2, row = i % shape.rows;
    float* into = floats.data() + ((group * shape.rows + row) * 2 + half) * n;
    for (int64_t j = 0; j < n; j++) into[j] = (float)(chunk.anew[i * n + j] * (1.0 / 4294967296.0));
  }
  chunk.anew_state = floats.data();  // whose address stays the same where the vector is handed on
  return floats;
}

inline void read_slices(Chunk& chunk, const Shape& shape, const Maybe& slices) {
  if (!slices) return;
  STD_TORCH_CHECK(slices->dim() == 3 && slices->size(2) <= shape.units, "slices must be (K, B, sliced)");
  chunk.sliced = slices->size(2);
  chunk.slices = readable<float>(slices, shape.steps * shape.rows * chunk.sliced, "slices");
}

inline int64_t multiplications(const Shape& shape) {
  return shape.steps * shape.rows * 2 * shape.blocks * shape.units * (shape.units + 16);
}

inline std::tuple<Tensor, int64_t, bool> forward(
    const Tensor& gates, const Tensor& counts, const Tensor& heads, const Tensor& y, const Tensor& y_start,
    const Maybe& c, const Maybe& c_start, const Maybe& rh, const Tensor& packed, const Maybe& response,
    const Maybe& scale, const Maybe& mask1, const Maybe& mask2, const Maybe& lengths, int64_t first, double slope,
    bool forgetting, bool bounded, int64_t keep, const Maybe& tally, int64_t sliced, const Maybe& answers,
    const Maybe& resets, const Maybe& anew, const Maybe& starts) {
  const Shape shape(gates, y);
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, mask1, mask2, scale, lengths, first, slope, forgetting,
                         bounded);
  chunk.starts = readable<int64_t>(starts, shape.rows, "starts");
  STD_TORCH_CHECK(!chunk.c == !chunk.c_start, "c and c_start go together");
  read_weights(chunk, shape, packed, response);
  write_answers(chunk, shape, answers);
  read_buffer(chunk, shape, counts, heads);
  const auto floats = read_resets(chunk, shape, resets, anew);
  chunk.rh = writable<float>(rh, y.numel(), "rh");
  chunk.tally = writable<int64_t>(tally, 1025, "tally");
  STD_TORCH_CHECK(sliced >= 0 && sliced <= shape.units, "sliced must be from 0 to N, got ", sliced);
  chunk.sliced = sliced;
  std::vector<Stack> stacks((size_t)shape.rows);
  chunk.stacks = stacks.data();
  const int64_t check = keep == (int64_t)Keep::all ? standing(chunk) : 0;
  std::atomic<bool> fine{true};
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    if (!variant().forward[shape.cell()](chunk, (Keep)keep, begin, end)) fine = false;
  });
  return {sealed(gates, stacks), check, fine.load()};
}

inline std::tuple<int64_t, bool> rewind(
    const Tensor& gates, const Tensor& counts, const Tensor& heads, const Tensor& words, const Tensor& y,
    const Tensor& y_start, const Maybe& c, const Maybe& c_start, const Maybe& rh, const Tensor& packed,
    const Maybe& response, const Maybe& scale, const Maybe& mask1, const Maybe& mask2, const Maybe& lengths,
    int64_t first, double slope, bool forgetting, bool bounded, const Maybe& slices, const Maybe& answers,
    const Maybe& resets, const Maybe& anew, const Maybe& starts) {
  const Shape shape(gates, y);
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, mask1, mask2, scale, lengths, first, slope, forgetting,
                         bounded);
  chunk.starts = readable<int64_t>(starts, shape.rows, "starts");
  STD_TORCH_CHECK((shape.groups == 2) == (c.has_value() && c_start.has_value()), "c is RevLSTM's and needed there");
  read_weights(chunk, shape, packed, response);
  write_answers(chunk, shape, answers);
  read_buffer(chunk, shape, counts, heads);
  read_slices(chunk, shape, slices);
  const auto floats = read_resets(chunk, shape, resets, anew);
  chunk.rh = writable<float>(rh, y.numel(), "rh");
  std::vector<Stack> stacks = unsealed(words, shape.rows);
  chunk.stacks = stacks.data();
  std::atomic<bool> fine{true};
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    if (!variant().rewind[shape.cell()](chunk, begin, end)) fine = false;
  });
  return {standing(chunk), fine && used_up(stacks)};
}

// Steps whose gates stay in a core's own cache, and that are enough rows for a product.
inline int64_t steps_at_once(const Shape& shape, int64_t outputs) {
  constexpr int64_t near = 3 << 18, worth = 96;
  const int64_t positions = std::max<int64_t>(worth, near / ((int64_t)sizeof(float) * outputs));
  const int64_t rows = (shape.rows + torch::stable::get_num_threads() - 1) / torch::stable::get_num_threads();
  return std::clamp<int64_t>(positions / rows, 1, shape.steps);
}

inline bool infer(
    const Tensor& x, const Tensor& packed_input, const Maybe& bias, const Tensor& counts, const Tensor& y,
    const Tensor& y_start, const Tensor& packed, const Maybe& response, const Maybe& scale, const Maybe& mask1,
    const Maybe& mask2, const Maybe& lengths, double slope, bool forgetting, bool bounded, const Maybe& resets,
    const Maybe& anew) {
  STD_TORCH_CHECK(counts.dim() == 4 && (counts.size(0) == 1 || counts.size(0) == 2), "counts must be (S, 2, B, N)");
  const Shape shape(counts.size(0) == 1 ? 3 : 5, y);
  const int64_t outputs = 2 * shape.blocks * shape.units, panel = variant().panel;
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == shape.steps && x.size(1) == shape.rows &&
                      (x.stride(2) == 1 || x.size(2) == 1),
                  "x must be (T, B, I) as y is, with dense rows");
  check_stored(x, "x");
  Chunk chunk = bare_chunk(shape, mask1, mask2, scale, lengths, 0, slope, forgetting, bounded);
  Projection in{x.const_data_ptr<float>(), x.stride(0), x.stride(1), x.size(2)};
  in.packed = readable<float>(packed_input, (outputs + panel - 1) / panel * panel * in.columns, "packed_input");
  in.bias = readable<float>(bias, outputs, "bias");
  in.room = steps_at_once(shape, outputs);
  const Tensor gates = torch::stable::new_empty(y, {in.room, shape.rows, outputs});
  chunk.gates = gates.mutable_data_ptr<float>();
  chunk.counts = writable<double>(counts, shape.states(), "counts");
  chunk.y = writable<float>(y, y.numel(), "y");
  chunk.y_start = writable<float>(y_start, shape.rows * 2 * shape.units, "y_start");
  read_weights(chunk, shape, packed, response);
  const auto floats = read_resets(chunk, shape, resets, anew);
  std::atomic<bool> fine{true};
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    if (!variant().infer[shape.cell()](chunk, in, begin, end)) fine = false;
  });
  return fine;
}

inline void recall(
    const Tensor& gates, const Tensor& y, const Tensor& y_start, const Maybe& rh, const Tensor& packed,
    const Maybe& response, const Maybe& scale, const Maybe& mask1, const Maybe& mask2, const Maybe& answers,
    const Maybe& resets, const Maybe& anew) {
  const Shape shape(gates, y);
  Chunk chunk = chunk_of(shape, gates, y, y_start, {}, {}, mask1, mask2, scale, {}, 0, 1.0, true, true);
  read_weights(chunk, shape, packed, response);
  write_answers(chunk, shape, answers);
  const auto floats = read_resets(chunk, shape, resets, anew);
  chunk.rh = writable<float>(rh, y.numel(), "rh");
  over_rows(shape.steps * shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    variant().recall[shape.cell()](chunk, begin, end);
  });
}

inline bool recall_cells(
    const Tensor& gates, const Tensor& counts, const Tensor& heads, const Tensor& words, const Tensor& y,
    const Tensor& y_start, const Tensor& c, const Tensor& c_start, const Maybe& lengths, int64_t first, double slope,
    bool forgetting, bool bounded, const Maybe& resets, const Maybe& anew) {
  const Shape shape(gates, y);
  STD_TORCH_CHECK(shape.blocks == 5, "only RevLSTM has cells to recall");
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, {}, {}, {}, lengths, first, slope, forgetting,
                         bounded);
  read_buffer(chunk, shape, counts, heads);
  const auto floats = read_resets(chunk, shape, resets, anew);
  std::vector<Stack> stacks = unsealed(words, shape.rows);
  chunk.stacks = stacks.data();
  std::atomic<bool> fine{true};
  over_rows(shape.rows, shape.steps * shape.rows * shape.units * 64, [&](int64_t begin, int64_t end) {
    if (!variant().recall_cells(chunk, begin, end)) fine = false;
  });
  return fine && used_up(stacks);
}

inline void gradient(
    const Tensor& gates, const Tensor& direction, const Tensor& y, const Tensor& y_start, const Maybe& c,
    const Maybe& c_start, const Tensor& weight, const Maybe& response, const Maybe& scale, const Maybe& mask1,
    const Maybe& mask2, const Maybe& lengths, const Maybe& dy, int64_t first, double slope, bool forgetting,
    bool bounded, const Maybe& resets, const Maybe& anew, const Maybe& anew_direction, const Maybe& starts,
    const Maybe& kept, double kept_times) {
  const Shape shape(gates, y);
  STD_TORCH_CHECK((shape.groups == 2) == (c.has_value() && c_start.has_value()), "c is RevLSTM's and needed there");
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, mask1, mask2, scale, lengths, first, slope, forgetting,
                         bounded);
  chunk.starts = readable<int64_t>(starts, shape.rows, "starts");
  const int64_t size = 2 * shape.blocks * shape.units * shape.units;
  Gradient task{};
  task.chunk = &chunk;
  task.weight = readable<float>(weight, size, "weight");
  task.response = readable<float>(response, size, "response");
  STD_TORCH_CHECK(!task.response == !chunk.scale, "a response needs both V and s");
  task.kept = readable<uint8_t>(kept, size, "kept");
  task.kept_times = (float)kept_times;
  task.dy = readable<float>(dy, y.numel(), "dy");
  task.direction = writable<float>(direction, shape.states(), "direction");
  const auto floats = read_resets(chunk, shape, resets, anew);
  task.anew = writable<float>(anew_direction, shape.states(), "anew_direction");
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    variant().gradient[shape.cell()](task, begin, end);
  });
}

inline void tangent(
    const Tensor& gates, const Tensor& state, const Tensor& y, const Tensor& y_start, const Maybe& c,
    const Maybe& c_start, const Tensor& packed, const Maybe& mask1, const Maybe& mask2, const Maybe& lengths,
    const Maybe& projected, const Maybe& shift, const Maybe& ih_answer, const Maybe& ih_scale, const Maybe& hh_answer,
    const Maybe& hh_scale, const Tensor& dy, int64_t first, double slope, bool forgetting, bool bounded,
    const Maybe& resets, const Maybe& anew, const Maybe& starts) {
  const Shape shape(gates, y);
  STD_TORCH_CHECK((shape.groups == 2) == (c.has_value() && c_start.has_value()), "c is RevLSTM's and needed there");
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, mask1, mask2, {}, lengths, first, slope, forgetting,
                         bounded);
  chunk.starts = readable<int64_t>(starts, shape.rows, "starts");
  read_weights(chunk, shape, packed, {});
  const auto floats = read_resets(chunk, shape, resets, anew);
  const int64_t row = shape.rows * 2 * shape.blocks * shape.units, size = shape.steps * row;
  Tangent task{};
  task.chunk = &chunk;
  task.projected = readable<float>(projected, size, "projected");
  task.shift = readable<float>(shift, row, "shift");
  task.answer[0] = readable<float>(ih_answer, size, "ih_answer");
  task.answer[1] = readable<float>(hh_answer, size, "hh_answer");
  task.scale[0] = readable<float>(ih_scale, row, "ih_scale");
  task.scale[1] = readable<float>(hh_scale, row, "hh_scale");
  for (int i = 0; i < 2; i++) STD_TORCH_CHECK(!task.answer[i] == !task.scale[i], "an answer needs a scale");
  task.state = writable<float>(state, shape.states(), "state");
  task.dy = writable<float>(dy, y.numel(), "dy");
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    variant().tangent[shape.cell()](task, begin, end);
  });
}

}  // namespace revtune
