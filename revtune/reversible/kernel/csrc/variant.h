// All of the kernel, once for each instruction set: included by instruction_sets.h within a namespace and a target of
// its own.

#include "lanes.h"
#include "digest.h"
#include "product.h"
#include "matrix.h"
#include "functions.h"
#include "direct.h"
#include "coupling.h"
#include "worker.h"
#include "backward.h"
#include "moving.h"
#include "gru.h"
#include "lstm.h"
#include "loops.h"
#include "inference.h"
#include "step.h"

inline int64_t packed_size(int64_t blocks, int64_t units) {
  return 2 * (blocks == gru::Cell::blocks ? gru::Cell::packed_size(units) : lstm::Cell::packed_size(units));
}

template <class Cell>
void pack_halves(const float* weight, int64_t units, float* packed) {
  for (int64_t half = 0; half < 2; half++)
    Cell::pack(weight + half * Cell::blocks * units * units, units, packed + half * Cell::packed_size(units));
}

inline void pack(const float* weight, int64_t blocks, int64_t units, float* packed) {
  return blocks == gru::Cell::blocks ? pack_halves<gru::Cell>(weight, units, packed)
                                     : pack_halves<lstm::Cell>(weight, units, packed);
}

constexpr Variant make_variant(const char* name) {
  return {
      .name = name,
      .panel = panel_width,
      .packed_size = packed_size,
      .pack = pack,
      .forward = {forward<gru::Cell>, forward<lstm::Cell>},
      .infer = {infer<gru::Cell>, infer<lstm::Cell>},
      .rewind = {rewind<gru::Cell>, rewind<lstm::Cell>},
      .step = {step<gru::Cell>, step<lstm::Cell>},
      .recall = {recall<gru::Cell>, recall<lstm::Cell>},
      .recall_cells = lstm::recall_cells,
      .gradient = {gradient<gru::Cell>, gradient<lstm::Cell>},
      .tangent = {tangent<gru::Cell>, tangent<lstm::Cell>},
      .sigmoid = sigmoid_of,
      .tanh = tanh_of,
      .digest = digest,
      .pack_product = pack_product,
      .project = project,
      .project_back = project_back,
      .add_answer = add_answer,
      .scale_back = scale_back,
      .answer_back = answer_back,
      .add_outer = add_outer,
      .most_rows = most_rows,
  };
}
