// torch.ops.revtune: chunks of RevGRU and RevLSTM, forward, rewound, and their gradients.
//
// One translation unit on LibTorch's stable ABI. The kernel itself, variant.h, is compiled once for each instruction
// set and chosen when it is first used. Python keeps what outlives a chunk: states, heads and words.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "chunk.h"

static_assert(std::endian::native == std::endian::little, "words and flags are read by their low ends");

namespace revtune {

#define REVTUNE_LANES 4
namespace plain {
#include "variant.h"
}
#undef REVTUNE_LANES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REVTUNE_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define REVTUNE_LANES 8
namespace avx2 {
#include "variant.h"
}
#undef REVTUNE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define REVTUNE_LANES 16
namespace avx512 {
#include "variant.h"
}
#undef REVTUNE_LANES
#pragma GCC pop_options
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// The widest instruction set that this processor has, or the one that REVTUNE_ISA names if it has it.
const Variant& variant() {
  static const Variant chosen = [] {
    const char* named = std::getenv("REVTUNE_ISA");
    const std::string wish = named ? named : "";
#if defined(REVTUNE_X86)
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && (wish.empty() || wish == "avx512")) return avx512::make_variant("avx512");
    if (has_avx2 && wish != "plain") return avx2::make_variant("avx2");
#endif
    return plain::make_variant("plain");
  }();
  return chosen;
}

template <class T>
T* pointer(const Tensor& tensor, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == size, name, " must hold ", size, " numbers, got ", tensor.numel());
  return const_cast<T*>(tensor.const_data_ptr<T>());
}

template <class T>
T* pointer(const Maybe& tensor, int64_t size, const char* name) {
  return tensor ? pointer<T>(*tensor, size, name) : nullptr;
}

struct Shape {
  int64_t steps, rows, units, blocks, groups;

