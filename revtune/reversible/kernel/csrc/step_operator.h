// One step of a stack of layers, from weights as they are stored.
//
// Python asks for a step wherever it may be one. Where something does not fit, or a number must be refused, nothing is
// returned: the way over whole sequences then takes it, or says what is wrong.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "chunk_operators.h"

namespace revtune {

// Whether a tensor's numbers lie in memory that is still there (kernel/storage.py), those of a row side by side.
inline bool is_stored(const Tensor& tensor, ScalarType dtype) {
  const int64_t dims = tensor.dim();
  if (!tensor.is_cpu() || tensor.scalar_type() != dtype || dims == 0 || tensor.numel() == 0) return false;
  if (tensor.stride(dims - 1) != 1 && tensor.size(dims - 1) != 1) return false;
  int64_t bytes = 0, end = tensor.storage_offset() + 1;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  for (int64_t d = 0; d < dims; d++) end += (tensor.size(d) - 1) * tensor.stride(d);
  return end * (int64_t)tensor.element_size() <= bytes;
}

inline bool is_dense(const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape) {
  if (!tensor.is_contiguous() || tensor.dim() != (int64_t)shape.size()) return false;
  int64_t d = 0;
  for (const int64_t size : shape)
    if (tensor.size(d++) != size) return false;
  return is_stored(tensor, dtype);
}

// A stack of layers and its states, and the one step of inputs that it is given.
struct StepTensors {
  const Tensor& x;
  const std::vector<Tensor>& states;   // h, or h and c: (layers * rows, H) in any shape
  const std::vector<Tensor>& weights;  // of each layer: input weight, recurrent weight, and two biases if it has them
  const int64_t each, groups, layers;
  int64_t rows = 1, row = 0, columns = 0, hidden = 0;  // how many rows x has, how far apart, and how wide

  StepTensors(const Tensor& x, const std::vector<Tensor>& states, const std::vector<Tensor>& weights, bool bias)
      : x(x), states(states), weights(weights), each(bias ? 4 : 2), groups((int64_t)states.size()),
        layers((int64_t)weights.size() / each) {}

  int64_t blocks() const { return groups == 1 ? 3 : 5; }
  int64_t outputs() const { return blocks() * hidden; }
  const Tensor& weight(int64_t layer, int64_t i) const { return weights[(size_t)(layer * each + i)]; }

  bool fit() {
    return layers > 0 && (groups == 1 || groups == 2) && input_fits() && states_fit() && weights_fit();
  }

 private:
  // All but the last dimension and one other must be 1.
  bool input_fits() {
    if (!is_stored(x, ScalarType::Float)) return false;
    const int64_t last = x.dim() - 1;
    columns = row = x.size(last);
    for (int64_t d = 0; d < last; d++) {
      if (x.size(d) == 1) continue;
      if (rows > 1) return false;
      rows = x.size(d), row = x.stride(d);
    }
    return true;
  }

  bool states_fit() {
    for (const Tensor& state : states) {
      const ScalarType dtype = state.scalar_type();
      if (dtype != ScalarType::Float && dtype != ScalarType::Double) return false;
      if (!state.is_contiguous() || !is_stored(state, dtype)) return false;
      hidden = states[0].size(states[0].dim() - 1);
      if (hidden % 2 || state.numel() != layers * rows * hidden) return false;
    }
    return true;
  }

  bool weights_fit() const {
    if ((int64_t)weights.size() != layers * each) return false;
    for (int64_t layer = 0; layer < layers; layer++) {
      if (!is_dense(weight(layer, 0), ScalarType::Float, {outputs(), layer ? hidden : columns})) return false;
      if (!is_dense(weight(layer, 1), ScalarType::Float, {outputs(), hidden / 2})) return false;
      for (int64_t i = 2; i < each; i++)
        if (!is_dense(weight(layer, i), ScalarType::Float, {outputs()})) return false;
    }
    return true;
  }
};

// Counts (2, B, N) of a state (B, H); false if a number is out of their range.
template <class Float>
bool read_counts(const Float* state, int64_t rows, int64_t units, double* counts) {
  int64_t outside = 0;
  for (int64_t row = 0; row < rows; row++)
    for (int64_t half = 0; half < 2; half++, state += units) {
      double* into = counts + (half * rows + row) * units;
      for (int64_t j = 0; j < units; j++) {
        outside += !(std::fabs((double)state[j]) < 1048576.0);
        into[j] = __builtin_rint((double)state[j] * 4294967296.0);
      }
    }
  return outside == 0;
}

template <class Float>
void write_state(const double* counts, int64_t rows, int64_t units, Float* state) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t half = 0; half < 2; half++, state += units) {
      const double* from = counts + (half * rows + row) * units;
      for (int64_t j = 0; j < units; j++) state[j] = (Float)(from[j] * (1.0 / 4294967296.0));
    }
}

