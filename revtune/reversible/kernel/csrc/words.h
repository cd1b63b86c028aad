// Words that rows have spilled, as a tensor that Python keeps.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "chunk.h"
#include "tensors.h"

namespace revtune {

// One tensor a chunk: how many words each row spilled, as pairs of 16 bits, then the words row by row; nothing at all
// where no row spilled any.
inline Tensor sealed(const Tensor& like, const std::vector<Stack>& stacks) {
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

inline std::vector<Stack> unsealed(const Tensor& words, int64_t rows) {
  const int64_t size = words.numel();
  const auto* in = (const uint16_t*)readable<int16_t>(words, size, "words");
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

// Rewound rows must have used up their words.
inline bool used_up(const std::vector<Stack>& stacks) {
  return std::all_of(stacks.begin(), stacks.end(), [](const Stack& stack) { return stack.empty(); });
}

}  // namespace revtune
