// The loops over time, of any cell: rows [begin, end) of a chunk, step by step, one half after the other.
//
// A cell has `blocks` of gates a half, and
//   evaluate(worker, begin, end, half)           gates of positions, in either direction and from known outputs
//   prepare(worker, begin, end, half, keep)      what `advance` needs of positions: their gates, or the sums of them
//   advance(worker, position, half, keep, sum)   a row's states one step on, and their floats
//   undo(worker, position, half)                 a row's states before a step; false if its stack ran empty
//   differentiate(worker, position, half)        gradients of a row's gates in their place, from its direction, which
//                                                goes one step back
//   carry(worker, begin, end, half)              on to the direction of the other half, which the gates have read
//   move(worker, begin, end, half)               tangents of positions' states one step on, and those of their outputs

// Rows or positions whose gates are evaluated at once, so that what a thread needs for them stays near.
constexpr int64_t at_once = 8 * most_rows;

template <class Work>
void some_at_once(int64_t begin, int64_t end, const Work& work) {
  for (int64_t first = begin; first < end; first += at_once) work(first, std::min(first + at_once, end));
}

// Rows [begin, end) that begin anew before step t.
template <class Work>
void each_anew(const Worker& worker, int64_t t, int64_t begin, int64_t end, const Work& work) {
  if (!worker.chunk.resets) return;
  for (int64_t row = begin; row < end; row++)
    if (worker.anew(t * worker.chunk.rows + row)) work(row);
}

template <class Cell>
bool forward(const Chunk& chunk, Keep keep, int64_t begin, int64_t end) {
  Worker worker(chunk, Cell::blocks, std::min(at_once, end - begin));
  bool fine = true;
  for (int64_t row = begin; row < end; row++)
    for (int half = 0; half < 2; half++)
      worker.copy_states(row, half, worker.y_earlier(row, half), worker.c_earlier(row, half));
  for (int64_t t = 0; t < chunk.steps; t++) {
    each_anew(worker, t, begin, end, [&](int64_t row) {
      for (int half = 0; half < 2; half++) fine &= worker.in_range(row, half);  // what is lost is not looked at later
      worker.begin_anew(row, keep);
    });
    for (int half = 0; half < 2; half++)
      some_at_once(begin, end, [&](int64_t first, int64_t last) {
        Cell::prepare(worker, t * chunk.rows + first, t * chunk.rows + last, half, keep);
        for (int64_t row = first; row < last; row++) {
          const int64_t position = t * chunk.rows + row;
          if (worker.runs(position))
            Cell::advance(worker, position, half, keep, worker.sums[row - first]);
          else
            worker.copy_states(row, half, worker.y(position, half), worker.c(position, half));
          if (!chunk.forgetting) fine &= worker.in_range(row, half);
        }
      });
  }
  for (int64_t row = begin; row < end; row++)
    for (int half = 0; half < 2; half++) fine &= worker.in_range(row, half);
  return fine && worker.finite;
}

template <class Cell>
bool rewind(const Chunk& chunk, int64_t begin, int64_t end) {
  Worker worker(chunk, Cell::blocks, std::min(at_once, end - begin));
  const int64_t end_of_chunk = (chunk.steps - 1) * chunk.rows;
  bool fine = true;
  for (int64_t row = begin; row < end; row++)
    for (int half = 0; half < 2; half++)
      worker.copy_states(row, half, worker.y(end_of_chunk + row, half), worker.c(end_of_chunk + row, half));
  for (int64_t t = chunk.steps - 1; t >= 0 && fine; t--) {
    for (int half = 1; half >= 0 && fine; half--)
      some_at_once(begin, end, [&](int64_t first, int64_t last) {
        // Half 1 reads half 2 as it was before the step, which has just been found.
        Cell::evaluate(worker, t * chunk.rows + first, t * chunk.rows + last, half);
        for (int64_t row = first; row < last && fine; row++) {
          const int64_t position = t * chunk.rows + row;
          fine = !worker.runs(position) || Cell::undo(worker, position, half);
          if (!worker.anew(position))
            worker.copy_states(row, half, worker.y_earlier(position, half), worker.c_earlier(position, half));
        }
      });
    each_anew(worker, t, begin, end, [&](int64_t row) {  // only now: half 1 is read as the row began anew
      for (int64_t group = chunk.groups - 1; group >= 0; group--) fine = fine && worker.take_lost((int)group, row);
      for (int half = 0; half < 2; half++)
        worker.copy_states(row, half, worker.y_earlier(t * chunk.rows + row, half),
                           worker.c_earlier(t * chunk.rows + row, half));
    });
  }
  return fine;
}

// Evaluates both halves' gates of positions [begin, end).
template <class Cell>
void recall(const Chunk& chunk, int64_t begin, int64_t end) {
  Worker worker(chunk, Cell::blocks, std::min(at_once, end - begin));
  for (int half = 0; half < 2; half++)
    some_at_once(begin, end, [&](int64_t first, int64_t last) { Cell::evaluate(worker, first, last, half); });
}

template <class Cell>
void gradient(const Gradient& task, int64_t begin, int64_t end) {
  const Chunk& chunk = *task.chunk;
  Backward worker(task, Cell::blocks, std::min(at_once, end - begin));
  for (int64_t t = chunk.steps - 1; t >= 0; t--) {
    worker.add_output_gradient(t, begin, end);
    for (int half = 1; half >= 0; half--)
      some_at_once(t * chunk.rows + begin, t * chunk.rows + end, [&](int64_t first, int64_t last) {
        for (int64_t position = first; position < last; position++)
          if (worker.runs(position))
            Cell::differentiate(worker, position, half);
          else
            std::fill_n(worker.gates(position, half), Cell::blocks * chunk.units, 0.0f);
        Cell::carry(worker, first, last, half);
      });
    each_anew(worker, t, begin, end, [&](int64_t row) { worker.cut(row); });
  }
}

template <class Cell>
void tangent(const Tangent& task, int64_t begin, int64_t end) {
  const Chunk& chunk = *task.chunk;
  Moving worker(task, Cell::blocks, std::min(at_once, end - begin));
  for (int64_t t = 0; t < chunk.steps; t++) {
    each_anew(worker, t, begin, end, [&](int64_t row) { worker.cut(row); });
    for (int half = 0; half < 2; half++)
      some_at_once(t * chunk.rows + begin, t * chunk.rows + end,
                   [&](int64_t first, int64_t last) { Cell::move(worker, first, last, half); });
  }
}
