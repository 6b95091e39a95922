// The kernels for any processor.
#include "kernels.h"

namespace portable {
#include "simd_portable.h"
#include "level.h"
}  // namespace portable

const Level level_portable = portable::level;
