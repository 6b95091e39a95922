// Attention of new tokens to their sequences' keys and values where they lie in the block pools. Included by each
// level.
//
// Layout: [heads][blocks][tokens of a block][size], so that a head's part of a block is one contiguous piece of keys
// and one of values; the numbers are float32, bfloat16, or int8 with a float32 scale a token and head. The new tokens'
// own keys and values are in the pools already. Cells past a sequence's last key are never read.
//
// Loops: the keys of a sequence are cut into chunks of 512, counted from the first. (Sequence, chunk, head) is one
// item of work, spread over threads; inside it the queries of that head (new tokens times the query heads that share
// it) go in tiles of 1 to 4, which share each loaded key and value. For a tile: all scores of the chunk, their
// exponentials, then the weighted values. Sequences longer than one chunk leave partial results, joined afterwards in
// the order of the chunks. As the cuts depend on the key's position alone, a token's result depends neither on the
// other sequences, nor on how many tokens are new, nor on the number of threads.

constexpr int64_t kChunk = 512;

// Blocks asked for ahead of the arithmetic: they lie anywhere, which no prefetcher of the processor can guess. A line
// is asked for with each key and value that is used, since a burst of requests would hold up the loads behind it.
constexpr int64_t kBlocksAhead = 4;

static inline F load_as_float(const float* p) { return load(p); }
static inline F load_as_float(const uint16_t* p) { return load_bf16(p); }
static inline F load_as_float(const int8_t* p) { return load_int8(p); }

// One sequence's part of the work: which keys, and where unfinished results go.
struct Part {
    int64_t sequence;
    int64_t first_key;
    float* partial;  // [new tokens * query heads][size + 2]: values, sum and peak; null: the only part
};

// One head's pieces of the blocks of a sequence.
template <typename T>
struct Pieces {
    const T* pool;
    const float* scales;
    const int32_t* blocks;
    int64_t piece;  // numbers in a piece
    int64_t block_tokens;

    const T* at(int64_t index) const { return pool + blocks[index] * piece; }
    const float* scales_at(int64_t index) const { return scales + blocks[index] * block_tokens; }
};

// The keys [first, end) of a sequence, their values, and how the first loop over them asks for what comes next: the
// blocks ahead among the keys, then the first ones of the values. The second loop ends with the values.
template <typename T>
struct Span {
    Pieces<T> keys, values;
    int64_t first, end, size;

    const T* ahead(int64_t block, bool is_keys) const {
        const int64_t tokens = keys.block_tokens, next = block + kBlocksAhead;
        if (next * tokens < end) return (is_keys ? keys : values).at(next);
        const int64_t wrapped = next - ceil_div(end, tokens) + first / tokens;
        return is_keys && wrapped * tokens < end ? values.at(wrapped) : nullptr;
    }
};

template <typename T>
static inline void prefetch_row(const T* row, int64_t size) {
    for (int64_t i = 0; i < size; i += 64 / static_cast<int64_t>(sizeof(T))) prefetch(row + i);
}

// scores[r][k] of the keys of the span. `SIZE` is the size, known when compiled, or 0.
template <int R, int SIZE, typename T>
static void score_keys(const Span<T>& span, const float* q, float* scores) {
    const int64_t size = SIZE != 0 ? SIZE : span.size;
    const Pieces<T>& keys = span.keys;
    for (int64_t key = span.first; key < span.end;) {
        const int64_t block = key / keys.block_tokens, count = smaller(keys.block_tokens, span.end - key);
        const T* const piece = keys.at(block);
        const T* const ahead = span.ahead(block, true);
        const float* const scales = keys.scales == nullptr ? nullptr : keys.scales_at(block);
        for (int64_t k = 0; k < count; ++k) {
            if (ahead != nullptr) prefetch_row(ahead + k * size, size);
            F total[R];
            for (int r = 0; r < R; ++r) total[r] = broadcast(0.0f);
            for (int64_t i = 0; i < size; i += kLanes) {
                const F numbers = load_as_float(piece + k * size + i);
                for (int r = 0; r < R; ++r) total[r] = fma(load(q + r * size + i), numbers, total[r]);
            }
            for (int r = 0; r < R; ++r) scores[r * kChunk + key - span.first + k] = sum(total[r]);
        }
        for (int64_t k = 0; k < count && scales != nullptr; ++k) {
            for (int r = 0; r < R; ++r) scores[r * kChunk + key - span.first + k] *= scales[k];
        }
        key += count;
    }
}

// The scores of `count` keys, turned in place into exp(score - peak). `sum_peak` gets their sum and the peak.
static void exponentiate(float* scores, int64_t count, float* sum_peak) {
    const float nothing = -std::numeric_limits<float>::infinity();
    const int64_t padded = round_up(count, kLanes);
    for (int64_t k = count; k < padded; ++k) scores[k] = nothing;
    float peak = nothing;
    for (int64_t k = 0; k < count; ++k) peak = scores[k] > peak ? scores[k] : peak;
    F total = broadcast(0.0f);
    for (int64_t k = 0; k < padded; k += kLanes) {
        const F weights = exponential(sub(load(scores + k), broadcast(peak)));
        store(scores + k, weights);
        total = add(total, weights);  // e^-87 of the padding is below the sum's last place: some weight is 1
    }
    sum_peak[0] = count == 0 ? 0.0f : sum(total);
    sum_peak[1] = peak;
}

