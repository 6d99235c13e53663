/* Sixteen numbers at a time, in as many registers as the processor needs for them. Each operation is one rounding, as
 * IEEE 754 has it, and sums are added up in one order; so all processors come to the same bits.
 * Included once for each level of instructions, of which PART lanes fit into a register. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#if PART == 16
#define PARTS 1
#elif PART == 8
#define PARTS 2
#else
#define PARTS 4
#endif

typedef float LEVEL(part) __attribute__((vector_size(4 * PART)));
typedef int32_t LEVEL(int_part) __attribute__((vector_size(4 * PART)));
typedef uint8_t LEVEL(byte_part) __attribute__((vector_size(PART)));
typedef int8_t LEVEL(signed_byte_part) __attribute__((vector_size(PART)));
typedef struct {
    LEVEL(part) parts[PARTS];
} LEVEL(floats);
typedef struct {
    LEVEL(int_part) parts[PARTS];
} LEVEL(ints);
#define part LEVEL(part)
#define int_part LEVEL(int_part)
#define byte_part LEVEL(byte_part)
#define floats LEVEL(floats)
#define ints LEVEL(ints)

#define INLINE static inline __attribute__((always_inline))

/* An operation on part `i` of the result, for each; constants, for compilers keep arrays in memory that loops go over.
 */
#define PART_OF(result, operation, number)                                                                             \
    {                                                                                                                  \
        enum { i = number };                                                                                           \
        (result).parts[i] = (operation);                                                                               \
    }
#if PARTS == 1
#define EACH(result, operation) PART_OF(result, operation, 0)
#elif PARTS == 2
#define EACH(result, operation) PART_OF(result, operation, 0) PART_OF(result, operation, 1)
#else
#define EACH(result, operation)                                                                                        \
    PART_OF(result, operation, 0)                                                                                      \
    PART_OF(result, operation, 1) PART_OF(result, operation, 2) PART_OF(result, operation, 3)
#endif

