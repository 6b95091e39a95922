// Products of a few rows with bfloat16 weights as the checkpoint has them. Included by each level.
//
// Layout: [outputs][inputs], so the same tensor also serves torch's own product for many rows. Loops: groups of 12
// outputs, spread over threads; tiles of 1 to 4 rows; innermost the inputs, a vector of them at a time. Each loaded
// weight is widened once for all rows of a tile.

constexpr int64_t kOutputs = 12;

// R rows by N outputs. Each sum is over the inputs in steps of a vector, in one order for every R and N.
template <int R, int N>
static inline void dot_bf16(const uint16_t* const* w, const float* x, int64_t width, int64_t inputs, float* y) {
    F total[R][N];
    for (int r = 0; r < R; ++r) {
        for (int n = 0; n < N; ++n) total[r][n] = broadcast(0.0f);
    }
    int64_t i = 0;
    for (; i + kLanes <= inputs; i += kLanes) {
        F numbers[N];
        for (int n = 0; n < N; ++n) {
            prefetch(w[n] + i + kAheadBytes / 2);
            numbers[n] = load_bf16(w[n] + i);
        }
        for (int r = 0; r < R; ++r) {
            const F row = load(x + r * width + i);
            for (int n = 0; n < N; ++n) total[r][n] = fma(row, numbers[n], total[r][n]);
        }
    }
    if (i < inputs) {  // x is filled up with zeros; the weight's next row must not be read for them, it may be NaN
        for (int n = 0; n < N; ++n) {
            uint16_t last[kLanes] = {};
            std::memcpy(last, w[n] + i, static_cast<size_t>(inputs - i) * sizeof *last);
            const F numbers = load_bf16(last);
            for (int r = 0; r < R; ++r) total[r][n] = fma(load(x + r * width + i), numbers, total[r][n]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int n = 0; n < N; ++n) y[r * kOutputs + n] = sum(total[r][n]);
    }
}

static void linear_bf16(const Linear& a) {
    const int64_t width = round_up(a.inputs, kLanes), groups = ceil_div(a.outputs, kOutputs);
    const Scratch<float> x(a.rows * width);
    read_rows(a.x, a.rows, a.inputs, width, x.get());
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(a.threads)) \
    if (a.rows * a.inputs * a.outputs > kSerialWork)
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t first = group * kOutputs, count = smaller(kOutputs, a.outputs - first);
        const uint16_t* w[kOutputs];
        for (int64_t n = 0; n < kOutputs; ++n) {  // past the end the last output again, which is then not written
            w[n] = static_cast<const uint16_t*>(a.weight) + smaller(first + n, a.outputs - 1) * a.inputs;
        }
        for (int64_t row = 0; row < a.rows; row += kTile) {
            const int64_t tile = smaller(kTile, a.rows - row);
            const float* const numbers = x.get() + row * width;
            float y[kTile * kOutputs];
            for (int n = 0; n < kOutputs; n += tile <= 2 ? 4 : 3) {  // as many outputs as the registers hold
                switch (tile) {
                    case 1: dot_bf16<1, 4>(w + n, numbers, width, a.inputs, y + n); break;
                    case 2: dot_bf16<2, 4>(w + n, numbers, width, a.inputs, y + n); break;
                    case 3: dot_bf16<3, 3>(w + n, numbers, width, a.inputs, y + n); break;
                    default: dot_bf16<4, 3>(w + n, numbers, width, a.inputs, y + n); break;
                }
            }
            for (int64_t r = 0; r < tile; ++r) {
                float* const results = y + r * kOutputs;
                for (int64_t n = 0; n < count && a.bias != nullptr; ++n) results[n] += a.bias[first + n];
                write_numbers(a.out, row + r, first, count, results);
            }
        }
    }
}