// The step's numbers: counts of all layers, and room for what lies between them.
class StepRun {
 public:
  StepRun(const StepTensors& given, double slope, bool forgetting, bool bounded, float* y)
      : given_(given), shape_(given.blocks(), given.rows, given.hidden / 2), slope_(slope), forgetting_(forgetting),
        bounded_(bounded), y_(y), counts_((size_t)(given.layers * shape_.states())),
        bias_((size_t)(given.layers * given.outputs())), gates_((size_t)(given.rows * given.outputs())),
        between_((size_t)((given.layers - 1) * size())), start_((size_t)size()) {}

  bool read() {
    for (int64_t layer = 0; layer < given_.layers; layer++) add_biases(layer);
    return each_state([&](const Tensor& state, int64_t layer, double* counts) {
      return state.scalar_type() == ScalarType::Double
                 ? read_counts(state.const_data_ptr<double>() + layer * size(), given_.rows, shape_.units, counts)
                 : read_counts(state.const_data_ptr<float>() + layer * size(), given_.rows, shape_.units, counts);
    }, given_.states);
  }

  bool run() {
    std::atomic<bool> fine{true};
    over_rows(given_.rows, given_.layers * multiplications(shape_), [&](int64_t begin, int64_t end) {
      for (int64_t layer = 0; layer < given_.layers; layer++)
        if (!variant().step[shape_.cell()](chunk(layer), inputs(layer), begin, end)) fine = false;
    });
    return fine;
  }

  void write(const std::vector<Tensor>& states) {
    each_state([&](const Tensor& state, int64_t layer, const double* counts) {
      if (state.scalar_type() == ScalarType::Double)
        write_state(counts, given_.rows, shape_.units, state.mutable_data_ptr<double>() + layer * size());
      else
        write_state(counts, given_.rows, shape_.units, state.mutable_data_ptr<float>() + layer * size());
      return true;
    }, states);
  }

 private:
  const StepTensors& given_;
  const Shape shape_;
  const double slope_;
  const bool forgetting_, bounded_;
  float* y_;
  std::vector<double> counts_;
  std::vector<float> bias_, gates_, between_, start_;

  int64_t size() const { return given_.rows * given_.hidden; }

  template <class Work>
  bool each_state(const Work& work, const std::vector<Tensor>& states) {
    bool fine = true;
    for (int64_t layer = 0; layer < given_.layers; layer++)
      for (int64_t group = 0; group < given_.groups; group++)
        fine &= work(states[(size_t)group], layer, counts_.data() + (layer * given_.groups + group) * size());
    return fine;
  }

  void add_biases(int64_t layer) {
    if (given_.each == 2) return;
    const float* ih = given_.weight(layer, 2).const_data_ptr<float>();
    const float* hh = given_.weight(layer, 3).const_data_ptr<float>();
    float* sum = bias_.data() + layer * given_.outputs();
    for (int64_t j = 0; j < given_.outputs(); j++) sum[j] = ih[j] + hh[j];
  }

  float* outputs_of(int64_t layer) { return layer + 1 == given_.layers ? y_ : between_.data() + layer * size(); }

  Layer inputs(int64_t layer) {
    Layer in{given_.x.const_data_ptr<float>(), given_.row, given_.columns};
    if (layer) in = {outputs_of(layer - 1), given_.hidden, given_.hidden};
    in.weight = given_.weight(layer, 0).const_data_ptr<float>();
    in.bias = bias_.data() + layer * given_.outputs();
    return in;
  }

  Chunk chunk(int64_t layer) {
    Chunk chunk = bare_chunk(shape_, {}, {}, {}, {}, 0, slope_, forgetting_, bounded_);
    chunk.gates = gates_.data(), chunk.counts = counts_.data() + layer * shape_.states();
    chunk.y = outputs_of(layer), chunk.y_start = start_.data();
    chunk.weight = given_.weight(layer, 1).const_data_ptr<float>();
    return chunk;
  }
};

// The outputs of a step and the states after it, or nothing where this is not the way to take it.
inline std::vector<Tensor> step(const Tensor& x, const std::vector<Tensor>& states, const std::vector<Tensor>& weights,
                                bool bias, double slope, bool forgetting, bool bounded) {
  StepTensors given(x, states, weights, bias);
  if (!given.fit()) return {};
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < x.dim(); d++) sizes.push_back(x.size(d));
  sizes.push_back(given.hidden);
  std::vector<Tensor> results{torch::stable::new_empty(x, sizes)};
  StepRun run(given, slope, forgetting, bounded, results[0].mutable_data_ptr<float>());
  if (!run.read() || !run.run()) return {};
  std::vector<Tensor> after;
  for (const Tensor& state : states) after.push_back(torch::stable::empty_like(state));
  run.write(after);
  results.insert(results.end(), after.begin(), after.end());
  return results;
}

}  // namespace revtune
