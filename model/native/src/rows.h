// Rows of float32 or bfloat16 as float32 and back, and the exponential. Included by each level.

static inline void read_numbers(const Rows& x, int64_t row, int64_t first, int64_t count, float* to) {
    const int64_t at = row * x.stride + first;
    if (x.kind == kBfloat16) {
        const uint16_t* from = static_cast<const uint16_t*>(x.data) + at;
        for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_float(from[i]);
    } else {
        std::memcpy(to, static_cast<const float*>(x.data) + at, static_cast<size_t>(count) * sizeof(float));
    }
}

static inline void write_numbers(const Rows& x, int64_t row, int64_t first, int64_t count, const float* from) {
    const int64_t at = row * x.stride + first;
    if (x.kind == kBfloat16) {
        uint16_t* to = static_cast<uint16_t*>(x.data) + at;
        for (int64_t i = 0; i < count; ++i) to[i] = float_to_bf16(from[i]);
    } else {
        std::memcpy(static_cast<float*>(x.data) + at, from, static_cast<size_t>(count) * sizeof(float));
    }
}

// All rows as float32, each filled up with zeros to `width` numbers.
static void read_rows(const Rows& x, int64_t rows, int64_t count, int64_t width, float* to) {
    for (int64_t row = 0; row < rows; ++row) {
        read_numbers(x, row, 0, count, to + row * width);
        std::memset(to + row * width + count, 0, static_cast<size_t>(width - count) * sizeof(float));
    }
}

// Bytes with one scale: scale = max |x| / 127, byte = round(x / scale) + offset, ties to even: the same numbers as
// model/nn/quant.py. A row with an infinity or a NaN gets the scale NaN, so that what is made of it shows that.
static float quantize(const float* x, int64_t count, int offset, int8_t* bytes) {
    uint32_t largest = 0;  // of the bits without the sign, which order like the numbers, NaN above all
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= 0x7F800000) {
        std::memset(bytes, 0, static_cast<size_t>(count));
        return std::numeric_limits<float>::quiet_NaN();
    }
    float peak;
    std::memcpy(&peak, &largest, sizeof peak);
    const float scale = peak / 127.0f, tiny = std::numeric_limits<float>::min();
    const float divisor = scale > tiny ? scale : tiny;  // zeros stay zeros
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    for (int64_t i = 0; i < count; ++i) {
        const float shifted = x[i] / divisor + kRound;
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        bytes[i] = static_cast<int8_t>(bits + offset);  // kRound's own low byte is zero
    }
    return scale;
}

// e^x within 2 units of the last place, for x in [-87, 88]; x is brought there, but NaN stays NaN. Source: x = n ln 2
// + r with |r| <= ln(2) / 2, e^r by its Taylor polynomial of degree 7 (remainder 6e-9), ln 2 in two parts (Cody and
// Waite).
static inline F exponential(F x) {
    // The second operand is what both instructions return when one is NaN.
    x = min(broadcast(88.0f), max(broadcast(-87.0f), x));
    const F n = round(mul(x, broadcast(1.44269504f)));
    F r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    F y = broadcast(1.0f / 5040);
    y = fma(y, r, broadcast(1.0f / 720));
    y = fma(y, r, broadcast(1.0f / 120));
    y = fma(y, r, broadcast(1.0f / 24));
    y = fma(y, r, broadcast(1.0f / 6));
    y = fma(y, r, broadcast(0.5f));
    y = fma(y, r, broadcast(1.0f));
    y = fma(y, r, broadcast(1.0f));
    return mul(y, power_of_two(n));
}
