// Primitives for any processor: sixteen lanes as a loop, which the compiler turns into what the target has.
//
// The shape is that of AVX-512 on purpose: the kernels that cannot be tried on every machine are the same code over
// these sixteen lanes, offset activations included. `dot4` adds, in each lane, four products of an activation byte
// (plus 128, so unsigned) and a weight byte.

constexpr int64_t kLanes = 16;
constexpr int kActivationOffset = 128;

struct F {
    float v[kLanes];
};
struct I {
    int32_t v[kLanes];
};

#define EACH for (int64_t i = 0; i < kLanes; ++i)

static inline F broadcast(float x) { F y; EACH y.v[i] = x; return y; }
static inline F load(const float* p) { F y; EACH y.v[i] = p[i]; return y; }
static inline F load_bf16(const uint16_t* p) { F y; EACH y.v[i] = bf16_to_float(p[i]); return y; }
static inline F load_int8(const int8_t* p) { F y; EACH y.v[i] = p[i]; return y; }
static inline void store(float* p, F x) { EACH p[i] = x.v[i]; }
static inline F add(F a, F b) { EACH a.v[i] += b.v[i]; return a; }
static inline F sub(F a, F b) { EACH a.v[i] -= b.v[i]; return a; }
static inline F mul(F a, F b) { EACH a.v[i] *= b.v[i]; return a; }
static inline F div(F a, F b) { EACH a.v[i] /= b.v[i]; return a; }
static inline F max(F a, F b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F min(F a, F b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F fma(F a, F b, F c) { EACH c.v[i] += a.v[i] * b.v[i]; return c; }
static inline F round(F a) { EACH a.v[i] = std::nearbyint(a.v[i]); return a; }
static inline F power_of_two(F n) { EACH n.v[i] = std::ldexp(1.0f, static_cast<int>(n.v[i])); return n; }
static inline float sum(F a) {
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
        for (int64_t i = 0; i < width; ++i) a.v[i] += a.v[i + width];
    }
    return a.v[0];
}

static inline I zero_int() { I y; EACH y.v[i] = 0; return y; }
static inline I load_int(const void* p) { I y; std::memcpy(y.v, p, sizeof y.v); return y; }
static inline void store_int(int32_t* p, I x) { EACH p[i] = x.v[i]; }
static inline I broadcast_quad(const int8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof quad);
    I y;
    EACH y.v[i] = quad;
    return y;
}
static inline I dot4(I total, I x, I w) {
    uint8_t a[4 * kLanes];
    int8_t b[4 * kLanes];
    std::memcpy(a, x.v, sizeof a);
    std::memcpy(b, w.v, sizeof b);
    EACH {
        for (int64_t j = 0; j < 4; ++j) total.v[i] += a[4 * i + j] * b[4 * i + j];
    }
    return total;
}
// Byte `J` of each lane, with its sign, as a float.
template <int J>
static inline F byte_to_float(I w) {
    F y;
    EACH y.v[i] = static_cast<float>(static_cast<int8_t>(static_cast<uint32_t>(w.v[i]) >> (8 * J)));
    return y;
}
// Nibble `J` of each lane, with its sign, as a float.
template <int J>
static inline F nibble_to_float(I w) {
    F y;
    EACH {
        const uint32_t nibble = (static_cast<uint32_t>(w.v[i]) >> (4 * J)) & 15;
        y.v[i] = static_cast<float>(static_cast<int>(nibble ^ 8) - 8);
    }
    return y;
}
static inline void prefetch(const void* p) { __builtin_prefetch(p); }

#undef EACH
