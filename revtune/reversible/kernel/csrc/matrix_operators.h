// The operators of matmuls: weights packed for the steps, and those over whole chunks, cut over threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "instruction_sets.h"
#include "tensors.h"

namespace revtune {

// How many numbers a recurrent weight has as the steps read it.
inline int64_t packed_size(int64_t blocks, int64_t units) {
  STD_TORCH_CHECK(blocks == 3 || blocks == 5, "blocks must be 3 or 5, got ", blocks);
  STD_TORCH_CHECK(units > 0, "units must be positive, got ", units);
  return variant().packed_size(blocks, units);
}

inline void pack_into(const Tensor& packed, const Tensor& weight, int64_t blocks) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == 2 * blocks * weight.size(1), "weight must be (2 blocks N, N)");
  const int64_t units = weight.size(1);
  float* into = writable<float>(packed, packed_size(blocks, units), "packed");
  variant().pack(readable<float>(weight, weight.numel(), "weight"), blocks, units, into);
}

inline Tensor pack(const Tensor& weight, int64_t blocks) {
  Tensor packed = torch::stable::new_empty(weight, {packed_size(blocks, weight.size(-1))});
  pack_into(packed, weight, blocks);
  return packed;
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

// A weight as products of whole chunks read it.
inline Tensor pack_projection(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must be (G, I)");
  const int64_t outputs = weight.size(0), inputs = weight.size(1), panel = variant().panel;
  Tensor packed = torch::stable::new_empty(weight, {(outputs + panel - 1) / panel * panel * inputs});
  const float* values = readable<float>(weight, weight.numel(), "weight");
  float* into = packed.mutable_data_ptr<float>();
  over_parts(outputs, panel, outputs * inputs, [&](int64_t begin, int64_t end) {
    variant().pack_product(values + begin * inputs, end - begin, inputs, into + begin * inputs);
  });
  return packed;
}

inline void check_rows(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && (tensor.stride(1) == 1 || tensor.size(1) < 2), name, " must have dense rows");
  check_stored(tensor, name);
}

// A float32 matrix whose rows are dense, to be read or to be written.
inline Matrix<const float> readable_matrix(const Tensor& tensor, const char* name) {
  check_rows(tensor, name);
  return {tensor.const_data_ptr<float>(), tensor.size(0), tensor.size(1), tensor.stride(0)};
}

inline Matrix<float> writable_matrix(const Tensor& tensor, const char* name) {
  check_rows(tensor, name);
  return {tensor.mutable_data_ptr<float>(), tensor.size(0), tensor.size(1), tensor.stride(0)};
}

inline void project_into(const Tensor& y, const Tensor& x, const Tensor& weight, const Maybe& bias,
                         const Maybe& packed) {
  const Matrix in = readable_matrix(x, "x");
  const Matrix out = writable_matrix(y, "y");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == in.columns && in.columns > 0, "x and weight do not fit");
  STD_TORCH_CHECK(out.rows == in.rows && out.columns == weight.size(0), "y must be x's rows by weight's rows");
  const float* values = readable<float>(weight, weight.numel(), "weight");
  const float* added = readable<float>(bias, out.columns, "bias");
  const int64_t panel = variant().panel;
  const float* there = readable<float>(packed, (out.columns + panel - 1) / panel * panel * in.columns, "packed");
  over_parts(out.columns, panel, in.rows * in.columns * out.columns, [&](int64_t begin, int64_t end) {
    variant().project(in, values, there, added, out, begin, end);
  });
}

// The row of each of so many positions, of `rows` at most.
inline const int64_t* readable_index(const Maybe& index, int64_t positions, int64_t rows) {
  const int64_t* row = readable<int64_t>(index, positions, "index");
  for (int64_t p = 0; row && p < positions; p++)
    STD_TORCH_CHECK(row[p] >= 0 && row[p] < rows, "index must hold rows of scale, got ", row[p]);
  return row;
}

