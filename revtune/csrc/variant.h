// All of the kernel, once for each instruction set: included by instruction_sets.h within a namespace and a target of its own.

#include "lanes.h"
#include "digest.h"
#include "product.h"
#include "matrix.h"
#include "functions.h"
#include "coupling.h"
#include "worker.h"
#include "backward.h"
#include "gru.h"
#include "lstm.h"

inline int64_t packed_size(int64_t blocks, int64_t units) {
  return 2 * (blocks == gru::blocks ? gru::product_size(units) : lstm::product_size(units));
}

inline void pack(const float* weight, int64_t blocks, int64_t units, float* packed) {
  for (int64_t half = 0; half < 2; half++, weight += blocks * units * units)
    if (blocks == gru::blocks)
      gru::pack(weight, units, packed + half * gru::product_size(units));
    else
      lstm::pack(weight, units, packed + half * lstm::product_size(units));
}

constexpr Variant make_variant(const char* name) {
  return {name, panel_width, packed_size, pack, {gru::forward, lstm::forward}, {gru::rewind, lstm::rewind},
          {gru::recall, lstm::recall}, lstm::recall_cells, {gru::gradient, lstm::gradient}, sigmoid_of, tanh_of,
          digest, project, project_back, add_outer, most_rows};
}
