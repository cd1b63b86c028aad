// Multiplying a row of counts by forget integers, and its inverse: the arithmetic of buffer.py, one row at a time.
//
// Units take turns with the heads: turn p has the units [p * width, (p + 1) * width). Words go to the row's own stack
// in the order of turns and units.

constexpr double head_start = 16384.0, count_limit = 4503599627370496.0;  // 2^14; 2^20 in counts of 2^-32

// Calls `found(i)` for every i below n whose flag is set, in order. Flags are 0 or 1 and have room for 8 more.
template <class Found>
inline __attribute__((always_inline)) void each_flag(uint8_t* flags, int64_t n, Found found) {
  std::memset(flags + n, 0, 8);
  for (int64_t i = 0; i < n; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, flags + i, 8);
    for (; eight; eight &= eight - 1) found(i + __builtin_ctzll(eight) / 8);
  }
}

// A head that has no room for what a forget integer adds to it.
inline __attribute__((always_inline)) bool is_full(double head, double z) { return head >= z * 1048576.0; }

// No bytes in here: the compiler would take as many units at a time as fit a vector of them.
inline void multiply_turn(double* __restrict h, const float* __restrict zi, double* __restrict s, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const double z = zi[i], head = is_full(s[i], z) ? __builtin_floor(s[i] * (1.0 / 65536.0)) : s[i];
    const double q = __builtin_floor(h[i] * (1.0 / 1024.0));
    const double a = head * 1024.0 + (h[i] - q * 1024.0);
    s[i] = __builtin_floor(a / z);
    h[i] = q * z + (a - s[i] * z);
  }
}

// h * zi / 1024, what is lost pushed onto the heads s, and words on the stack, unless there is none to keep them.
inline void multiply(double* h, const float* zi, double* s, int64_t units, int64_t width, Stack* stack,
                     uint8_t* flags) {
  for (int64_t first = 0; first < units; first += width) {
    const int64_t n = std::min(width, units - first);
    if (stack) {
      for (int64_t i = 0; i < n; i++) flags[i] = is_full(s[i], zi[first + i]);
      each_flag(flags, n, [&](int64_t i) { stack->push_back((uint16_t)(int64_t)s[i]); });
    }
    multiply_turn(h + first, zi + first, s, n);
  }
}

inline void divide_turn(double* __restrict h, const float* __restrict zi, double* __restrict s, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const double z = zi[i], q = __builtin_floor(h[i] / z);
    const double a = s[i] * z + (h[i] - q * z);
    s[i] = __builtin_floor(a * (1.0 / 1024.0));
    h[i] = q * 1024.0 + (a - s[i] * 1024.0);
  }
}

// Undo the last `multiply`; false if the stack ran empty.
inline bool divide(double* h, const float* zi, double* s, int64_t units, int64_t width, Stack& stack, uint8_t* flags) {
  const int64_t last = (units - 1) / width * width;
  for (int64_t first = last; first >= 0; first -= width) {
    const int64_t n = std::min(width, units - first);
    divide_turn(h + first, zi + first, s, n);
    int64_t wanted = 0;
    for (int64_t i = 0; i < n; i++) wanted += flags[i] = s[i] < head_start;
    if (wanted > (int64_t)stack.size()) return false;
    const uint16_t* word = stack.data() + (stack.size() - wanted);
    each_flag(flags, n, [&](int64_t i) { s[i] = s[i] * 65536.0 + *word++; });
    stack.resize(stack.size() - wanted);
  }
  return true;
}

// Whole numbers below 2^63, in so many words each, the lowest first.
inline void push_whole(Stack& stack, const double* values, int64_t n, int words) {
  for (int64_t i = 0; i < n; i++)
    for (int w = 0; w < words; w++) stack.push_back((uint16_t)((uint64_t)(int64_t)values[i] >> 16 * w));
}

// The last ones that were pushed; false if the stack ran empty.
inline bool pop_whole(Stack& stack, double* values, int64_t n, int words) {
  if ((int64_t)stack.size() < n * words) return false;
  const uint16_t* word = stack.data() + ((int64_t)stack.size() - n * words);
  for (int64_t i = 0; i < n; i++) {
    uint64_t bits = 0;
    for (int w = 0; w < words; w++) bits |= (uint64_t)*word++ << 16 * w;
    values[i] = (double)(int64_t)bits;
  }
  stack.resize(stack.size() - (size_t)(n * words));
  return true;
}

// h * zi / 1024 to the nearest count, nothing kept.
inline void multiply_only(double* __restrict h, const float* __restrict zi, int64_t units) {
  for (int64_t i = 0; i < units; i++) h[i] = __builtin_rint((h[i] * zi[i]) * (1.0 / 1024.0));
}

inline bool within_range(const double* counts, int64_t n) {
  int64_t outside = 0;
  for (int64_t i = 0; i < n; i++) outside += !(__builtin_fabs(counts[i]) < count_limit);
  return outside == 0;
}
