/* The few parts of ONNX Runtime's C interface that operators of one's own need. It is a table of functions that only
 * ever grows at its end, so a place in it means the same in all versions. */
#ifndef CAPPY_ORT_H
#define CAPPY_ORT_H

#include <stddef.h>
#include <stdint.h>

/* From 1.18 on. */
#define ORT_VERSION 18

typedef struct ort_status ort_status; /* NULL: all is well */
typedef struct ort_value ort_value;
typedef struct ort_shape ort_shape;
typedef struct ort_context ort_context;
typedef struct ort_info ort_info;
typedef struct ort_domain ort_domain;
typedef struct ort_options ort_options;

enum { ORT_INVALID_ARGUMENT = 2, ORT_FAIL = 1 };
typedef enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_INT64 = 7 } ort_type;
typedef enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 } ort_presence;

/* The table, and the places in it. */
typedef struct {
    void (*functions[275])(void);
} ort_api;

typedef struct {
    const ort_api *(*api)(uint32_t version);
    const char *(*version)(void);
} ort_base;

#define ORT(api, place, result, ...) ((result (*)(__VA_ARGS__))(api)->functions[place])
#define ort_create_status(api) ORT(api, 0, ort_status *, int code, const char *message)
#define ort_create_domain(api) ORT(api, 26, ort_status *, const char *name, ort_domain **domain)
#define ort_add_operator(api) ORT(api, 27, ort_status *, ort_domain *domain, const struct ort_operator *one)
#define ort_add_domain(api) ORT(api, 28, ort_status *, ort_options *options, ort_domain *domain)
#define ort_data(api) ORT(api, 51, ort_status *, ort_value *value, void **data)
#define ort_dimension_count(api) ORT(api, 61, ort_status *, const ort_shape *shape, size_t *count)
#define ort_dimensions(api) ORT(api, 62, ort_status *, const ort_shape *shape, int64_t *dimensions, size_t count)
#define ort_shape_of(api) ORT(api, 65, ort_status *, const ort_value *value, ort_shape **shape)
#define ort_attribute_float(api) ORT(api, 85, ort_status *, const ort_info *info, const char *name, float *value)
#define ort_attribute_int(api) ORT(api, 86, ort_status *, const ort_info *info, const char *name, int64_t *value)
#define ort_input(api) ORT(api, 90, ort_status *, const ort_context *context, size_t index, const ort_value **value)
#define ort_output(api)                                                                                                \
    ORT(api, 91, ort_status *, ort_context *context, size_t index, const int64_t *dimensions, size_t count,            \
        ort_value **value)
#define ort_release_status(api) ORT(api, 93, void, ort_status *status)
#define ort_release_shape(api) ORT(api, 99, void, ort_shape *shape)
#define ort_parallel_for(api)                                                                                          \
    ORT(api, 274, ort_status *, const ort_context *context, void (*work)(void *data, size_t part), size_t parts,       \
        size_t batches, void *data)

/* An operator, as ONNX Runtime reads it up to version 16 of this structure. */
typedef struct ort_operator {
    uint32_t version;
    void *(*create_unused)(const struct ort_operator *, const ort_api *, const ort_info *);
    const char *(*name)(const struct ort_operator *);
    const char *(*provider)(const struct ort_operator *);
    ort_type (*input_type)(const struct ort_operator *, size_t index);
    size_t (*input_count)(const struct ort_operator *);
    ort_type (*output_type)(const struct ort_operator *, size_t index);
    size_t (*output_count)(const struct ort_operator *);
    void (*compute_unused)(void *kernel, ort_context *);
    void (*destroy)(void *kernel);
    ort_presence (*input_presence)(const struct ort_operator *, size_t index);
    ort_presence (*output_presence)(const struct ort_operator *, size_t index);
    int (*input_memory)(const struct ort_operator *, size_t index);
    int (*variadic_input_arity)(const struct ort_operator *);
    int (*variadic_input_homogeneity)(const struct ort_operator *);
    int (*variadic_output_arity)(const struct ort_operator *);
    int (*variadic_output_homogeneity)(const struct ort_operator *);
    ort_status *(*create)(const struct ort_operator *, const ort_api *, const ort_info *, void **kernel);
    ort_status *(*compute)(void *kernel, ort_context *);
} ort_operator;

#endif