  Shape(const Tensor& gates, const Tensor& y) {
    STD_TORCH_CHECK(gates.dim() == 3 && y.dim() == 3, "gates and y must be (K, B, G) and (K, B, H)");
    steps = y.size(0), rows = y.size(1), units = y.size(2) / 2;
    STD_TORCH_CHECK(steps > 0 && rows > 0 && units > 0 && y.size(2) % 2 == 0, "empty or odd y");
    blocks = gates.size(2) / (2 * units);
    STD_TORCH_CHECK((blocks == 3 || blocks == 5) && gates.size(2) == 2 * units * blocks,
                    "gates must have 3 or 5 blocks of N columns for each half, got ", gates.size(2), " for N = ", units);
    groups = blocks == 3 ? 1 : 2;
  }
  int cell() const { return blocks == 3 ? 0 : 1; }
  int64_t states() const { return groups * 2 * rows * units; }
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

Chunk chunk_of(const Shape& shape, const Tensor& gates, const Tensor& y, const Tensor& y_start, const Maybe& c,
               const Maybe& c_start, const Maybe& mask1, const Maybe& mask2, const Maybe& scale, const Maybe& lengths,
               int64_t first, double slope, bool forgetting) {
  const int64_t state = shape.rows * 2 * shape.units;
  Chunk chunk{};
  chunk.steps = shape.steps, chunk.rows = shape.rows, chunk.units = shape.units, chunk.groups = shape.groups;
  chunk.first = first, chunk.width = shape.units;
  chunk.slope = (float)slope, chunk.floor = (float)(1.0 - slope), chunk.forgetting = forgetting;
  chunk.gates = pointer<float>(gates, shape.steps * state * shape.blocks, "gates");
  chunk.y = pointer<float>(y, shape.steps * state, "y");
  chunk.y_start = pointer<float>(y_start, state, "y_start");
  chunk.c = pointer<float>(c, shape.steps * state, "c");
  chunk.c_start = pointer<float>(c_start, state, "c_start");
  chunk.mask[0] = pointer<float>(mask1, state / 2, "mask1");
  chunk.mask[1] = pointer<float>(mask2, state / 2, "mask2");
  chunk.scale = pointer<float>(scale, state * shape.blocks, "scale");
  chunk.lengths = pointer<int64_t>(lengths, shape.rows, "lengths");
  return chunk;
}

// The parts of a chunk that evaluating gates needs.
void read_weights(Chunk& chunk, const Shape& shape, const Tensor& packed, const Maybe& response) {
  const int64_t size = variant().packed_size(shape.blocks, shape.units);
  chunk.packed = pointer<float>(packed, size, "packed");
  chunk.response = pointer<float>(response, size, "response");
  STD_TORCH_CHECK(!chunk.response == !chunk.scale, "a response needs both V and s");
}

void read_buffer(Chunk& chunk, const Shape& shape, const Tensor& counts, const Tensor& heads) {
  STD_TORCH_CHECK(heads.dim() == 3 && heads.size(0) == shape.groups && heads.size(1) == shape.rows &&
                      heads.size(2) > 0 && heads.size(2) <= shape.units,
                  "heads must be (S, B, width)");
  chunk.counts = pointer<double>(counts, shape.states(), "counts");
  chunk.width = heads.size(2);
  chunk.heads = pointer<double>(heads, shape.groups * shape.rows * chunk.width, "heads");
}

// One tensor a chunk: how many words each row spilled, as pairs of 16 bits, then the words row by row; nothing at all
// where no row spilled any.
Tensor sealed(const Tensor& like, const std::vector<Stack>& stacks) {
  int64_t size = 0;
  for (const Stack& stack : stacks) size += (int64_t)stack.size();
  if (!size) return torch::stable::new_empty(like, {0}, ScalarType::Short);
  size += 2 * (int64_t)stacks.size();
  Tensor words = torch::stable::new_empty(like, {size}, ScalarType::Short);
  auto* out = (uint16_t*)words.mutable_data_ptr<int16_t>();
  for (const Stack& stack : stacks) {
    const auto count = (uint32_t)stack.size();
    std::memcpy(out, &count, 4);
    out += 2;
  }
  for (const Stack& stack : stacks) out = std::copy(stack.begin(), stack.end(), out);
  return words;
}

std::vector<Stack> unsealed(const Tensor& words, int64_t rows) {
  const int64_t size = words.numel();
  const auto* in = (const uint16_t*)pointer<int16_t>(words, size, "words");
  std::vector<Stack> stacks((size_t)rows);
  if (!size) return stacks;
  STD_TORCH_CHECK(size >= 2 * rows, "words must begin with a count for each row");
  const uint16_t *next = in + 2 * rows, *last = in + size;
  for (Stack& stack : stacks) {
    uint32_t count;
    std::memcpy(&count, in, 4);
    in += 2;
    STD_TORCH_CHECK(count <= last - next, "words are cut short");
    stack.assign(next, next + count);
    next += count;
  }
  return stacks;
}

int64_t digest_of(const void* values, int64_t bytes, uint64_t first) {
  constexpr int64_t block = 1 << 13;
  const int64_t whole = bytes / 8, blocks = (whole + block - 1) / block;
  std::atomic<uint64_t> sum{0};
  torch::stable::parallel_for(0, blocks, 32, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * block, whole);
    sum += variant().digest((const Bits*)values + begin * block, last - begin * block, first + begin * block);
  });
  uint64_t rest = 0;
  std::memcpy(&rest, (const char*)values + whole * 8, bytes - whole * 8);
  return (int64_t)(sum + variant().digest(&rest, 1, first + whole));
}

// A number for where the chunk stands: states and heads, -0 counting as 0.
int64_t standing(const Chunk& chunk) {
  const int64_t states = chunk.groups * 2 * chunk.rows * chunk.units, heads = chunk.groups * chunk.rows * chunk.width;
  std::vector<double> values((size_t)(states + heads));
  for (int64_t i = 0; i < states; i++) values[i] = chunk.counts[i] + 0.0;
  for (int64_t i = 0; i < heads; i++) values[states + i] = chunk.heads[i] + 0.0;
  return (int64_t)variant().digest((const Bits*)values.data(), states + heads, 0);
}

int64_t multiplications(const Shape& shape) {
  return shape.steps * shape.rows * 2 * shape.blocks * shape.units * (shape.units + 16);
}

Tensor pack(const Tensor& weight, int64_t blocks) {
  STD_TORCH_CHECK(blocks == 3 || blocks == 5, "blocks must be 3 or 5, got ", blocks);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == 2 * blocks * weight.size(1), "weight must be (2 blocks N, N)");
  const int64_t units = weight.size(1);
  Tensor packed = torch::stable::new_empty(weight, {variant().packed_size(blocks, units)});
  variant().pack(pointer<float>(weight, weight.numel(), "weight"), blocks, units, packed.mutable_data_ptr<float>());
  return packed;
}

