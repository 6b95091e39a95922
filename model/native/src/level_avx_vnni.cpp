// The kernels for AVX2 with FMA and AVX-VNNI.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// For this file alone, and after what it includes from outside: the rest must run on any processor.
#pragma GCC target("avx2,fma,avxvnni")

namespace avx_vnni {
#define AVX_VNNI 1
#include "simd_avx2.h"
#include "level.h"
}  // namespace avx_vnni

const Level level_avx_vnni = avx_vnni::level;
#endif
