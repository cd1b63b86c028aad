// torch.ops.revtune: chunks of RevGRU and RevLSTM, forward, rewound, and their gradients.
//
// The one translation unit, on LibTorch's stable ABI: schemas, and what the headers beside it have for each. Python
// keeps what outlives a chunk: states, heads and words.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <bit>
#include <cstdint>
#include <string>

#include "chunk_operators.h"
#include "digest_operator.h"
#include "instruction_sets.h"
#include "matrix_operators.h"
#include "step_operator.h"
#include "tensors.h"

static_assert(std::endian::native == std::endian::little, "words and flags are read by their low ends");

namespace revtune {
namespace {

Tensor apply(const Tensor& x, void (*function)(const float*, float*, int64_t)) {
  Tensor y = torch::stable::empty_like(x);
  function(readable<float>(x, x.numel(), "x"), y.mutable_data_ptr<float>(), x.numel());
  return y;
}

Tensor gate_sigmoid(const Tensor& x) { return apply(x, variant().sigmoid); }

Tensor gate_tanh(const Tensor& x) { return apply(x, variant().tanh); }

std::string instruction_set() { return variant().name; }

}  // namespace
}  // namespace revtune

STABLE_TORCH_LIBRARY(revtune, m) {
  m.def("pack(Tensor weight, int blocks) -> Tensor");
  m.def("pack_into(Tensor(a!) packed, Tensor weight, int blocks) -> ()");
  m.def("packed_size(int blocks, int units) -> int");
  m.def(
      "forward(Tensor(a!) gates, Tensor(b!) counts, Tensor(c!) heads, Tensor(d!) y, Tensor(e!) y_start, "
      "Tensor(f!)? c, Tensor(g!)? c_start, Tensor(h!)? rh, Tensor packed, Tensor? response, Tensor? scale, "
      "Tensor? mask1, Tensor? mask2, Tensor? lengths, int first, float slope, bool forgetting, bool bounded, int keep, "
      "Tensor(i!)? tally, int sliced=0, Tensor(j!)? answers=None, Tensor? resets=None, Tensor? anew=None, "
      "Tensor? starts=None) -> (Tensor, int, bool)");
  m.def(
      "infer(Tensor x, Tensor packed_input, Tensor? bias, Tensor(a!) counts, Tensor(b!) y, Tensor(c!) y_start, "
      "Tensor packed, Tensor? response, Tensor? scale, Tensor? mask1, Tensor? mask2, Tensor? lengths, float slope, "
      "bool forgetting, bool bounded, Tensor? resets=None, Tensor? anew=None) -> bool");
  m.def(
      "rewind(Tensor(a!) gates, Tensor(b!) counts, Tensor(c!) heads, Tensor words, Tensor(d!) y, Tensor(e!) y_start, "
      "Tensor(f!)? c, Tensor(g!)? c_start, Tensor(h!)? rh, Tensor packed, Tensor? response, Tensor? scale, "
      "Tensor? mask1, Tensor? mask2, Tensor? lengths, int first, float slope, bool forgetting, bool bounded, "
      "Tensor? slices=None, Tensor(i!)? answers=None, Tensor? resets=None, Tensor? anew=None, Tensor? starts=None) "
      "-> (int, bool)");
  m.def(
      "recall(Tensor(a!) gates, Tensor y, Tensor y_start, Tensor(b!)? rh, Tensor packed, Tensor? response, "
      "Tensor? scale, Tensor? mask1, Tensor? mask2, Tensor(c!)? answers=None, Tensor? resets=None, "
      "Tensor? anew=None) -> ()");
  m.def(
      "recall_cells(Tensor gates, Tensor(a!) counts, Tensor(b!) heads, Tensor words, Tensor y, Tensor y_start, "
      "Tensor(c!) c, Tensor(d!) c_start, Tensor? lengths, int first, float slope, bool forgetting, bool bounded, "
      "Tensor? resets=None, Tensor? anew=None) -> bool");
  m.def(
      "gradient(Tensor(a!) gates, Tensor(b!) direction, Tensor y, Tensor y_start, Tensor? c, Tensor? c_start, "
      "Tensor weight, Tensor? response, Tensor? scale, Tensor? mask1, Tensor? mask2, Tensor? lengths, Tensor? dy, "
      "int first, float slope, bool forgetting, bool bounded, Tensor? resets=None, Tensor? anew=None, "
      "Tensor(c!)? anew_direction=None, Tensor? starts=None, Tensor? kept=None, float kept_times=1.0) -> ()");
  m.def(
      "tangent(Tensor gates, Tensor(a!) state, Tensor y, Tensor y_start, Tensor? c, Tensor? c_start, Tensor packed, "
      "Tensor? mask1, Tensor? mask2, Tensor? lengths, Tensor? projected, Tensor? shift, Tensor? ih_answer, "
      "Tensor? ih_scale, Tensor? hh_answer, Tensor? hh_scale, Tensor(b!) dy, int first, float slope, bool forgetting, "
      "bool bounded, Tensor? resets=None, Tensor? anew=None, Tensor? starts=None) -> ()");
  m.def("pack_projection(Tensor weight) -> Tensor");
  m.def("project_into(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, Tensor? packed=None) -> ()");
  m.def("project_back(Tensor d, Tensor weight) -> Tensor");
  m.def("project_back_into(Tensor(a!) x, Tensor d, Tensor weight, bool add=False) -> ()");
  m.def("add_answer(Tensor(a!) y, Tensor products, Tensor scale, Tensor? bias, Tensor? index=None) -> ()");
  m.def("scale_back(Tensor(a!) products, Tensor d, Tensor scale, Tensor(b!)? sum, bool scaled) -> ()");
  m.def(
      "answer_back(Tensor(a!) products, Tensor d, Tensor scale, Tensor index, Tensor(b!) scale_sum, "
      "Tensor(c!) bias_sum, bool scaled) -> ()");
  m.def("add_outer(Tensor(a!) into, Tensor d, Tensor v) -> ()");
  m.def("digest(Tensor[] tensors) -> int");
  m.def(
      "step(Tensor x, Tensor[] states, Tensor[] weights, bool bias, float slope, bool forgetting, bool bounded) "
      "-> Tensor[]");
  m.def("gate_sigmoid(Tensor x) -> Tensor");
  m.def("gate_tanh(Tensor x) -> Tensor");
  m.def("instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(revtune, CPU, m) {
  m.impl("pack", TORCH_BOX(&revtune::pack));
  m.impl("pack_into", TORCH_BOX(&revtune::pack_into));
  m.impl("forward", TORCH_BOX(&revtune::forward));
  m.impl("infer", TORCH_BOX(&revtune::infer));
  m.impl("rewind", TORCH_BOX(&revtune::rewind));
  m.impl("recall", TORCH_BOX(&revtune::recall));
  m.impl("recall_cells", TORCH_BOX(&revtune::recall_cells));
  m.impl("gradient", TORCH_BOX(&revtune::gradient));
  m.impl("tangent", TORCH_BOX(&revtune::tangent));
  m.impl("pack_projection", TORCH_BOX(&revtune::pack_projection));
  m.impl("project_into", TORCH_BOX(&revtune::project_into));
  m.impl("project_back", TORCH_BOX(&revtune::project_back));
  m.impl("add_answer", TORCH_BOX(&revtune::add_answer));
  m.impl("scale_back", TORCH_BOX(&revtune::scale_back));
  m.impl("answer_back", TORCH_BOX(&revtune::answer_back));
  m.impl("project_back_into", TORCH_BOX(&revtune::project_back_into));
  m.impl("add_outer", TORCH_BOX(&revtune::add_outer));
  m.impl("digest", TORCH_BOX(&revtune::digest));
  m.impl("gate_sigmoid", TORCH_BOX(&revtune::gate_sigmoid));
  m.impl("gate_tanh", TORCH_BOX(&revtune::gate_tanh));
}

STABLE_TORCH_LIBRARY_IMPL(revtune, CompositeExplicitAutograd, m) {
  m.impl("step", TORCH_BOX(&revtune::step));
  m.impl("packed_size", TORCH_BOX(&revtune::packed_size));
  m.impl("instruction_set", TORCH_BOX(&revtune::instruction_set));
}
