// One step with weights as they are stored: a chunk of one step without a buffer, projected and run.

template <class Cell>
bool step(const Chunk& chunk, const Layer& layer, int64_t begin, int64_t end) {
  const int64_t outputs = 2 * Cell::blocks * chunk.units;
  Rows at(end - begin);
  for (int64_t row = begin; row < end; row++) {
    at.inputs[row - begin] = layer.x + row * layer.row;
    at.outputs[row - begin] = chunk.gates + row * outputs;
  }
  const bool finite = direct_product(at, end - begin, layer.columns, outputs, layer.bias, layer.weight);
  return forward<Cell>(chunk, Keep::nothing, begin, end) && finite;
}