// A response's part of y, (K B, G) or (N, G) with the row of each position: s * products added to it, and before that
// each row's own bias, if there is one.
inline void add_answer(const Tensor& y, const Tensor& products, const Tensor& scale, const Maybe& bias,
                       const Maybe& index) {
  const Matrix out = writable_matrix(y, "y");
  STD_TORCH_CHECK(scale.dim() == 2 && scale.size(0) > 0 && (index || out.rows % scale.size(0) == 0),
                  "y must have all rows of each step");
  const int64_t rows = scale.size(0), size = rows * out.columns;
  const int64_t* row = readable_index(index, out.rows, rows);
  const float* more = readable<float>(products, out.rows * out.columns, "products");
  const float* factors = readable<float>(scale, size, "scale");
  const float* own = readable<float>(bias, size, "bias");
  over_parts(out.rows, 1, out.rows * out.columns, [&](int64_t begin, int64_t end) {
    variant().add_answer(out, more, factors, own, row, rows, begin, end);
  });
}

// From the gradient (K B, G) of a product to which s * (V x) was added: that of s into `sum`, (B, G), and s times it in
// the place of V's products, if `scaled`.
inline void scale_back(const Tensor& products, const Tensor& d, const Tensor& scale, const Maybe& sum, bool scaled) {
  const Matrix in = readable_matrix(d, "d");
  STD_TORCH_CHECK(scale.dim() == 2 && scale.size(0) > 0 && in.rows % scale.size(0) == 0,
                  "d must have all rows of each step");
  const int64_t rows = scale.size(0), size = rows * in.columns;
  const float* factors = readable<float>(scale, size, "scale");
  float* into = writable<float>(products, in.rows * in.columns, "products");
  float* total = writable<float>(sum, size, "sum");
  over_parts(rows, 1, in.rows * in.columns, [&](int64_t begin, int64_t end) {
    variant().scale_back(in, factors, into, total, rows, scaled, begin, end);
  });
}

// From the gradient (N, G) of what `add_answer` gave for positions of these rows: those of s and of the bias, added to
// sums (B, G), and s times it in the place of V's products, if `scaled`.
inline void answer_back(const Tensor& products, const Tensor& d, const Tensor& scale, const Tensor& index,
                        const Tensor& scale_sum, const Tensor& bias_sum, bool scaled) {
  const Matrix in = readable_matrix(d, "d");
  STD_TORCH_CHECK(scale.dim() == 2, "scale must be (B, G)");
  const int64_t rows = scale.size(0), size = rows * in.columns;
  const int64_t* row = readable_index(index, in.rows, rows);
  const float* factors = readable<float>(scale, size, "scale");
  float* into = writable<float>(products, in.rows * in.columns, "products");
  float* scales = writable<float>(scale_sum, size, "scale_sum");
  float* biases = writable<float>(bias_sum, size, "bias_sum");
  over_parts(in.columns, variant().panel, in.rows * in.columns, [&](int64_t begin, int64_t end) {
    variant().answer_back(in, factors, row, into, scales, biases, scaled, begin, end);
  });
}

inline void project_back_into(const Tensor& x, const Tensor& d, const Tensor& weight, bool add) {
  const Matrix in = readable_matrix(d, "d");
  const Matrix out = writable_matrix(x, "x");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == in.columns && in.columns > 0, "d and weight do not fit");
  STD_TORCH_CHECK(out.rows == in.rows && out.columns == weight.size(1), "x must be d's rows by weight's columns");
  const float* values = readable<float>(weight, weight.numel(), "weight");
  over_parts(out.columns, variant().panel, in.rows * in.columns * out.columns, [&](int64_t begin, int64_t end) {
    variant().project_back(in, values, out, add, begin, end);
  });
}

inline Tensor project_back(const Tensor& d, const Tensor& weight) {
  STD_TORCH_CHECK(d.dim() == 2 && weight.dim() == 2, "d and weight must be (N, G) and (G, I)");
  Tensor x = torch::stable::new_empty(weight, {d.size(0), weight.size(1)});
  project_back_into(x, d, weight, false);
  return x;
}

inline void add_outer(const Tensor& into, const Tensor& d, const Tensor& v) {
  const Matrix grads = readable_matrix(d, "d"), values = readable_matrix(v, "v");
  const Matrix sum = writable_matrix(into, "into");
  STD_TORCH_CHECK(grads.rows == values.rows && sum.rows == grads.columns && sum.columns == values.columns,
                  "into must be d's columns by v's columns");
  over_parts(sum.rows, variant().most_rows, grads.rows * sum.rows * sum.columns, [&](int64_t begin, int64_t end) {
    variant().add_outer(grads, values, sum, begin, end);
  });
}

}  // namespace revtune
