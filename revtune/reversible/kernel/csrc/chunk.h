// What a kernel works on: one chunk of K steps of one layer, for B rows whose parts are N units wide.
//
// A row of gates at one step is [half 1 | half 2], each half being 3 (RevGRU: z r g) or 5 (RevLSTM: f p i o g) blocks of
// N. It holds the projected input at first, the gates as they were evaluated after a recorded or rewound chunk, and the
// gradient of the projection after its gradient. Rows of y, c and rh are [half 1 | half 2] too.
#pragma once

#include <cstdint>
#include <vector>

namespace revtune {

// Eight bytes of whatever type.
typedef uint64_t Bits __attribute__((may_alias, aligned(4)));

// The 16-bit words that one row has spilled, in order.
using Stack = std::vector<uint16_t>;

enum class Keep : int64_t {
  nothing = 0,  // no buffer: the ten lowest bits of a state are rounded away
  heads = 1,    // the buffer's arithmetic, its words dropped
  cells = 2,    // as `heads`, but the words of c are kept: outputs tell h
  all = 3,      // everything that rewinding needs
};

struct Chunk {
  int64_t steps, rows, units;
  int64_t first;            // the first step's number in its sequence
  const int64_t* lengths;   // the step at which each row ends, or null
  const int64_t* starts;    // the first step that each row runs, or null
  const uint8_t* resets;    // (K, B): whether a row begins anew before a step; or null for never
  const double* anew;       // (groups, 2, B, N): the states from which rows do so, in counts
  const float* anew_state;  // (groups, B, 2N): the same as floats
  int64_t groups, width;    // states of the cell (h, or h and c); heads of one of them in a row
  float slope, floor;       // the limit: z becomes slope * z + floor
  bool forgetting;
  float share;              // 1: a RevLSTM's h takes up (1 - p) of its update; 0: all of it
  int64_t sliced;           // the first units of h1 that stand on floats, which are kept instead of a buffer
  const float* slices;      // (K, B, sliced): those units before each step; for rewinding

  float* gates;             // (K, B, 2 * blocks * N)
  double* counts;           // (groups, 2, B, N): states in counts of 2^-32
  double* heads;            // (groups, B, width)
  float* y;                 // (K, B, 2N): states h after each step
  float* y_start;           // (B, 2N): before the first
  float* c;                 // (K, B, 2N), likewise; null for RevGRU
  float* c_start;           // (B, 2N)
  float* rh;                // (K, B, 2N): what the products with g's weights read; RevGRU only

  const float* packed;      // recurrent weights as `pack` lays them out
  const float* weight;      // the same as they are, (2 * blocks * N, N), for a single step; or null
  const float* response;    // V of a response (V, s), packed; or null
  const float* scale;       // s of it, (B, 2 * blocks * N)
  float* answers;           // where V's products go as they are, (K, B, 2 * blocks * N); or null
  const float* mask[2];     // on what is read of each half, (B, N); or null

  Stack* stacks;            // one a row
  int64_t* tally;           // how often each forget integer was used, 1025 of them; or null
};

struct Gradient {
  const Chunk* chunk;
  const float* weight;      // (2 * blocks * N, N), row by row
  const float* response;    // V likewise, or null
  const uint8_t* kept;      // which of their numbers are kept, 1 or 0, likewise; or null for all
  float kept_times;         // what those are multiplied with
  const float* dy;          // (K, B, 2N), or null
  float* direction;         // (groups, 2, B, N): gradient of the state, in and out
  float* anew;              // (groups, 2, B, N): where those of states from which rows begin anew are added up; or null
};

// How a chunk whose gates are known would move.
struct Tangent {
  const Chunk* chunk;
  const float* projected;   // W dx, (K, B, 2 * blocks * N); or null
  const float* shift;       // of the bias, (B, 2 * blocks * N); or null
  const float* answer[2];   // V x and V h of responses, (K, B, 2 * blocks * N); or null
  const float* scale[2];    // s of them, (B, 2 * blocks * N)
  float* state;             // (groups, 2, B, N): the tangent of the state, in and out
  float* dy;                // (K, B, 2N): those of the outputs
};

// Rows of a matrix: where they begin and how far apart they are.
template <class Float>
struct Matrix {
  Float* values;
  int64_t rows, columns, stride;

