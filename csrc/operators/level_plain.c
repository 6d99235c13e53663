/* The operators in the instructions that every processor of its kind has. */
#include "level.h"

#define PART 4
#define BLOCK 4
#define WIDTH 1
#define LEVEL(name) name##_plain
#include "vectors.h"

#include "activation.inc"

#include "attention.inc"

#include "norm.inc"

#include "finish.inc"

#include "linear.inc"

const cappy_level cappy_level_plain = {cappy_attend_plain, cappy_norm_rows_plain, cappy_linear_part_plain};
