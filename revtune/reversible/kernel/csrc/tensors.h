// What operators ask of the tensors that they are handed.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <optional>

namespace revtune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// Refuses a tensor whose storage ends before its numbers do: freed by resize_(0), it still has its shape. Names of weights
// are for Python to say, storage.py.
inline void check_stored(const Tensor& tensor, const char* name) {
  if (!tensor.numel()) return;
  int64_t last = tensor.storage_offset(), stored = 0;
  for (int64_t d = 0; d < tensor.dim(); d++) last += (tensor.size(d) - 1) * tensor.stride(d);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &stored));
  const int64_t needed = (last + 1) * (int64_t)tensor.element_size();
  STD_TORCH_CHECK(stored >= needed, name, " has lost its memory: it needs ", needed, " bytes and has ", stored);
}

inline void check_dense(const Tensor& tensor, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == size, name, " must hold ", size, " numbers, got ", tensor.numel());
  check_stored(tensor, name);
}

// A dense tensor's numbers, to be read.
template <class T>
const T* readable(const Tensor& tensor, int64_t size, const char* name) {
  check_dense(tensor, size, name);
  return tensor.const_data_ptr<T>();
}

template <class T>
const T* readable(const Maybe& tensor, int64_t size, const char* name) {
  return tensor ? readable<T>(*tensor, size, name) : nullptr;
}

// A dense tensor's numbers, to be written: memory that a lazy clone shares is its own from here on.
template <class T>
T* writable(const Tensor& tensor, int64_t size, const char* name) {
  check_dense(tensor, size, name);
  return tensor.mutable_data_ptr<T>();
}

template <class T>
T* writable(const Maybe& tensor, int64_t size, const char* name) {
  return tensor ? writable<T>(*tensor, size, name) : nullptr;
}

}  // namespace revtune
