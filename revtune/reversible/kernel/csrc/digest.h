// Digests, in whole numbers, so that every instruction set has the same.

constexpr int64_t digest_keys = 512;  // 4 KiB, which stay in a core's first cache

// SplitMix64's n-th number (Steele, Lea, Flood 2014).
constexpr uint64_t random_number(uint64_t n) {
  uint64_t x = n * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

struct DigestKeys {
  uint64_t keys[digest_keys] = {};
  constexpr DigestKeys() {
    for (int64_t i = 0; i < digest_keys; i++) keys[i] = random_number((uint64_t)i);
  }
};

// A number that every bit of `bits`, and its place counted from `first`, takes part in; digests of parts add up.
//
// Each word is xored with a key of its place, and the product of its halves added (the hash NH of UMAC, Black et al.
// 1999). A product alone would be blind to one half where the other is 0; with the word added to it, it is
// (low + 2^32) (high + 1) - 2^32, which every change of one half changes.
inline uint64_t digest(const Bits* bits, int64_t n, uint64_t first) {
  static constexpr DigestKeys within;
  uint64_t sum = 0;
  for (int64_t done = 0; done < n;) {
    const uint64_t place = first + (uint64_t)done, block = random_number(digest_keys + place / digest_keys);
    const uint64_t* keys = within.keys + place % digest_keys;
    const int64_t words = std::min(digest_keys - (int64_t)(place % digest_keys), n - done);
    for (int64_t i = 0; i < words; i++) {
      const uint64_t x = bits[done + i] ^ keys[i] ^ block;
      sum += x + (x & 0xFFFFFFFFu) * (x >> 32);
    }
    done += words;
  }
  return sum;
}
