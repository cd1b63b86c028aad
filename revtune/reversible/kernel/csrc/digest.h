// Digests, in whole numbers, so that every instruction set has the same.

// A number that every bit of `bits`, and its place counted from `first`, takes part in.
inline uint64_t digest(const Bits* bits, int64_t n, uint64_t first) {
  constexpr uint64_t key = 0x9E3779B97F4A7C15u, factor = 0xBF58476D1CE4E5B9u;
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; i++) {
    uint64_t x = (bits[i] ^ ((first + (uint64_t)i + 1) * key)) * factor;
    x = (x ^ (x >> 29)) * key;
    sum += x ^ (x >> 32);
  }
  return sum;
}