std::tuple<Tensor, int64_t, bool> forward(
    const Tensor& gates, const Tensor& counts, const Tensor& heads, const Tensor& y, const Tensor& y_start,
    const Maybe& c, const Maybe& c_start, const Maybe& rh, const Tensor& packed, const Maybe& response,
    const Maybe& scale, const Maybe& mask1, const Maybe& mask2, const Maybe& lengths, int64_t first, double slope,
    bool forgetting, int64_t keep, const Maybe& tally) {
  const Shape shape(gates, y);
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, mask1, mask2, scale, lengths, first, slope, forgetting);
  STD_TORCH_CHECK(!chunk.c == !chunk.c_start, "c and c_start go together");
  read_weights(chunk, shape, packed, response);
  read_buffer(chunk, shape, counts, heads);
  chunk.rh = pointer<float>(rh, y.numel(), "rh");
  chunk.tally = pointer<int64_t>(tally, 1025, "tally");
  std::vector<Stack> stacks((size_t)shape.rows);
  chunk.stacks = stacks.data();
  const int64_t check = keep == (int64_t)Keep::all ? standing(chunk) : 0;
  std::atomic<bool> fine{true};
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    if (!variant().forward[shape.cell()](chunk, (Keep)keep, begin, end)) fine = false;
  });
  return {sealed(gates, stacks), check, fine.load()};
}

// Rewound rows must have used up their words.
bool used_up(const std::vector<Stack>& stacks) {
  return std::all_of(stacks.begin(), stacks.end(), [](const Stack& stack) { return stack.empty(); });
}

std::tuple<int64_t, bool> rewind(
    const Tensor& gates, const Tensor& counts, const Tensor& heads, const Tensor& words, const Tensor& y,
    const Tensor& y_start, const Maybe& c, const Maybe& c_start, const Maybe& rh, const Tensor& packed,
    const Maybe& response, const Maybe& scale, const Maybe& mask1, const Maybe& mask2, const Maybe& lengths,
    int64_t first, double slope, bool forgetting) {
  const Shape shape(gates, y);
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, mask1, mask2, scale, lengths, first, slope, forgetting);
  STD_TORCH_CHECK((shape.groups == 2) == (c.has_value() && c_start.has_value()), "c is RevLSTM's and needed there");
  read_weights(chunk, shape, packed, response);
  read_buffer(chunk, shape, counts, heads);
  chunk.rh = pointer<float>(rh, y.numel(), "rh");
  std::vector<Stack> stacks = unsealed(words, shape.rows);
  chunk.stacks = stacks.data();
  std::atomic<bool> fine{true};
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    if (!variant().rewind[shape.cell()](chunk, begin, end)) fine = false;
  });
  return {standing(chunk), fine && used_up(stacks)};
}

void recall(
    const Tensor& gates, const Tensor& y, const Tensor& y_start, const Maybe& rh, const Tensor& packed,
    const Maybe& response, const Maybe& scale, const Maybe& mask1, const Maybe& mask2) {
  const Shape shape(gates, y);
  Chunk chunk = chunk_of(shape, gates, y, y_start, {}, {}, mask1, mask2, scale, {}, 0, 1.0, true);
  read_weights(chunk, shape, packed, response);
  chunk.rh = pointer<float>(rh, y.numel(), "rh");
  over_rows(shape.steps * shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    variant().recall[shape.cell()](chunk, begin, end);
  });
}

std::tuple<int64_t, bool> recall_cells(
    const Tensor& gates, const Tensor& counts, const Tensor& heads, const Tensor& words, const Tensor& y,
    const Tensor& y_start, const Tensor& c, const Tensor& c_start, const Maybe& lengths, int64_t first, double slope,
    bool forgetting) {
  const Shape shape(gates, y);
  STD_TORCH_CHECK(shape.blocks == 5, "only RevLSTM has cells to recall");
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, {}, {}, {}, lengths, first, slope, forgetting);
  read_buffer(chunk, shape, counts, heads);
  std::vector<Stack> stacks = unsealed(words, shape.rows);
  chunk.stacks = stacks.data();
  std::atomic<bool> fine{true};
  over_rows(shape.rows, shape.steps * shape.rows * shape.units * 64, [&](int64_t begin, int64_t end) {
    if (!variant().recall_cells(chunk, begin, end)) fine = false;
  });
  return {standing(chunk), fine && used_up(stacks)};
}

