// The kernels for AVX-512 with VNNI.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// For this file alone, and after what it includes from outside: the rest must run on any processor.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // _mm512_undefined_ps() of GCC's own header: PR 105593
#pragma GCC target("avx512f,avx512bw,avx512vnni,avx2,fma")

namespace avx512_vnni {
#include "simd_avx512.h"
#include "level.h"
}  // namespace avx512_vnni

const Level level_avx512_vnni = avx512_vnni::level;
#endif
