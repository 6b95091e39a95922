// The kernels for AVX2 with FMA.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// For this file alone, and after what it includes from outside: the rest must run on any processor.
#pragma GCC target("avx2,fma")

namespace avx2 {
#include "simd_avx2.h"
#include "level.h"
}  // namespace avx2

const Level level_avx2 = avx2::level;
#endif
