// Products of a few rows with packed 4-bit weights. Included by each level.
//
// Layout: outputs in panels of 16, inputs in eights; a panel is [eights][16 outputs] words of 32 bits, each with 8
// inputs of one output, the first in the lowest 4 bits, from -8 to 7. Every 128 inputs of an output share a scale:
// [panels][groups][16] float32. Missing outputs are zeros. Loops as in linear_int8.h, with the groups between panel
// and words: a group's sum is taken in float32 and then scaled.

constexpr int64_t kEight = 8;

static inline int64_t panel_bytes_int4(int64_t inputs) { return inputs / kEight * kPanel * 4; }

template <int R, int J>
static inline void add_nibbles(I w, const float* x, int64_t width, F (*total)[2]) {
    const F numbers = nibble_to_float<J>(w);
    for (int r = 0; r < R; ++r) total[r][J % 2] = fma(broadcast(x[r * width + J]), numbers, total[r][J % 2]);
}

// R rows by one vector of a panel.
template <int R>
static inline void dot_int4(const uint8_t* panel, const float* scales, const float* x, int64_t width, int64_t groups,
                            float* totals) {
    F result[R];
    for (int r = 0; r < R; ++r) result[r] = broadcast(0.0f);
    for (int64_t group = 0; group < groups; ++group) {
        F total[R][2];  // even and odd inputs
        for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = broadcast(0.0f);
        for (int64_t i = 0; i < kGroup; i += kEight, x += kEight, panel += kPanel * 4) {
            prefetch(panel + kAheadBytes);
            const I w = load_int(panel);
            add_nibbles<R, 0>(w, x, width, total);
            add_nibbles<R, 1>(w, x, width, total);
            add_nibbles<R, 2>(w, x, width, total);
            add_nibbles<R, 3>(w, x, width, total);
            add_nibbles<R, 4>(w, x, width, total);
            add_nibbles<R, 5>(w, x, width, total);
            add_nibbles<R, 6>(w, x, width, total);
            add_nibbles<R, 7>(w, x, width, total);
        }
        const F scale = load(scales + group * kPanel);
        for (int r = 0; r < R; ++r) result[r] = fma(add(total[r][0], total[r][1]), scale, result[r]);
    }
    for (int r = 0; r < R; ++r) store(totals + r * kPanel, result[r]);
}

static void linear_w4a16(const Linear& a) {
    const int64_t panels = ceil_div(a.outputs, kPanel), groups = a.inputs / kGroup;
    const Scratch<float> x(a.rows * a.inputs);
    read_rows(a.x, a.rows, a.inputs, a.inputs, x.get());
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(a.threads)) \
    if (a.rows * a.inputs * a.outputs > kSerialWork)
    for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = panel * kPanel, count = smaller(kPanel, a.outputs - first);
        const uint8_t* const w = static_cast<const uint8_t*>(a.weight) + panel * panel_bytes_int4(a.inputs);
        const float* const scales = a.scales + panel * groups * kPanel;
        float y[kTile * kPanel];
        for (int64_t row = 0; row < a.rows; row += kTile) {
            const int64_t tile = smaller(kTile, a.rows - row);
            const float* const numbers = x.get() + row * a.inputs;
            for (int64_t v = 0; v < kPanel; v += kLanes) {
                switch (tile) {
                    case 1: dot_int4<1>(w + 4 * v, scales + v, numbers, a.inputs, groups, y + v); break;
                    case 2: dot_int4<2>(w + 4 * v, scales + v, numbers, a.inputs, groups, y + v); break;
                    case 3: dot_int4<3>(w + 4 * v, scales + v, numbers, a.inputs, groups, y + v); break;
                    default: dot_int4<4>(w + 4 * v, scales + v, numbers, a.inputs, groups, y + v); break;
                }
            }
            for (int64_t r = 0; r < tile; ++r) {
                float* const results = y + r * kPanel;
                for (int64_t i = 0; i < count && a.bias != nullptr; ++i) results[i] += a.bias[first + i];
                write_numbers(a.out, row + r, first, count, results);
            }
        }
    }
}
