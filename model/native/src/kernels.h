// What the levels share: the kinds of numbers, the table of functions that each level fills, and scratch memory.
//
// A level is one set of processor instructions. Each level_*.cpp compiles the same kernels (rows.h, linear_*.h,
// attention.h, fused.h) in a namespace of its own over the primitives of one simd_*.h; api.cpp chooses one when it is
// called. Nothing here or there depends on Python or torch: plain pointers and counts come in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

// Raised whenever a function, a struct or a packed layout changes; model/native/library.py asks for its own.
constexpr int64_t kVersion = 1;

// Numbers that Python names by these codes.
enum Kind : int64_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2 };

// Outputs of a panel of packed weights, and inputs of a quad; see linear_int8.h.
constexpr int64_t kPanel = 16;
constexpr int64_t kQuad = 4;

// Inputs that share a scale in int4 weights.
constexpr int64_t kGroup = 128;

// A matrix of rows that lie `stride` numbers apart, in float32 or bfloat16.
struct Rows {
    void* data;
    int64_t kind;
    int64_t stride;
};

// y = x w + bias for every level's linear functions. Mirrored by model/native/structs.py.
struct Linear {
    Rows x;               // [rows, inputs]
    Rows out;             // [rows, outputs]
    const void* weight;   // packed, or bfloat16 [outputs, inputs]
    const float* scales;  // [outputs]; int4: [panels, groups, 16]; none for bfloat16
    const float* bias;    // [outputs] or null
    int64_t rows, inputs, outputs;
    int64_t threads;
};

// Blocks of keys and values, [heads, blocks, block_tokens, size] each. Mirrored by model/native/structs.py.
struct Pools {
    void* keys;
    void* values;
    float* key_scales;  // [heads, blocks, block_tokens] for int8, else null
    float* value_scales;
    int64_t kind;
    int64_t heads, blocks, block_tokens, size;
};

struct Attention {
    Rows q;    // [tokens, query heads * size]
    Rows out;  // likewise
    Pools pools;
    const int32_t* block_table;   // [sequences, table_width]
    const int32_t* first_tokens;  // [sequences + 1]: where each sequence's new tokens begin
    const int32_t* num_keys;      // [sequences]: tokens in the cache, the new ones included
    int64_t table_width, sequences, query_heads;
    int64_t threads;
    float scale;
};

struct Store {
    Rows keys;    // [tokens, heads * size]
    Rows values;  // likewise
    Pools pools;
    const int64_t* slots;  // [tokens]: block id * block_tokens + index in the block
    int64_t tokens;
    int64_t threads;
};

struct Level {
    void (*linear_w8a8)(const Linear&);
    void (*linear_w8a16)(const Linear&);
    void (*linear_w4a16)(const Linear&);
    void (*linear_bf16)(const Linear&);
    void (*attention)(const Attention&);
    void (*store)(const Store&);
    void (*rms_norm)(const Rows& x, const Rows& out, const void* weight, int64_t rows, int64_t width, float eps);
    void (*silu_mul)(const Rows& gate_up, const Rows& out, int64_t rows, int64_t width, int64_t threads);
    void (*rotate)(const Rows& x, const Rows& out, const float* cos, const float* sin, int64_t rows, int64_t heads,
                   int64_t size);
};

extern const Level level_portable;
#if defined(__x86_64__)
extern const Level level_avx2;
extern const Level level_avx_vnni;
extern const Level level_avx512_vnni;
#endif

// Memory for one call, aligned to a cache line. Not cleared. Running out of it ends the process: a kernel has nobody
// to tell, and what it asks for is small beside the tensors it was given.
template <typename T>
class Scratch {
  public:
    explicit Scratch(int64_t count)
        : data_(static_cast<T*>(std::aligned_alloc(64, (static_cast<size_t>(count) * sizeof(T) / 64 + 1) * 64))) {
        if (data_ == nullptr) std::abort();
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* get() const { return data_; }

  private:
    T* data_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// To the nearest, ties to even, as torch rounds.
inline uint16_t float_to_bf16(float value) {
    if (std::isnan(value)) return 0x7FC0;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline void write_number(void* data, int64_t kind, int64_t index, float value) {
    if (kind == kBfloat16) {
        static_cast<uint16_t*>(data)[index] = float_to_bf16(value);
    } else {
        static_cast<float*>(data)[index] = value;
    }
}