void gradient(
    const Tensor& gates, const Tensor& direction, const Tensor& y, const Tensor& y_start, const Maybe& c,
    const Maybe& c_start, const Tensor& weight, const Maybe& response, const Maybe& scale, const Maybe& mask1,
    const Maybe& mask2, const Maybe& lengths, const Maybe& dy, int64_t first, double slope, bool forgetting) {
  const Shape shape(gates, y);
  STD_TORCH_CHECK((shape.groups == 2) == (c.has_value() && c_start.has_value()), "c is RevLSTM's and needed there");
  Chunk chunk = chunk_of(shape, gates, y, y_start, c, c_start, mask1, mask2, scale, lengths, first, slope, forgetting);
  const int64_t size = 2 * shape.blocks * shape.units * shape.units;
  Gradient task{};
  task.chunk = &chunk;
  task.weight = pointer<float>(weight, size, "weight");
  task.response = pointer<float>(response, size, "response");
  STD_TORCH_CHECK(!task.response == !chunk.scale, "a response needs both V and s");
  task.dy = pointer<float>(dy, y.numel(), "dy");
  task.direction = pointer<float>(direction, shape.states(), "direction");
  over_rows(shape.rows, multiplications(shape), [&](int64_t begin, int64_t end) {
    variant().gradient[shape.cell()](task, begin, end);
  });
}

// A float32 matrix whose rows are dense.
Matrix matrix(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && (tensor.stride(1) == 1 || tensor.size(1) < 2), name, " must have dense rows");
  return {const_cast<float*>(tensor.const_data_ptr<float>()), tensor.size(0), tensor.size(1), tensor.stride(0)};
}

// Cut [0, count) over threads in multiples of `unit`, where the whole is worth it.
template <class Work>
void over_parts(int64_t count, int64_t unit, int64_t multiplications, const Work& work) {
  const int64_t units = (count + unit - 1) / unit;
  const int64_t worth = std::max<int64_t>(1, multiplications / 400000);
  const int64_t threads = std::min({(int64_t)torch::stable::get_num_threads(), units, worth});
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      work(units * i / threads * unit, std::min(count, units * (i + 1) / threads * unit));
  });
}

void project_into(const Tensor& y, const Tensor& x, const Tensor& weight, const Maybe& bias) {
  const Matrix in = matrix(x, "x"), out = matrix(y, "y");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == in.columns && in.columns > 0, "x and weight do not fit");
  STD_TORCH_CHECK(out.rows == in.rows && out.columns == weight.size(0), "y must be x's rows by weight's rows");
  const float* values = pointer<float>(weight, weight.numel(), "weight");
  const float* added = pointer<float>(bias, out.columns, "bias");
  over_parts(out.columns, variant().panel, in.rows * in.columns * out.columns, [&](int64_t begin, int64_t end) {
    variant().project(in, values, added, out, begin, end);
  });
}

Tensor project_back(const Tensor& d, const Tensor& weight) {
  const Matrix in = matrix(d, "d");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == in.columns && in.columns > 0, "d and weight do not fit");
  Tensor x = torch::stable::new_empty(weight, {in.rows, weight.size(1)});
  const Matrix out = matrix(x, "x");
  const float* values = pointer<float>(weight, weight.numel(), "weight");
  over_parts(out.columns, variant().panel, in.rows * in.columns * out.columns, [&](int64_t begin, int64_t end) {
    variant().project_back(in, values, out, begin, end);
  });
  return x;
}

void add_outer(const Tensor& into, const Tensor& d, const Tensor& v) {
  const Matrix grads = matrix(d, "d"), values = matrix(v, "v"), sum = matrix(into, "into");
  STD_TORCH_CHECK(grads.rows == values.rows && sum.rows == grads.columns && sum.columns == values.columns,
                  "into must be d's columns by v's columns");
  over_parts(sum.rows, variant().most_rows, grads.rows * sum.rows * sum.columns, [&](int64_t begin, int64_t end) {
    variant().add_outer(grads, values, sum, begin, end);
  });
}

int64_t digest(const std::vector<Tensor>& tensors) {
  uint64_t sum = 0, first = 0;
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(tensor.is_contiguous(), "digest wants contiguous tensors");
    const int64_t bytes = tensor.numel() * (int64_t)tensor.element_size();
    sum += (uint64_t)digest_of(tensor.const_data_ptr(), bytes, first);
    first += (uint64_t)bytes / 8 + 1;
  }
  return (int64_t)sum;
}

Tensor apply(const Tensor& x, void (*function)(const float*, float*, int64_t)) {
  Tensor y = torch::stable::empty_like(x);
  function(pointer<float>(x, x.numel(), "x"), y.mutable_data_ptr<float>(), x.numel());
  return y;
}

Tensor gate_sigmoid(const Tensor& x) { return apply(x, variant().sigmoid); }

Tensor gate_tanh(const Tensor& x) { return apply(x, variant().tanh); }

std::string instruction_set() { return variant().name; }

}  // namespace
}  // namespace revtune