// mixed[r] += weights[r][k] * values[k] over the span, V vectors of a head at a time.
template <int R, int V, typename T>
static void mix_values(const Span<T>& span, const float* weights, float* mixed) {
    const int64_t size = span.size;
    for (int64_t key = span.first; key < span.end;) {
        const int64_t tokens = span.values.block_tokens, block = key / tokens, count = smaller(tokens, span.end - key);
        const T* const piece = span.values.at(block);
        const T* const ahead = span.ahead(block, false);
        for (int64_t i = 0; i < size; i += V * kLanes) {
            F total[R][V];
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < V; ++v) total[r][v] = load(mixed + r * size + i + v * kLanes);
            }
            for (int64_t k = 0; k < count; ++k) {
                if (ahead != nullptr && i == 0) prefetch_row(ahead + k * size, size);
                for (int v = 0; v < V; ++v) {
                    const F numbers = load_as_float(piece + k * size + i + v * kLanes);
                    for (int r = 0; r < R; ++r) {
                        total[r][v] = fma(broadcast(weights[r * kChunk + key - span.first + k]), numbers, total[r][v]);
                    }
                }
            }
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < V; ++v) store(mixed + r * size + i + v * kLanes, total[r][v]);
            }
        }
        key += count;
    }
}

// A tile of queries over the keys of one chunk.
//   q, mixed: [R][size], q already times the softmax scale; visible: how many of the sequence's keys each row sees.
template <int R, typename T>
static void attend_tile(Span<T> span, const float* q, const int64_t* visible, float* scores, float* mixed,
                        float (*sum_peak)[2]) {
    const Pieces<T>& values = span.values;
    span.end = smaller(visible[R - 1], span.first + kChunk);  // a later row sees at least as much
    if (span.size == 64) {
        score_keys<R, 64>(span, q, scores);
    } else {
        score_keys<R, 0>(span, q, scores);
    }
    for (int r = 0; r < R; ++r) {
        float* const row = scores + r * kChunk;
        const int64_t seen = smaller(visible[r], span.end) - span.first;
        const int64_t count = seen < 0 ? 0 : seen;
        exponentiate(row, count, sum_peak[r]);
        for (int64_t k = count; k < span.end - span.first; ++k) row[k] = 0.0f;
        for (int64_t k = 0; k < count && values.scales != nullptr; k += values.block_tokens) {
            const float* const scales = values.scales_at((span.first + k) / values.block_tokens);
            for (int64_t i = 0; i < smaller(values.block_tokens, count - k); ++i) row[k + i] *= scales[i];
        }
    }
    std::memset(mixed, 0, static_cast<size_t>(R * span.size) * sizeof(float));
    constexpr int kAll = R == 1 ? 4 * kVecs : kVecs;  // one row leaves registers for 64 numbers of a head
    if (span.size % (kAll * kLanes) == 0) {
        mix_values<R, kAll>(span, scores, mixed);
    } else {
        mix_values<R, kVecs>(span, scores, mixed);
    }
}

static void finish_row(const Attention& a, int64_t token, int64_t head, float* mixed, float total) {
    for (int64_t i = 0; i < a.pools.size; ++i) mixed[i] /= total;
    write_numbers(a.out, token, head * a.pools.size, a.pools.size, mixed);
}

