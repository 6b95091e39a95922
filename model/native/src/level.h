// All kernels over the primitives included before, inside the namespace of a level.
// clang-format off: the order matters
#include "rows.h"
#include "linear_int8.h"
#include "linear_int4.h"
#include "linear_bf16.h"
#include "attention.h"
#include "fused.h"

constexpr Level level = {linear_w8a8, linear_w8a16, linear_w4a16, linear_bf16, attention, store_rows, rms_norm,
                         silu_mul, rotate};