STABLE_TORCH_LIBRARY(revtune, m) {
  m.def("pack(Tensor weight, int blocks) -> Tensor");
  m.def(
      "forward(Tensor(a!) gates, Tensor(b!) counts, Tensor(c!) heads, Tensor(d!) y, Tensor(e!) y_start, "
      "Tensor(f!)? c, Tensor(g!)? c_start, Tensor(h!)? rh, Tensor packed, Tensor? response, Tensor? scale, "
      "Tensor? mask1, Tensor? mask2, Tensor? lengths, int first, float slope, bool forgetting, int keep, "
      "Tensor(i!)? tally) -> (Tensor, int, bool)");
  m.def(
      "rewind(Tensor(a!) gates, Tensor(b!) counts, Tensor(c!) heads, Tensor words, Tensor(d!) y, Tensor(e!) y_start, "
      "Tensor(f!)? c, Tensor(g!)? c_start, Tensor(h!)? rh, Tensor packed, Tensor? response, Tensor? scale, "
      "Tensor? mask1, Tensor? mask2, Tensor? lengths, int first, float slope, bool forgetting) -> (int, bool)");
  m.def(
      "recall(Tensor(a!) gates, Tensor y, Tensor y_start, Tensor(b!)? rh, Tensor packed, Tensor? response, "
      "Tensor? scale, Tensor? mask1, Tensor? mask2) -> ()");
  m.def(
      "recall_cells(Tensor gates, Tensor(a!) counts, Tensor(b!) heads, Tensor words, Tensor y, Tensor y_start, "
      "Tensor(c!) c, Tensor(d!) c_start, Tensor? lengths, int first, float slope, bool forgetting) -> (int, bool)");
  m.def(
      "gradient(Tensor(a!) gates, Tensor(b!) direction, Tensor y, Tensor y_start, Tensor? c, Tensor? c_start, "
      "Tensor weight, Tensor? response, Tensor? scale, Tensor? mask1, Tensor? mask2, Tensor? lengths, Tensor? dy, "
      "int first, float slope, bool forgetting) -> ()");
  m.def("project_into(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias) -> ()");
  m.def("project_back(Tensor d, Tensor weight) -> Tensor");
  m.def("add_outer(Tensor(a!) into, Tensor d, Tensor v) -> ()");
  m.def("digest(Tensor[] tensors) -> int");
  // Whole sequences, of chunks of the above; Python has the implementation.
  m.def(
      "sequence(Tensor x, Tensor h, Tensor? c, Tensor? ih, Tensor? bias, Tensor hh, Tensor? ih_v, Tensor? ih_s, "
      "Tensor? hh_v, Tensor? hh_s, Tensor? mask1, Tensor? mask2, Tensor? lengths, int chunk, int? share, float? bits, "
      "bool forgetting, bool train, str name) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sequence_backward(Tensor? dy, Tensor? dfinal, Tensor y, Tensor final, Tensor kept, Tensor words, Tensor facts, "
      "bool[] wanted, "
      "Tensor x, Tensor h, Tensor? c, Tensor? ih, Tensor? bias, Tensor hh, Tensor? ih_v, Tensor? ih_s, Tensor? hh_v, "
      "Tensor? hh_s, Tensor? mask1, Tensor? mask2, Tensor? lengths, int chunk, int? share, float? bits, "
      "bool forgetting, bool train, str name) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gate_sigmoid(Tensor x) -> Tensor");
  m.def("gate_tanh(Tensor x) -> Tensor");
  m.def("instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(revtune, CPU, m) {
  m.impl("pack", TORCH_BOX(&revtune::pack));
  m.impl("forward", TORCH_BOX(&revtune::forward));
  m.impl("rewind", TORCH_BOX(&revtune::rewind));
  m.impl("recall", TORCH_BOX(&revtune::recall));
  m.impl("recall_cells", TORCH_BOX(&revtune::recall_cells));
  m.impl("gradient", TORCH_BOX(&revtune::gradient));
  m.impl("project_into", TORCH_BOX(&revtune::project_into));
  m.impl("project_back", TORCH_BOX(&revtune::project_back));
  m.impl("add_outer", TORCH_BOX(&revtune::add_outer));
  m.impl("digest", TORCH_BOX(&revtune::digest));
  m.impl("gate_sigmoid", TORCH_BOX(&revtune::gate_sigmoid));
  m.impl("gate_tanh", TORCH_BOX(&revtune::gate_tanh));
}

STABLE_TORCH_LIBRARY_IMPL(revtune, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&revtune::instruction_set));
}
