// The kernel, variant.h, once for each instruction set; which one runs is chosen when it is first used.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "chunk.h"

namespace revtune {

#define REVTUNE_LANES 4
namespace plain {
#include "variant.h"
}
#undef REVTUNE_LANES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REVTUNE_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define REVTUNE_LANES 8
namespace avx2 {
#include "variant.h"
}
#undef REVTUNE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define REVTUNE_LANES 16
namespace avx512 {
#include "variant.h"
}
#undef REVTUNE_LANES
#pragma GCC pop_options
#endif

// The widest instruction set that this processor has, or the one that REVTUNE_ISA names if it has it.
inline const Variant& variant() {
  static const Variant chosen = [] {
    const char* named = std::getenv("REVTUNE_ISA");
    const std::string wish = named ? named : "";
#if defined(REVTUNE_X86)
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && (wish.empty() || wish == "avx512")) return avx512::make_variant("avx512");
    if (has_avx2 && wish != "plain") return avx2::make_variant("avx2");
#endif
    return plain::make_variant("plain");
  }();
  return chosen;
}

}  // namespace revtune
