// The functions that Python calls: the choice of a level, packing of weights, and one entry for each kernel.
#include "kernels.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// In the order of `LEVELS` in model/native/library.py.
const Level* const kLevels[] = {
    &level_portable,
#if defined(__x86_64__)
    &level_avx2,
    &level_avx_vnni,
    &level_avx512_vnni,
#endif
};

constexpr int64_t kNumLevels = sizeof kLevels / sizeof *kLevels;

}  // namespace

EXPORT int64_t minicpmv_version() { return kVersion; }

// Whether this processor, and the operating system under it, can run a level.
EXPORT int64_t minicpmv_supports(int64_t level) {
    if (level < 0 || level >= kNumLevels) return 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (level == 1) return avx2;
    if (level == 2) return avx2 && __builtin_cpu_supports("avxvnni");
    if (level == 3) return avx2 && avx512 && __builtin_cpu_supports("avx512vnni");
#endif
    return 1;
}

// int8 [outputs, inputs] to the layout of linear_int8.h.
EXPORT void minicpmv_pack_int8(const int8_t* weight, int8_t* packed, int64_t outputs, int64_t inputs, int64_t threads) {
    const int64_t quads = ceil_div(inputs, kQuad), panels = ceil_div(outputs, kPanel);
#pragma omp parallel for num_threads(static_cast<int>(threads))
    for (int64_t panel = 0; panel < panels; ++panel) {
        int8_t* const to = packed + panel * (quads + 1) * kPanel * kQuad;
        std::memset(to, 0, static_cast<size_t>((quads + 1) * kPanel * kQuad));
        int32_t sums[kPanel] = {};
        for (int64_t i = 0; i < smaller(kPanel, outputs - panel * kPanel); ++i) {
            const int8_t* const from = weight + (panel * kPanel + i) * inputs;
            for (int64_t quad = 0; quad < quads; ++quad) {
                const int64_t count = smaller(kQuad, inputs - quad * kQuad);
                for (int64_t j = 0; j < count; ++j) {
                    const int8_t number = from[quad * kQuad + j];
                    to[(quad * kPanel + i) * kQuad + j] = number;
                    sums[i] += number;
                }
            }
        }
        std::memcpy(to + quads * kPanel * kQuad, sums, sizeof sums);
    }
}

// int8 [outputs, inputs] from -8 to 7 to the layout of linear_int4.h. `inputs` is a multiple of 128.
EXPORT void minicpmv_pack_int4(const int8_t* weight, uint32_t* packed, int64_t outputs, int64_t inputs,
                               int64_t threads) {
    const int64_t words = inputs / 8, panels = ceil_div(outputs, kPanel);
#pragma omp parallel for num_threads(static_cast<int>(threads))
    for (int64_t panel = 0; panel < panels; ++panel) {
        uint32_t* const to = packed + panel * words * kPanel;
        std::memset(to, 0, static_cast<size_t>(words * kPanel) * sizeof *to);
        for (int64_t i = 0; i < smaller(kPanel, outputs - panel * kPanel); ++i) {
            const int8_t* const from = weight + (panel * kPanel + i) * inputs;
            for (int64_t input = 0; input < inputs; ++input) {
                const uint32_t nibble = static_cast<uint32_t>(from[input]) & 15;
                to[input / 8 * kPanel + i] |= nibble << (4 * (input % 8));
            }
        }
    }
}

EXPORT void minicpmv_linear_w8a8(int64_t level, const Linear* a) { kLevels[level]->linear_w8a8(*a); }
EXPORT void minicpmv_linear_w8a16(int64_t level, const Linear* a) { kLevels[level]->linear_w8a16(*a); }
EXPORT void minicpmv_linear_w4a16(int64_t level, const Linear* a) { kLevels[level]->linear_w4a16(*a); }
EXPORT void minicpmv_linear_bf16(int64_t level, const Linear* a) { kLevels[level]->linear_bf16(*a); }
EXPORT void minicpmv_attention(int64_t level, const Attention* a) { kLevels[level]->attention(*a); }
EXPORT void minicpmv_store(int64_t level, const Store* a) { kLevels[level]->store(*a); }
EXPORT void minicpmv_rms_norm(int64_t level, const Rows* x, const Rows* out, const void* weight, int64_t rows,
                              int64_t width, float eps) {
    kLevels[level]->rms_norm(*x, *out, weight, rows, width, eps);
}
EXPORT void minicpmv_silu_mul(int64_t level, const Rows* gate_up, const Rows* out, int64_t rows, int64_t width,
                              int64_t threads) {
    kLevels[level]->silu_mul(*gate_up, *out, rows, width, threads);
}
EXPORT void minicpmv_rotate(int64_t level, const Rows* x, const Rows* out, const float* cos, const float* sin,
                            int64_t rows, int64_t heads, int64_t size) {
    kLevels[level]->rotate(*x, *out, cos, sin, rows, heads, size);
}
