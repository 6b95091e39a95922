// Products with packed 8-bit weights. Included by each level.
//
// Layout: outputs in panels of 16, inputs in quads of 4; a panel is [quads][16 outputs][4 inputs] bytes, followed by
// the 16 int32 sums of its weights. So one 64-byte line holds 4 inputs of 16 outputs, a panel is read from front to
// back, and a lane of 4 bytes is what one multiply-add instruction of any level takes. Missing outputs and inputs are
// zeros.
//
// Loops: panels outermost and spread over threads, since the weights are read once whatever the number of rows; then
// tiles of 1 to 4 rows, which share each loaded weight in registers; innermost the quads. An output is computed by
// one thread in one order, so it depends neither on the other rows nor on the number of threads.

constexpr int64_t kVecs = kPanel / kLanes;
constexpr int64_t kTile = 4;

// Activations of the rows that are done with a panel before the next panel is read: these rows and the panel stay in
// the second-level cache.
constexpr int64_t kRowBlockBytes = 256 * 1024;

// How far ahead of the arithmetic the weights are asked for. The processor's own prefetcher stops at each page.
constexpr int64_t kAheadBytes = 1024;

// Work, in multiplications, below which waking threads costs more than it saves.
constexpr int64_t kSerialWork = 200000;

static inline int64_t panel_bytes(int64_t inputs) { return (ceil_div(inputs, kQuad) + 1) * kPanel * kQuad; }

template <int R>
static inline void dot_int8(const int8_t* panel, const int8_t* x, int64_t width, int64_t quads, int32_t* totals) {
    I total[R][kVecs];
    for (int64_t r = 0; r < R; ++r) {
        for (int64_t v = 0; v < kVecs; ++v) total[r][v] = zero_int();
    }
    for (int64_t quad = 0; quad < quads; ++quad, panel += kPanel * kQuad) {
        prefetch(panel + kAheadBytes);
        I w[kVecs];
        for (int64_t v = 0; v < kVecs; ++v) w[v] = load_int(panel + v * kLanes * kQuad);
        for (int64_t r = 0; r < R; ++r) {
            const I bytes = broadcast_quad(x + r * width + quad * kQuad);
            for (int64_t v = 0; v < kVecs; ++v) total[r][v] = dot4(total[r][v], bytes, w[v]);
        }
    }
    for (int64_t r = 0; r < R; ++r) {
        for (int64_t v = 0; v < kVecs; ++v) store_int(totals + r * kPanel + v * kLanes, total[r][v]);
    }
}

// Activations in 8 bits, quantized row by row; the sum is exact, and the same at every level.
static void linear_w8a8(const Linear& a) {
    const int64_t quads = ceil_div(a.inputs, kQuad), width = round_up(a.inputs, 64);
    const int64_t row_block = round_up(ceil_div(kRowBlockBytes, width), kTile);
    const int64_t panels = ceil_div(a.outputs, kPanel), row_blocks = ceil_div(a.rows, row_block);
    const Scratch<int8_t> x(a.rows * width);
    const Scratch<float> x_scales(a.rows);
    int8_t* const x_bytes = x.get();
    float* const scales = x_scales.get();
#pragma omp parallel for num_threads(static_cast<int>(a.threads)) if (a.rows > 16)
    for (int64_t row = 0; row < a.rows; ++row) {
        const Scratch<float> numbers(a.inputs);
        read_numbers(a.x, row, 0, a.inputs, numbers.get());
        scales[row] = quantize(numbers.get(), a.inputs, kActivationOffset, x_bytes + row * width);
        std::memset(x_bytes + row * width + a.inputs, 0, static_cast<size_t>(width - a.inputs));
    }
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(a.threads)) \
    if (a.rows * a.inputs * a.outputs > kSerialWork)
    for (int64_t item = 0; item < row_blocks * panels; ++item) {
        const int64_t first_row = item / panels * row_block, panel = item % panels;
        const int64_t first = panel * kPanel, count = smaller(kPanel, a.outputs - first);
        const int8_t* const w = static_cast<const int8_t*>(a.weight) + panel * panel_bytes(a.inputs);
        int32_t sums[kPanel], totals[kTile * kPanel];
        std::memcpy(sums, w + quads * kPanel * kQuad, sizeof sums);
        const int64_t end = smaller(a.rows, first_row + row_block);
        for (int64_t row = first_row; row < end; row += kTile) {
            const int64_t tile = smaller(kTile, end - row);
            const int8_t* const bytes = x_bytes + row * width;
            switch (tile) {
                case 1: dot_int8<1>(w, bytes, width, quads, totals); break;
                case 2: dot_int8<2>(w, bytes, width, quads, totals); break;
                case 3: dot_int8<3>(w, bytes, width, quads, totals); break;
                default: dot_int8<4>(w, bytes, width, quads, totals); break;
            }
            for (int64_t r = 0; r < tile; ++r) {
                float y[kPanel];
                for (int64_t i = 0; i < count; ++i) {
                    const int32_t total = totals[r * kPanel + i] - kActivationOffset * sums[i];
                    y[i] = static_cast<float>(total) * (scales[row + r] * a.scales[first + i]);
                    if (a.bias != nullptr) y[i] += a.bias[first + i];
                }
                write_numbers(a.out, row + r, first, count, y);
            }
        }
    }
}

