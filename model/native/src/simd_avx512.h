// Primitives of AVX-512 (F, BW) with VNNI: sixteen lanes.

constexpr int64_t kLanes = 16;
constexpr int kActivationOffset = 128;

using F = __m512;
using I = __m512i;

static inline F broadcast(float x) { return _mm512_set1_ps(x); }
static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline F load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline F load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline F power_of_two(F n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
static inline float sum(F a) { return _mm512_reduce_add_ps(a); }

static inline I zero_int() { return _mm512_setzero_si512(); }
static inline I load_int(const void* p) { return _mm512_loadu_si512(p); }
static inline void store_int(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
static inline I broadcast_quad(const int8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof quad);
    return _mm512_set1_epi32(quad);
}
static inline I dot4(I total, I x, I w) { return _mm512_dpbusd_epi32(total, x, w); }
// Byte `J` of each lane, with its sign, as a float.
template <int J>
static inline F byte_to_float(I w) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(w, 24 - 8 * J), 24));
}
// Nibble `J` of each lane, with its sign, as a float.
template <int J>
static inline F nibble_to_float(I w) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(w, 28 - 4 * J), 28));
}
static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
