// A sequence without a way back: some steps after another are projected and run, by rows, while their gates are near.

// The projected inputs of a chunk's rows [begin, end), into its gates.
inline void project_rows(const Projection& in, const Chunk& chunk, int64_t outputs, int64_t begin, int64_t end) {
  const int64_t rows = end - begin, positions = chunk.steps * rows;
  Rows at(positions);
  for (int64_t p = 0; p < positions; p++) {
    const int64_t t = p / rows, row = begin + p % rows;
    at.inputs[p] = in.x + (chunk.first + t) * in.step + row * in.row;
    at.outputs[p] = chunk.gates + (t * chunk.rows + row) * outputs;
  }
  for (int64_t column = 0; column < outputs; column += panel_width) {
    const int64_t n = std::min<int64_t>(panel_width, outputs - column);
    const float* panel = in.packed + column * in.columns;
    PanelRow from{};
    if (in.bias) std::copy(in.bias + column, in.bias + column + n, from.values);
    if (n == panel_width)
      panel_for_all(at, positions, {0, in.columns}, from.values, panel, panel_width, column);
    else
      part_of_panel(at, positions, {0, in.columns}, from.values, panel, column, n);
  }
}

// Rows [begin, end) of all steps, as many at a time as there is room for in the gates.
template <class Cell>
bool infer(const Chunk& whole, const Projection& in, int64_t begin, int64_t end) {
  const int64_t state = whole.rows * 2 * whole.units;
  bool fine = true;
  for (int64_t t = 0; t < whole.steps; t += in.room) {
    Chunk chunk = whole;
    chunk.first = t, chunk.steps = std::min(in.room, whole.steps - t);
    chunk.resets = whole.resets ? whole.resets + t * whole.rows : nullptr;
    chunk.y = whole.y + t * state;
    chunk.y_start = t ? chunk.y - state : whole.y_start;
    project_rows(in, chunk, 2 * Cell::blocks * whole.units, begin, end);
    fine &= forward<Cell>(chunk, Keep::nothing, begin, end);
  }
  return fine;
}