// Sums of one tile and panel that are not finished: two for each output, of even and of odd inputs, which keep the
// multiply-add units busy at one row.
using Sums = float[2][kTile][kPanel];

// R rows by V vectors of the quads of a panel, added to `sums`. The weights are widened in registers.
template <int R, int V>
static inline void add_int8(const int8_t* panel, const float* x, int64_t width, int64_t quads, int64_t first,
                            Sums& sums) {
    F even[R][V], odd[R][V];
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) even[r][v] = load(sums[0][r] + first + v * kLanes);
        for (int v = 0; v < V; ++v) odd[r][v] = load(sums[1][r] + first + v * kLanes);
    }
    panel += first * kQuad;
    for (int64_t quad = 0; quad < quads; ++quad, panel += kPanel * kQuad, x += kQuad) {
        prefetch(panel + kAheadBytes);
        for (int v = 0; v < V; ++v) {
            const I w = load_int(panel + v * kLanes * kQuad);
            const F w0 = byte_to_float<0>(w), w1 = byte_to_float<1>(w);
            for (int r = 0; r < R; ++r) even[r][v] = fma(broadcast(x[r * width]), w0, even[r][v]);
            for (int r = 0; r < R; ++r) odd[r][v] = fma(broadcast(x[r * width + 1]), w1, odd[r][v]);
            const F w2 = byte_to_float<2>(w), w3 = byte_to_float<3>(w);
            for (int r = 0; r < R; ++r) even[r][v] = fma(broadcast(x[r * width + 2]), w2, even[r][v]);
            for (int r = 0; r < R; ++r) odd[r][v] = fma(broadcast(x[r * width + 3]), w3, odd[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(sums[0][r] + first + v * kLanes, even[r][v]);
        for (int v = 0; v < V; ++v) store(sums[1][r] + first + v * kLanes, odd[r][v]);
    }
}

// Many rows: four of them by one vector of weights that were widened before, [inputs][16], for all tiles at once. The
// same sums in the same order as above.
static inline void add_widened(const float* w, const float* x, int64_t width, int64_t inputs, int64_t first,
                               Sums& sums) {
    F even[kTile], odd[kTile];
    for (int64_t r = 0; r < kTile; ++r) {
        even[r] = load(sums[0][r] + first);
        odd[r] = load(sums[1][r] + first);
    }
    for (int64_t i = 0; i < inputs; i += 2) {
        const F w0 = load(w + i * kPanel + first), w1 = load(w + (i + 1) * kPanel + first);
        for (int64_t r = 0; r < kTile; ++r) even[r] = fma(broadcast(x[r * width + i]), w0, even[r]);
        for (int64_t r = 0; r < kTile; ++r) odd[r] = fma(broadcast(x[r * width + i + 1]), w1, odd[r]);
    }
    for (int64_t r = 0; r < kTile; ++r) {
        store(sums[0][r] + first, even[r]);
        store(sums[1][r] + first, odd[r]);
    }
}

// `quads` of a panel as float32, [inputs][16].
static inline void widen_panel(const int8_t* panel, int64_t quads, float* w) {
    for (int64_t quad = 0; quad < quads; ++quad, panel += kPanel * kQuad, w += kQuad * kPanel) {
        for (int64_t v = 0; v < kPanel; v += kLanes) {
            const I bytes = load_int(panel + v * kQuad);
            store(w + v, byte_to_float<0>(bytes));
            store(w + v + kPanel, byte_to_float<1>(bytes));
            store(w + v + 2 * kPanel, byte_to_float<2>(bytes));
            store(w + v + 3 * kPanel, byte_to_float<3>(bytes));
        }
    }
}

// Quads of a panel that are widened at a time: 16 KiB, half of a first-level cache.
constexpr int64_t kWidenedQuads = 64;

// All tiles of rows over one panel. Three tiles and more pay for writing the widened weights down.
static void add_panel(const int8_t* panel, const float* x, int64_t width, int64_t rows, Sums* sums) {
    const int64_t quads = width / kQuad, tiles = ceil_div(rows, kTile);
    if (tiles > 2) {
        const Scratch<float> widened(kWidenedQuads * kQuad * kPanel);
        for (int64_t quad = 0; quad < quads; quad += kWidenedQuads) {
            const int64_t count = smaller(kWidenedQuads, quads - quad);
            widen_panel(panel + quad * kPanel * kQuad, count, widened.get());
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const float* const numbers = x + tile * kTile * width + quad * kQuad;
                for (int64_t first = 0; first < kPanel; first += kLanes) {
                    add_widened(widened.get(), numbers, width, count * kQuad, first, sums[tile]);
                }
            }
        }
        return;
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const float* const numbers = x + tile * kTile * width;
        switch (smaller(kTile, rows - tile * kTile)) {
            case 1: add_int8<1, kVecs>(panel, numbers, width, quads, 0, sums[tile]); break;
            case 2: add_int8<2, kVecs>(panel, numbers, width, quads, 0, sums[tile]); break;
            default:  // with one vector of outputs at a time four rows fill the registers; a third row brings a spare
                for (int64_t first = 0; first < kPanel; first += kLanes) {
                    add_int8<kTile, 1>(panel, numbers, width, quads, first, sums[tile]);
                }
        }
    }
}

// Activations stay float32.
static void linear_w8a16(const Linear& a) {
    const int64_t width = round_up(a.inputs, kQuad), panels = ceil_div(a.outputs, kPanel);
    const int64_t tiles = ceil_div(a.rows, kTile);
    const Scratch<float> x(tiles * kTile * width);
    read_rows(a.x, a.rows, a.inputs, width, x.get());
    std::memset(x.get() + a.rows * width, 0, static_cast<size_t>((tiles * kTile - a.rows) * width) * sizeof(float));
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(a.threads)) \
    if (a.rows * a.inputs * a.outputs > kSerialWork)
    for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = panel * kPanel, count = smaller(kPanel, a.outputs - first);
        const int8_t* const w = static_cast<const int8_t*>(a.weight) + panel * panel_bytes(a.inputs);
        const Scratch<Sums> sums(tiles);
        std::memset(sums.get(), 0, static_cast<size_t>(tiles) * sizeof(Sums));
        add_panel(w, x.get(), width, a.rows, sums.get());
        for (int64_t row = 0; row < a.rows; ++row) {
            const Sums& total = sums.get()[row / kTile];
            const int64_t r = row % kTile;
            float y[kPanel];
            for (int64_t i = 0; i < count; ++i) {
                y[i] = (total[0][r][i] + total[1][r][i]) * a.scales[first + i];
                if (a.bias != nullptr) y[i] += a.bias[first + i];
            }
            write_numbers(a.out, row, first, count, y);
        }
    }
}