  Float* row(int64_t r) const { return values + r * stride; }
};

// The inputs of a whole sequence and their weight, as `pack_projection` lays it out.
struct Projection {
  const float* x;
  int64_t step, row, columns;  // how far apart steps and rows of x are, and how many numbers a row has
  const float* packed;
  const float* bias;           // or null
  int64_t room;                // steps that the gates have room for
};

// What a layer's single step has beside its chunk: inputs, and the projection as it is stored.
struct Layer {
  const float* x;
  int64_t row, columns;        // how far apart rows of x are, and how many numbers a row has
  const float* weight;         // (2 * blocks * N, columns)
  const float* bias;           // numbers that the chains begin with
};

// A kernel compiled for one instruction set.
struct Variant {
  const char* name;
  int64_t panel;            // outputs of the small product that stand side by side
  int64_t (*packed_size)(int64_t blocks, int64_t units);
  void (*pack)(const float* weight, int64_t blocks, int64_t units, float* packed);
  // Each takes rows [begin, end) of a chunk, `infer` of a whole sequence. The first four tell whether all went well.
  bool (*forward[2])(const Chunk&, Keep, int64_t begin, int64_t end);
  bool (*infer[2])(const Chunk&, const Projection&, int64_t begin, int64_t end);
  bool (*rewind[2])(const Chunk&, int64_t begin, int64_t end);
  bool (*step[2])(const Chunk&, const Layer&, int64_t begin, int64_t end);
  // Gates of the positions (step, row) [begin, end), from outputs that are known.
  void (*recall[2])(const Chunk&, int64_t begin, int64_t end);
  bool (*recall_cells)(const Chunk&, int64_t begin, int64_t end);
  void (*gradient[2])(const Gradient&, int64_t begin, int64_t end);
  void (*tangent[2])(const Tangent&, int64_t begin, int64_t end);
  void (*sigmoid)(const float* x, float* y, int64_t n);
  void (*tanh)(const float* x, float* y, int64_t n);
  uint64_t (*digest)(const Bits* bits, int64_t n, uint64_t first);
  void (*pack_product)(const float* weight, int64_t outputs, int64_t inputs, float* packed);
  // Columns [begin, end) of y or x, or rows of a weight.
  void (*project)(const Matrix<const float>& x, const float* weight, const float* packed, const float* bias,
                  const Matrix<float>& y, int64_t begin, int64_t end);
  void (*project_back)(const Matrix<const float>& d, const float* weight, const Matrix<float>& x, bool add,
                       int64_t begin, int64_t end);
  // Positions [begin, end); bias may be null.
  void (*add_answer)(const Matrix<float>& y, const float* products, const float* scale, const float* bias,
                     const int64_t* index, int64_t rows, int64_t begin, int64_t end);
  // Rows [begin, end) of the batch, for d and products of (K, B, G); products or sum may be null.
  void (*scale_back)(const Matrix<const float>& d, const float* scale, float* products, float* sum, int64_t rows,
                     bool scaled, int64_t begin, int64_t end);
  // Columns [begin, end).
  void (*answer_back)(const Matrix<const float>& d, const float* scale, const int64_t* index, float* products,
                      float* scale_sum, float* bias_sum, bool scaled, int64_t begin, int64_t end);
  void (*add_outer)(const Matrix<const float>& d, const Matrix<const float>& v, const Matrix<float>& into,
                    int64_t begin, int64_t end);
  int64_t most_rows;
};

}  // namespace revtune
