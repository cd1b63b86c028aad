// Digests: of tensors, and of where a chunk stands.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <vector>

#include "instruction_sets.h"
#include "tensors.h"

namespace revtune {

inline int64_t digest_of(const void* values, int64_t bytes, uint64_t first) {
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
inline int64_t standing(const Chunk& chunk) {
  const int64_t states = chunk.groups * 2 * chunk.rows * chunk.units, heads = chunk.groups * chunk.rows * chunk.width;
  double some[512];
  uint64_t sum = 0;
  const auto add = [&](const double* values, int64_t count, int64_t first) {
    for (int64_t done = 0; done < count; done += std::size(some)) {
      const int64_t n = std::min<int64_t>(std::size(some), count - done);
      for (int64_t i = 0; i < n; i++) some[i] = values[done + i] + 0.0;
      sum += variant().digest((const Bits*)some, n, (uint64_t)(first + done));
    }
  };
  add(chunk.counts, states, 0);
  add(chunk.heads, heads, states);
  return (int64_t)sum;
}

inline int64_t digest(const std::vector<Tensor>& tensors) {
  uint64_t sum = 0, first = 0;
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(tensor.is_contiguous(), "digest wants contiguous tensors");
    check_stored(tensor, "a tensor to digest");
    const int64_t bytes = tensor.numel() * (int64_t)tensor.element_size();
    sum += (uint64_t)digest_of(tensor.const_data_ptr(), bytes, first);
    first += (uint64_t)bytes / 8 + 1;
  }
  return (int64_t)sum;
}

}  // namespace revtune
