// What operators ask of the tensors that they are handed.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

namespace revtune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

inline void check_dense(const Tensor& tensor, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == size, name, " must hold ", size, " numbers, got ", tensor.numel());
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
