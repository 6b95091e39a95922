// Small steps between the products, one pass over memory each. Included by each level.

// Keys and values of new tokens to their slots, quantized by token and head where the pools hold int8.
static void store_pool(const Rows& from, void* pool, float* scales, const Pools& p, int64_t slot, int64_t token,
                       float* numbers) {
    for (int64_t head = 0; head < p.heads; ++head) {
        const int64_t cell = head * p.blocks * p.block_tokens + slot;
        read_numbers(from, token, head * p.size, p.size, numbers);
        if (p.kind == kInt8) {
            scales[cell] = quantize(numbers, p.size, 0, static_cast<int8_t*>(pool) + cell * p.size);
        } else {
            write_numbers(Rows{pool, p.kind, p.size}, cell, 0, p.size, numbers);
        }
    }
}

static void store_rows(const Store& a) {
#pragma omp parallel for num_threads(static_cast<int>(a.threads)) \
    if (a.tokens * a.pools.heads * a.pools.size > kSerialWork)
    for (int64_t token = 0; token < a.tokens; ++token) {
        const Scratch<float> numbers(a.pools.size);
        store_pool(a.keys, a.pools.keys, a.pools.key_scales, a.pools, a.slots[token], token, numbers.get());
        store_pool(a.values, a.pools.values, a.pools.value_scales, a.pools, a.slots[token], token, numbers.get());
    }
}

// Root-mean-square norm as the model defines it: in float32, rounded to the rows' kind, then times the weight.
static void rms_norm(const Rows& x, const Rows& out, const void* weight, int64_t rows, int64_t width, float eps) {
    const int64_t padded = round_up(width, kLanes);
    const Scratch<float> numbers(padded), weights(width);
    float* const row_numbers = numbers.get();
    read_numbers(Rows{const_cast<void*>(weight), x.kind, width}, 0, 0, width, weights.get());
    for (int64_t row = 0; row < rows; ++row) {
        read_numbers(x, row, 0, width, row_numbers);
        for (int64_t i = width; i < padded; ++i) row_numbers[i] = 0.0f;
        F total = broadcast(0.0f);
        for (int64_t i = 0; i < padded; i += kLanes) {
            const F part = load(row_numbers + i);
            total = fma(part, part, total);
        }
        const float scale = 1.0f / std::sqrt(sum(total) / static_cast<float>(width) + eps);
        for (int64_t i = 0; i < width; ++i) {
            const float scaled = row_numbers[i] * scale;
            row_numbers[i] = (x.kind == kBfloat16 ? bf16_to_float(float_to_bf16(scaled)) : scaled) * weights.get()[i];
        }
        write_numbers(out, row, 0, width, row_numbers);
    }
}

// silu(gate) * up of rows [gate, up], `width` numbers each; silu is rounded to the rows' kind, as torch's is.
static void silu_mul(const Rows& gate_up, const Rows& out, int64_t rows, int64_t width, int64_t threads) {
    const int64_t padded = round_up(width, kLanes);
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (rows * width > kSerialWork / 4)
    for (int64_t row = 0; row < rows; ++row) {
        const Scratch<float> numbers(2 * padded);
        float* const gate = numbers.get();
        float* const up = gate + padded;
        read_numbers(gate_up, row, 0, width, gate);
        read_numbers(gate_up, row, width, width, up);
        for (int64_t i = width; i < padded; ++i) gate[i] = 0.0f;
        for (int64_t i = 0; i < padded; i += kLanes) {
            const F x = load(gate + i);
            const F one = broadcast(1.0f);
            store(gate + i, div(x, add(one, exponential(sub(broadcast(0.0f), x)))));
        }
        for (int64_t i = 0; i < width; ++i) {
            gate[i] = (gate_up.kind == kBfloat16 ? bf16_to_float(float_to_bf16(gate[i])) : gate[i]) * up[i];
        }
        write_numbers(out, row, 0, width, gate);
    }
}

// Each head turned by its token's angles, the two halves of a head being the two axes of each plane.
static void rotate(const Rows& x, const Rows& out, const float* cos, const float* sin, int64_t rows, int64_t heads,
                   int64_t size) {
    const int64_t half = size / 2;
    const Scratch<float> numbers(2 * size);
    float* const from = numbers.get();
    float* const to = from + size;
    for (int64_t row = 0; row < rows; ++row) {
        const float* const c = cos + row * half;
        const float* const s = sin + row * half;
        for (int64_t head = 0; head < heads; ++head) {
            read_numbers(x, row, head * size, size, from);
            for (int64_t i = 0; i < half; ++i) {
                to[i] = from[i] * c[i] - from[half + i] * s[i];
                to[half + i] = from[half + i] * c[i] + from[i] * s[i];
            }
            write_numbers(out, row, head * size, size, to);
        }
    }
}