INLINE part load_part(const float *from)
{
    part value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE floats load(const float *from)
{
    floats value;
    EACH(value, load_part(from + i * PART));
    return value;
}

INLINE int_part load_int_part(const int32_t *from)
{
    int_part value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE ints load_ints(const int32_t *from)
{
    ints value;
    EACH(value, load_int_part(from + i * PART));
    return value;
}

INLINE void store_ints(int32_t *to, ints value) { memcpy(to, &value, sizeof value); }

INLINE ints all_ints(int32_t value)
{
    ints result;
    EACH(result, value - (int_part){0})
    return result;
}

INLINE ints add_ints(ints a, ints b)
{
    EACH(a, a.parts[i] + b.parts[i])
    return a;
}

INLINE ints subtract_ints(ints a, ints b)
{
    EACH(a, a.parts[i] - b.parts[i])
    return a;
}

INLINE floats load_signed_bytes(const int8_t *from)
{
    floats value;
    for (int i = 0; i < PARTS; i++) {
        LEVEL(signed_byte_part) bytes;
        memcpy(&bytes, from + i * PART, sizeof bytes);
        value.parts[i] = __builtin_convertvector(bytes, part);
    }
    return value;
}

INLINE floats from_ints(ints whole)
{
    floats value;
    EACH(value, __builtin_convertvector(whole.parts[i], part));
    return value;
}

INLINE void store_part(float *to, part value) { memcpy(to, &value, sizeof value); }

INLINE void store(float *to, floats value)
{
    for (int i = 0; i < PARTS; i++)
        store_part(to + i * PART, value.parts[i]);
}

INLINE floats all(float value)
{
    floats result;
    EACH(result, value - (part){0})
    return result;
}

INLINE floats add(floats a, floats b)
{
    EACH(a, a.parts[i] + b.parts[i])
    return a;
}

INLINE floats subtract(floats a, floats b)
{
    EACH(a, a.parts[i] - b.parts[i])
    return a;
}

INLINE floats multiply(floats a, floats b)
{
    EACH(a, a.parts[i] * b.parts[i])
    return a;
}

INLINE floats divide(floats a, floats b)
{
    EACH(a, a.parts[i] / b.parts[i])
    return a;
}

INLINE part fused(part a, part b, part c)
{
#if PART == 16
    return (part)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif PART == 8
    return (part)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int lane = 0; lane < PART; lane++)
        a[lane] = fmaf(a[lane], b[lane], c[lane]);
    return a;
#endif
}

/* a * b + c, rounded once. */
INLINE floats multiply_add(floats a, floats b, floats c)
{
    EACH(a, fused(a.parts[i], b.parts[i], c.parts[i]))
    return a;
}

INLINE part chosen(int_part condition, part yes, part no)
{
    return (part)(((int_part)yes & condition) | ((int_part)no & ~condition));
}

/* b unless a is smaller, or larger; so b where one is no number. */
#if PART == 16
#define SMALLER(a, b) (part) _mm512_min_ps((__m512)(a), (__m512)(b))
#define LARGER(a, b) (part) _mm512_max_ps((__m512)(a), (__m512)(b))
#elif PART == 8
#define SMALLER(a, b) (part) _mm256_min_ps((__m256)(a), (__m256)(b))
#define LARGER(a, b) (part) _mm256_max_ps((__m256)(a), (__m256)(b))
#else
#define SMALLER(a, b) chosen((a) < (b), a, b)
#define LARGER(a, b) chosen((a) > (b), a, b)
#endif

INLINE floats smaller(floats a, floats b)
{
    EACH(a, SMALLER(a.parts[i], b.parts[i]))
    return a;
}

INLINE floats larger(floats a, floats b)
{
    EACH(a, LARGER(a.parts[i], b.parts[i]))
    return a;
}

INLINE floats magnitude(floats x) { return larger(x, subtract(all(0), x)); }

/* The lanes brought together two and two: each with the one half of them away, then with the one a quarter away, and so
 * on. */
#define FOLD(value, together)                                                                                          \
    do {                                                                                                               \
        for (int half = PARTS / 2; half; half /= 2)                                                                    \
            for (int i = 0; i < half; i++)                                                                             \
                (value).parts[i] = together((value).parts[i], (value).parts[i + half]);                                \
        float lanes[PART];                                                                                             \
        memcpy(lanes, (value).parts, sizeof lanes);                                                                    \
        for (int half = PART / 2; half; half /= 2)                                                                     \
            for (int i = 0; i < half; i++)                                                                             \
                lanes[i] = together(lanes[i], lanes[i + half]);                                                        \
        return lanes[0];                                                                                               \
    } while (0)

#define SUM(a, b) ((a) + (b))

INLINE float total(floats value) { FOLD(value, SUM); }

INLINE int32_t total_ints(ints value)
{
#if PART == 16
    return _mm512_reduce_add_epi32((__m512i)value.parts[0]);
#else
    int32_t lanes[LANES];
    store_ints(lanes, value);
    for (int i = 1; i < LANES; i++)
        lanes[0] += lanes[i];
    return lanes[0];
#endif
}

INLINE float largest(floats value)
{
#if PART == 16
    return _mm512_reduce_max_ps((__m512)value.parts[0]);
#else
    float lanes[LANES];
    store(lanes, value);
    for (int i = 1; i < LANES; i++)
        lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
#endif
}

/* Numbers below 2^22 plus this are whole numbers plus this. */
#define TO_WHOLE 12582912.0f

/* Numbers below 2^22, rounded to the nearest, halves to the even one. */
INLINE ints whole(floats x)
{
    ints result;
#if PART == 16
    result.parts[0] = (int_part)_mm512_cvtps_epi32((__m512)x.parts[0]);
#else
    const int32_t zero = 0x4B400000; /* the bits of TO_WHOLE */
    EACH(result, (int_part)(x.parts[i] + TO_WHOLE) - zero)
#endif
    return result;
}

/* e to the power of x, for x from -87 to 0 within two units in the last place; 0 for less. */
INLINE floats exponential(floats x)
{
    const floats shifted = multiply_add(x, all(1.44269504f), all(TO_WHOLE));
    const floats power = subtract(shifted, all(TO_WHOLE));
    /* x less power * ln 2, in two parts. */
    floats rest = multiply_add(power, all(-0.693145752f), x);
    rest = multiply_add(power, all(-1.42860677e-6f), rest);
    floats sum = all(1.0f / 720);
    sum = multiply_add(sum, rest, all(1.0f / 120));
    sum = multiply_add(sum, rest, all(1.0f / 24));
    sum = multiply_add(sum, rest, all(1.0f / 6));
    sum = multiply_add(sum, rest, all(0.5f));
    sum = multiply_add(sum, rest, all(1.0f));
    sum = multiply_add(sum, rest, all(1.0f));
    /* The whole part is in the lowest bits of the shifted number, and a power of two in a number's exponent. */
    EACH(sum,
         chosen(x.parts[i] < -87.0f, (part){0}, (part)((int_part)sum.parts[i] + ((int_part)shifted.parts[i] << 23))))
    return sum;
}

/* 2^16 - 1 times 2 to the power of x, for x from -24 to 0, within one; a whole number. */
INLINE ints sixteen_bits_of_power(floats x)
{
    const floats shifted = add(x, all(TO_WHOLE));
    const floats rest = subtract(x, subtract(shifted, all(TO_WHOLE)));
    floats sum = all(627.176270f);
    sum = multiply_add(sum, rest, all(3664.57690f));
    sum = multiply_add(sum, rest, all(15744.6162f));
    sum = multiply_add(sum, rest, all(45423.7383f));
    sum = multiply_add(sum, rest, all(65534.9531f));
    EACH(sum, (part)((int_part)sum.parts[i] + ((int_part)shifted.parts[i] << 23)));
    return whole(sum);
}

/* The lowest byte of each. */
INLINE void store_low_bytes(uint8_t *to, ints value)
{
    for (int i = 0; i < PARTS; i++) {
#if PART == 8
        const __m256i whole = _mm256_and_si256((__m256i)value.parts[i], _mm256_set1_epi32(0xFF));
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i *)(to + i * PART), _mm_packus_epi16(words, words));
#else
        const byte_part narrow = __builtin_convertvector(value.parts[i], byte_part);
        memcpy(to + i * PART, &narrow, sizeof narrow);
#endif
    }
}

/* Numbers that are 0 to 255, rounded; what is beyond is cut. */
INLINE void store_bytes(uint8_t *to, floats value)
{
    store_low_bytes(to, whole(smaller(larger(value, all(0)), all(255))));
}
