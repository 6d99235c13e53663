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
#pragma clang attribute push(__attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2")
#endif
#define PART 16
#define LEVEL(name) name##_amx
#include "vectors.h"

#include "activation.inc"

#include "finish.inc"

#define STEP 64  /* of the inner dimension, in an instruction */
#define BLOCK 32 /* rows, and columns: two tiles of either */

bool cappy_has_tiles(void)
{
    /* Of cpuid's leaf 7; and what asks the kernel for the tiles' memory, once in a process. */
    enum { AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, REQUEST = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & AMX_TILE && d & AMX_INT8 &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

static void configure(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.row_bytes[i] = STEP;
        tiles.rows[i] = LANES;
    }
    _tile_loadconfig(&tiles);
}

/* BLOCK rows of codes by BLOCK columns. */
static void multiply_tiles(const uint8_t *codes, size_t inner, const int8_t *weight, int32_t sums[BLOCK][BLOCK])
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t at = 0; at < inner; at += STEP) {
        _tile_loadd(4, codes + at, inner);
        _tile_loadd(5, codes + LANES * inner + at, inner);
        _tile_loadd(6, weight + at * LANES, STEP);
        _tile_loadd(7, weight + (inner + at) * LANES, STEP);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, &sums[0][0], sizeof *sums);
    _tile_stored(1, &sums[0][LANES], sizeof *sums);
    _tile_stored(2, &sums[LANES][0], sizeof *sums);
    _tile_stored(3, &sums[LANES][LANES], sizeof *sums);
}

void cappy_linear_tiles(const cappy_linear *task, size_t row, size_t end_row, size_t column, size_t end_column,
                        uint8_t *scratch)
{
    configure();
    for (; row < end_row; row += BLOCK) {
        const size_t rows = end_row - row < BLOCK ? end_row - row : BLOCK;
        const uint8_t *codes = task->codes + row * task->inner;
        if (rows < BLOCK) /* tiles are read whole, and behind the last row may be nothing */
            codes = memcpy(scratch, codes, rows * task->inner);
        for (size_t at = column; at < end_column; at += BLOCK) {
            _Alignas(64) int32_t sums[BLOCK][BLOCK];
            multiply_tiles(codes, task->inner, task->weight + at * task->inner, sums);
            for (size_t r = 0; r < rows; r++)
                for (size_t t = 0; t < BLOCK; t += LANES) {
                    ints tile;
                    memcpy(&tile, &sums[r][t], sizeof tile);
                    finish(task, row + r, at + t, tile);
                }
        }
    }
    _tile_release();
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
