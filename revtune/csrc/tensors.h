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

}  // namespace revtune