template <typename T>
static void attend_item(const Attention& a, const Part& part, int64_t head, float* q, float* scores, float* mixed) {
    const Pools& p = a.pools;
    const int64_t first_token = a.first_tokens[part.sequence];
    const int64_t num_new = a.first_tokens[part.sequence + 1] - first_token, num_keys = a.num_keys[part.sequence];
    const int64_t share = a.query_heads / p.heads, piece = p.block_tokens * p.size;
    const int64_t pool_start = head * p.blocks;
    const int32_t* const blocks = a.block_table + part.sequence * a.table_width;
    const auto pieces = [&](const void* pool, const float* scales) {
        return Pieces<T>{static_cast<const T*>(pool) + pool_start * piece,
                         scales == nullptr ? nullptr : scales + pool_start * p.block_tokens,
                         blocks, piece, p.block_tokens};
    };
    const Span<T> span = {pieces(p.keys, p.key_scales), pieces(p.values, p.value_scales), part.first_key,
                          part.first_key, p.size};
    for (int64_t row = 0; row < num_new * share; row += kTile) {
        const int64_t tile = smaller(kTile, num_new * share - row);
        int64_t visible[kTile] = {};
        float sum_peak[kTile][2];
        for (int64_t r = 0; r < tile; ++r) {
            const int64_t token = (row + r) / share, query_head = head * share + (row + r) % share;
            visible[r] = num_keys - num_new + token + 1;
            read_numbers(a.q, first_token + token, query_head * p.size, p.size, q + r * p.size);
            for (int64_t i = 0; i < p.size; ++i) q[r * p.size + i] *= a.scale;
        }
        switch (visible[tile - 1] <= part.first_key ? 0 : tile) {
            case 0:  // all of the chunk comes after these tokens
                std::memset(mixed, 0, static_cast<size_t>(tile * p.size) * sizeof(float));
                for (int64_t r = 0; r < tile; ++r) exponentiate(scores, 0, sum_peak[r]);
                break;
            case 1: attend_tile<1>(span, q, visible, scores, mixed, sum_peak); break;
            case 2: attend_tile<2>(span, q, visible, scores, mixed, sum_peak); break;
            case 3: attend_tile<3>(span, q, visible, scores, mixed, sum_peak); break;
            default: attend_tile<4>(span, q, visible, scores, mixed, sum_peak); break;
        }
        for (int64_t r = 0; r < tile; ++r) {
            const int64_t token = (row + r) / share, query_head = head * share + (row + r) % share;
            if (part.partial == nullptr) {
                finish_row(a, first_token + token, query_head, mixed + r * p.size, sum_peak[r][0]);
                continue;
            }
            float* const to = part.partial + (token * a.query_heads + query_head) * (p.size + 2);
            std::memcpy(to, mixed + r * p.size, static_cast<size_t>(p.size) * sizeof(float));
            std::memcpy(to + p.size, sum_peak[r], sizeof sum_peak[r]);
        }
    }
}

// The partial results of one row, `parts` of them `stride` numbers apart, joined in the first.
static float join_row(float* partial, int64_t parts, int64_t stride, int64_t size) {
    float peak = -std::numeric_limits<float>::infinity(), total = 0.0f;
    for (int64_t c = 0; c < parts; ++c) {
        const float other = partial[c * stride + size + 1];
        peak = other > peak ? other : peak;
    }
    for (int64_t c = 0; c < parts; ++c) {
        float* const from = partial + c * stride;
        const float factor = from[size] == 0.0f ? 0.0f : std::exp(from[size + 1] - peak);
        total += from[size] * factor;
        for (int64_t i = 0; i < size; ++i) partial[i] = (c == 0 ? 0.0f : partial[i]) + from[i] * factor;
    }
    return total;
}

static void attention(const Attention& a) {
    const int64_t size = a.pools.size, row_numbers = size + 2;
    int64_t num_parts = 0, partial_rows = 0, work = 0;
    for (int64_t s = 0; s < a.sequences; ++s) {
        const int64_t parts = ceil_div(a.num_keys[s], kChunk), num_new = a.first_tokens[s + 1] - a.first_tokens[s];
        num_parts += parts;
        partial_rows += parts == 1 ? 0 : parts * num_new * a.query_heads;
        work += num_new * a.query_heads * a.num_keys[s] * size;
    }
    const Scratch<Part> part_list(num_parts);
    const Scratch<float> partials(partial_rows * row_numbers);
    Part* const parts = part_list.get();
    float* partial = partials.get();
    for (int64_t s = 0, part = 0; s < a.sequences; ++s) {
        const int64_t stride = (a.first_tokens[s + 1] - a.first_tokens[s]) * a.query_heads * row_numbers;
        const bool is_whole = a.num_keys[s] <= kChunk;
        for (int64_t key = 0; key < a.num_keys[s]; key += kChunk, ++part) {
            parts[part] = {s, key, is_whole ? nullptr : partial};
            partial += is_whole ? 0 : stride;
        }
    }
#pragma omp parallel num_threads(static_cast<int>(a.threads)) if (work > kSerialWork)
    {
        const Scratch<float> q(kTile * size), scores(kTile * kChunk), mixed(kTile * size);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < num_parts * a.pools.heads; ++item) {
            const Part& part = parts[item / a.pools.heads];
            const int64_t head = item % a.pools.heads;
            switch (a.pools.kind) {
                case kInt8: attend_item<int8_t>(a, part, head, q.get(), scores.get(), mixed.get()); break;
                case kBfloat16: attend_item<uint16_t>(a, part, head, q.get(), scores.get(), mixed.get()); break;
                default: attend_item<float>(a, part, head, q.get(), scores.get(), mixed.get()); break;
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < num_parts; ++part) {
            if (parts[part].first_key != 0 || parts[part].partial == nullptr) continue;
            const int64_t first_token = a.first_tokens[parts[part].sequence];
            const int64_t rows = (a.first_tokens[parts[part].sequence + 1] - first_token) * a.query_heads;
            for (int64_t row = 0; row < rows; ++row) {
                float* const joined = parts[part].partial + row * row_numbers;
                const int64_t chunks = ceil_div(a.num_keys[parts[part].sequence], kChunk);
                const float total = join_row(joined, chunks, rows * row_numbers, size);
                finish_row(a, first_token + row / a.query_heads, row % a.query_heads, joined, total);
            }
        }
    }
}
