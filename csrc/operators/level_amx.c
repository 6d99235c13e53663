/* Products of 8-bit matrices by AMX: 16 rows and 16 columns of sums in a tile, 64 products for each in an instruction.
 */
#define _GNU_SOURCE
#include "level.h"

#ifdef CAPPY_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-int8")
#endif

#define SIDE 16 /* of a tile of sums */
#define STEP 64 /* of the inner dimension, in an instruction */

bool cappy_has_tiles(void)
{
    /* Of cpuid's leaf 7; and what asks the kernel for the tiles' memory, once in a process. */
    enum { AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, REQUEST = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & AMX_TILE && d & AMX_INT8 &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

/* Tiles 0 to 3 are for sums of two times two tiles, 4 and 5 for codes, 6 and 7 for weights. */
static void begin(size_t rows)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        const bool is_second = i == 2 || i == 3 || i == 5, has_rows = i < 6;
        const size_t left = is_second && rows > SIDE ? rows - SIDE : rows;
        tiles.row_bytes[i] = STEP;
        tiles.rows[i] = (uint8_t)(has_rows && left < SIDE ? left : SIDE);
    }
    /* GCC takes it that a configuration is read to its first bytes alone. */
    __asm__ volatile("" : : "r"(&tiles) : "memory");
    _tile_loadconfig(&tiles);
}

static void end(void) { _tile_release(); }

/* Two rows of tiles or one, by two columns or one. */
static inline __attribute__((always_inline)) void multiply_tiles(const cappy_product *task, size_t tile, bool two_rows,
                                                                 bool two_columns)
{
    const uint8_t *codes = task->codes, *more_codes = codes + SIDE * task->code_stride;
    const int8_t *weight = task->weight + tile * task->tile_stride, *more_weight = weight + task->tile_stride;
    int32_t *sums = task->sums + tile * SIDE, *more_sums = sums + SIDE * task->sum_stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t at = 0; at < task->inner; at += STEP) {
        _tile_loadd(4, codes + at, task->code_stride);
        _tile_loadd(6, weight + at * SIDE, STEP);
        _tile_dpbusd(0, 4, 6);
        if (two_columns) {
            _tile_loadd(7, more_weight + at * SIDE, STEP);
            _tile_dpbusd(1, 4, 7);
        }
        if (two_rows) {
            _tile_loadd(5, more_codes + at, task->code_stride);
            _tile_dpbusd(2, 5, 6);
            if (two_columns)
                _tile_dpbusd(3, 5, 7);
        }
    }
    const size_t stride = task->sum_stride * sizeof *sums;
    _tile_stored(0, sums, stride);
    if (two_columns)
        _tile_stored(1, sums + SIDE, stride);
    if (two_rows) {
        _tile_stored(2, more_sums, stride);
        if (two_columns)
            _tile_stored(3, more_sums + SIDE, stride);
    }
}

static inline __attribute__((always_inline)) void multiply_columns(const cappy_product *task, bool two_rows)
{
    size_t tile = 0;
    for (; tile + 2 <= task->tiles; tile += 2)
        multiply_tiles(task, tile, two_rows, true);
    if (tile < task->tiles)
        multiply_tiles(task, tile, two_rows, false);
}

static void multiply(const cappy_product *task)
{
    if (task->rows > SIDE)
        multiply_columns(task, true);
    else
        multiply_columns(task, false);
}

const cappy_unit cappy_unit_amx = {multiply, begin, end, STEP};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
