/*
 * Attention over a pool of q8_0 cells that many sequences share: this file stands in for one function of llama.cpp, which
 * goes over all cells again for each query and head. Here a cell is unpacked once for the queries and heads of its KV head,
 * and cells that are not a query's are passed over 32 at a time.
 *
 * Each query and head gets the same bits as from the original: the same products, summed in the same order, scaled at the
 * same cells. Only the order among queries and heads is another one. What is not served here goes to the original.
 *
 * It is loaded before llama.cpp, so that llama.cpp's own call finds it, and does nothing before `attention_use` says so:
 * engine/attention.py compares it with the original first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include "ggml-cpu.h"

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define CELLS 32    /* in a block: the bits of a word */
#define QUERIES 512 /* in a step */
#define ROWS 48     /* queries' heads that go over the cells together */
#define MASKED 0xFC00

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__FMA__)
#include <immintrin.h>
#define WIDTH 16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define SPREAD _mm512_set1_ps
#define MULTIPLY _mm512_mul_ps
#define ADD_PRODUCT(sum, x, y) _mm512_fmadd_ps(x, y, sum)
typedef __m512 lanes;
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WIDTH 8
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define SPREAD _mm256_set1_ps
#define MULTIPLY _mm256_mul_ps
#define ADD_PRODUCT(sum, x, y) _mm256_fmadd_ps(x, y, sum)
typedef __m256 lanes;
#else
#include <arm_neon.h>
#define WIDTH 4
#define LOAD vld1q_f32
#define STORE vst1q_f32
#define SPREAD vdupq_n_f32
#define MULTIPLY vmulq_f32
#define ADD_PRODUCT vfmaq_f32
typedef float32x4_t lanes;
#endif
#define STEP (WIDTH == 4 ? 1 : 8) /* products at once, as they are stored: a wider load waits until both stores are done */
#define HEADS (WIDTH == 8 ? 2 : 4) /* of a query that are summed together: each takes four registers */

typedef struct {
    uint16_t scale;
    int8_t values[32];
} block;
_Static_assert(sizeof(block) == 34, "a block of q8_0");

struct ggml_compute_params { /* ggml-cpu-impl.h */
    int ith, nth;
    size_t wsize;
    void *wdata;
    struct ggml_threadpool *threadpool;
    bool use_ref;
};
typedef void attention(const struct ggml_compute_params *, struct ggml_tensor *);

static struct {
    attention *original;
    ggml_from_float_t quantize;
    ggml_vec_dot_t dot;
} llama;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *caller;
static int in_use;
static long served;

EXPORT attention ggml_compute_forward_flash_attn_ext;
EXPORT void attention_use(int use) { in_use = use; }
EXPORT long attention_served(void) { return served; }

/* In the library that calls: a build for many processors has several, and none of them is visible to all. */
static void find_llama(void) {
    Dl_info info;
    dladdr(caller, &info);
    void *library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    llama.original = (attention *)dlsym(library, "ggml_compute_forward_flash_attn_ext");
    const struct ggml_type_traits_cpu *(*traits)(enum ggml_type) = dlsym(library, "ggml_get_type_traits_cpu");
    llama.quantize = traits(GGML_TYPE_Q8_0)->from_float;
    llama.dot = traits(GGML_TYPE_Q8_0)->vec_dot;
}

INLINE float half(uint16_t bits) {
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return (float)value;
}

/* ---- what a thread works with: some rows of one KV head, and a block of its cells */

typedef struct {
    int query, head, heads, row; /* heads of one query; the first one's row */
} part;

typedef struct {
    const struct ggml_tensor *q, *k, *v, *mask;
    struct ggml_tensor *out;
    int cells, kv_head;
    float scale;
    part parts[ROWS];
    int count, rows;
    float *total, *top, *sums;  /* of each row, as the original's S, M and VKQ32 */
    block *quantized;           /* its query */
    int8_t *query;              /* the same unpacked, with scales, and what `product` needs */
    float *query_scales;
    int32_t *bias;
    float *values; /* of each cell: V; K, with scales */
    int8_t *keys;
    float *key_scales;
    const block *key[CELLS]; /* where K is */
} work;

/* Bytes that it takes from `at` on. */
static size_t lay_out(work *w, size_t size, char *at) {
    char *start = at;
#define TAKE(pointer, n) (w->pointer = (void *)at, at += ((n) * sizeof *w->pointer + 63) / 64 * 64)
    TAKE(total, ROWS);
    TAKE(top, ROWS);
    TAKE(sums, ROWS * size);
    TAKE(quantized, ROWS * size / 32);
    TAKE(query, ROWS * size);
    TAKE(query_scales, ROWS * size / 32);
    TAKE(bias, ROWS * size / 4);
    TAKE(values, CELLS * size);
    TAKE(keys, CELLS * size);
    TAKE(key_scales, CELLS * size / 32);
#undef TAKE
    return at - start;
}

/* ---- the processor's part: e to the x, the cells in a mask, products of q8_0 */

/* The C library's expf for x <= 0, to the bit, but many at once. */
#if WIDTH > 4
static uint64_t powers[32]; /* of 2 by 32nds, less what their number adds to the exponent */

__attribute__((constructor)) static void make_powers(void) {
    for (int i = 0; i < 32; i++) {
        double power = (double)exp2l(i / 32.0L);
        memcpy(&powers[i], &power, sizeof power);
        powers[i] -= (uint64_t)i << 47;
    }
}

INLINE float exponential(float x) {
    const double steps = 0x1.71547652b82fep5, shift = 0x1.8p52; /* log2(e) in 32nds; makes a sum an integer */
    const double a = 0x1.c6af84b912394p-20, b = 0x1.ebfce50fac4f3p-13, c = 0x1.62e42ff0c52d6p-6;
    double shifted = fma(steps, x, shift), power;
    double r = fma(steps, x, shift - shifted);
    uint64_t k, bits;
    memcpy(&k, &shifted, sizeof k);
    bits = powers[k % 32] + (k << 47);
    memcpy(&power, &bits, sizeof power);
    float y = (float)(fma(fma(a, r, b), r * r, fma(c, r, 1.0)) * power);
    return x < -0x1.9fe368p6f ? 0.0f : y;
}
#else
INLINE float exponential(float x) { return expf(x); }
#endif

/* Whether it is, at 2^17 points from 0 to -128, and where sums of other roundings give another result. */
EXPORT int attention_exponential_agrees(void) {
    float points[1024];
    volatile float doubtful = -0x1.f8cbb2p+5f; /* volatile: else the compiler computes it, rounded correctly */
    bool same = exponential(doubtful) == expf(doubtful);
    for (int start = 0; start < 1 << 17; start += 1024) {
        for (int i = 0; i < 1024; i++) points[i] = exponential((start + i) * -0x1.00001p-10f);
        for (int i = 0; i < 1024; i++) same &= points[i] == expf((start + i) * -0x1.00001p-10f);
    }
    return same;
}

/* Of 32 cells in a mask, those that are not masked. */
INLINE uint32_t visible(const uint16_t *mask) {
#if WIDTH == 16
    return _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(mask), _mm512_set1_epi16((short)MASKED));
#elif WIDTH == 8
    const __m256i masked = _mm256_set1_epi16((short)MASKED);
    __m256i low = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *)mask), masked);
    __m256i high = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *)mask + 1), masked);
    return ~(uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8));
#else
    uint64_t words[8], any = 0;
    memcpy(words, mask, sizeof words);
    for (int i = 0; i < 8; i++) any |= words[i] ^ MASKED * 0x0001000100010001u;
    uint32_t bits = 0;
    for (int i = 0; any && i < CELLS; i++) bits |= (uint32_t)(mask[i] != MASKED) << i;
    return bits;
#endif
}

#if WIDTH > 4

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define KEY_SIGN 128 /* makes K unsigned, 128 more than it is; `bias` takes that back */
#else
#define KEY_SIGN 0
#endif

/* Sums of four products of K and Q each. */
INLINE __m256i product(const int8_t *key, const int8_t *query, const int32_t *bias) {
    __m256i k = _mm256_load_si256((const __m256i *)key), q = _mm256_load_si256((const __m256i *)query);
#if defined(__AVX512VNNI__)
    return _mm256_dpbusd_epi32(_mm256_load_si256((const __m256i *)bias), k, q);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(_mm256_load_si256((const __m256i *)bias), k, q);
#else
    (void)bias;
    __m256i pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(k, k), _mm256_sign_epi8(q, k));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

/* From eight vectors the sum of each, its halves added first, then the halves of that, as the original adds them. */
INLINE __m256 add_up(const __m256 *x) {
    __m256 y[4], z[2];
    for (int i = 0; i < 4; i++) /* cells i and i + 4 in the halves */
        y[i] = _mm256_add_ps(_mm256_permute2f128_ps(x[i], x[i + 4], 0x20), _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
    for (int i = 0; i < 2; i++)
        z[i] = _mm256_add_ps(_mm256_shuffle_ps(y[2 * i], y[2 * i + 1], 0x44), _mm256_shuffle_ps(y[2 * i], y[2 * i + 1], 0xEE));
    return _mm256_add_ps(_mm256_shuffle_ps(z[0], z[1], 0x88), _mm256_shuffle_ps(z[0], z[1], 0xDD));
}

/* Products of a row's query and the K of some cells. */
INLINE void multiply(const work *w, int size, int row, const uint8_t *cells, int n, float *out) {
    const int blocks = size / 32;
    const int8_t *query = w->query + row * size;
    const float *scales = w->query_scales + row * blocks;
    const int32_t *bias = w->bias + row * (size / 4);
    for (int i = 0; i < n; i += 8) {
        __m256 x[8];
        for (int j = 0; j < 8; j++) {
            const int8_t *key = w->keys + cells[i + j] * size;
            const float *key_scales = w->key_scales + cells[i + j] * blocks;
            x[j] = _mm256_setzero_ps();
            for (int b = 0; b < blocks; b++) {
                __m256 sums = _mm256_cvtepi32_ps(product(key + 32 * b, query + 32 * b, bias + 8 * b));
                __m256 scale = _mm256_mul_ps(_mm256_broadcast_ss(key_scales + b), _mm256_set1_ps(scales[b]));
                x[j] = _mm256_fmadd_ps(scale, sums, x[j]);
            }
        }
        _mm256_storeu_ps(out + i, add_up(x));
    }
}

INLINE void unpack_key(work *w, int size, int cell, const block *key) {
    __m256i *restrict to = (__m256i *)(w->keys + cell * size);
    float *restrict scales = w->key_scales + cell * (size / 32);
    for (int b = 0; b < size / 32; b++) {
        scales[b] = half(key[b].scale);
        to[b] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)key[b].values), _mm256_set1_epi8((char)KEY_SIGN));
    }
}

INLINE void unpack_query(work *w, int size, int row, const block *query) {
    __m256i *restrict to = (__m256i *)(w->query + row * size);
    __m256i *restrict bias = (__m256i *)(w->bias + row * (size / 4));
    float *restrict scales = w->query_scales + row * (size / 32);
    for (int b = 0; b < size / 32; b++) {
        scales[b] = half(query[b].scale);
        to[b] = _mm256_loadu_si256((const __m256i *)query[b].values);
        __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), to[b]);
        bias[b] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(-KEY_SIGN));
    }
}

#else

INLINE void multiply(const work *w, int size, int row, const uint8_t *cells, int n, float *out) {
    for (int i = 0; i < n; i++)
        llama.dot(size, out + i, 0, w->key[cells[i]], 0, w->quantized + row * (size / 32), 0, 1);
}

INLINE void unpack_key(work *w, int size, int cell, const block *key) {
    (void)size;
    w->key[cell] = key;
}

INLINE void unpack_query(work *w, int size, int row, const block *query) {
    (void)w, (void)size, (void)row, (void)query;
}

#endif

/* ---- the sums */

/* What a head's products become: the weight of each cell, and what was summed before it is scaled by, which is not 1 where
 * the product is a new maximum. Those cells are the bits of the result. */
INLINE uint32_t weigh(float *products, float *weights, float *scales, int n, float scale, float *top) {
    float x[CELLS];
    uint32_t rises = 0;
    int higher = 0;
    for (int i = 0; i < n; i += STEP)
        for (int j = i; j < i + STEP; j++) {
            products[j] *= scale;
            x[j] = products[j] - *top;
            scales[j] = 1;
            higher |= x[j] > 0;
        }
    for (int i = 0; higher && i < n; i++) {
        bool rise = products[i] > *top;
        x[i] = rise ? *top - products[i] : products[i] - *top;
        rises |= (uint32_t)rise << i;
        *top = rise ? products[i] : *top;
    }
    for (int i = 0; i < n; i += STEP)
        for (int j = i; j < i + STEP; j++) weights[j] = exponential(x[j]);
    for (uint32_t left = rises; left; left &= left - 1) {
        int i = __builtin_ctz(left);
        scales[i] = weights[i];
        weights[i] = 1;
    }
    return rises;
}

/* Add the V of cells, or `wide` registers of it, to the sums of some heads. */
INLINE void add_slice(float *sums, const float *values, int size, int heads, int wide, const uint8_t *cells, int n,
                      float (*weights)[CELLS], float (*scales)[CELLS], uint32_t rises) {
    lanes sum[HEADS][4];
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < wide; j++) sum[h][j] = LOAD(sums + h * size + j * WIDTH);
    for (int i = 0; i < n; i++) {
        const float *value = values + cells[i] * size;
        if (rises >> i & 1)
            for (int h = 0; h < heads; h++)
                for (int j = 0; j < wide; j++) sum[h][j] = MULTIPLY(sum[h][j], SPREAD(scales[h][i]));
        for (int h = 0; h < heads; h++)
            for (int j = 0; j < wide; j++)
                sum[h][j] = ADD_PRODUCT(sum[h][j], LOAD(value + j * WIDTH), SPREAD(weights[h][i]));
    }
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < wide; j++) STORE(sums + h * size + j * WIDTH, sum[h][j]);
}

INLINE void add_cells(work *w, int size, int row, int heads, const uint8_t *cells, int n) {
    float products[HEADS][CELLS], weights[HEADS][CELLS], scales[HEADS][CELLS];
    uint32_t rises = 0;
    for (int h = 0; h < heads; h++) multiply(w, size, row + h, cells, n, products[h]);
    for (int h = 0; h < heads; h++) rises |= weigh(products[h], weights[h], scales[h], n, w->scale, &w->top[row + h]);
    for (int h = 0; h < heads; h++) {
        float total = w->total[row + h];
        if (rises)
            for (int i = 0; i < n; i++) total = fmaf(total, scales[h][i], weights[h][i]);
        else
            for (int i = 0; i < n; i++) total += weights[h][i];
        w->total[row + h] = total;
    }
    float *sums = w->sums + row * size;
    int at = 0;
    for (; at + 4 * WIDTH <= size; at += 4 * WIDTH)
        add_slice(sums + at, w->values + at, size, heads, 4, cells, n, weights, scales, rises);
    if (at < size) add_slice(sums + at, w->values + at, size, heads, 2, cells, n, weights, scales, rises);
}

/* ---- the loops */

INLINE void begin(work *w, int size) {
    for (const part *p = w->parts; p < w->parts + w->count; p++)
        for (int row = p->row; row < p->row + p->heads; row++) {
            const char *query = (const char *)w->q->data + p->query * w->q->nb[1] + (p->head + row - p->row) * w->q->nb[2];
            llama.quantize((const float *)query, w->quantized + row * (size / 32), size);
            unpack_query(w, size, row, w->quantized + row * (size / 32));
            w->total[row] = 0;
            w->top[row] = -INFINITY;
            memset(w->sums + row * size, 0, size * sizeof(float));
        }
}

INLINE void unpack_cells(work *w, int size, int first, uint32_t bits) {
    for (; bits; bits &= bits - 1) {
        int cell = __builtin_ctz(bits);
        const char *k = (const char *)w->k->data + (first + cell) * w->k->nb[1] + w->kv_head * w->k->nb[2];
        const char *v = (const char *)w->v->data + (first + cell) * w->v->nb[1] + w->kv_head * w->v->nb[2];
        unpack_key(w, size, cell, (const block *)k);
        for (int b = 0; b < size / 32; b++) {
            const block *from = (const block *)v + b;
            float scale = half(from->scale), *restrict to = w->values + cell * size + 32 * b;
            for (int i = 0; i < 32; i++) to[i] = from->values[i] * scale;
        }
    }
}

/* Have a block's K and V brought near while the one before is computed. */
INLINE void fetch_cells(const work *w, int size, int first) {
    for (int cell = first; cell < first + CELLS; cell++) {
        const char *k = (const char *)w->k->data + cell * w->k->nb[1] + w->kv_head * w->k->nb[2];
        const char *v = (const char *)w->v->data + cell * w->v->nb[1] + w->kv_head * w->v->nb[2];
        for (int at = 0; at < size / 32 * (int)sizeof(block); at += 64) {
            __builtin_prefetch(k + at);
            __builtin_prefetch(v + at);
        }
    }
}

INLINE void finish(const work *w, int size) {
    for (const part *p = w->parts; p < w->parts + w->count; p++)
        for (int row = p->row; row < p->row + p->heads; row++) {
            size_t at = (size_t)p->query * w->out->ne[1] + (p->head + row - p->row);
            float *out = (float *)((char *)w->out->data + at * w->out->nb[1]);
            float share = w->total[row] == 0 ? 0 : 1 / w->total[row];
            for (int i = 0; i < size; i++) out[i] = w->sums[row * size + i] * share;
        }
}

INLINE void attend(work *w, int size) {
    begin(w, size);
    for (int first = 0; first < w->cells; first += CELLS) {
        uint32_t bits[ROWS], any = 0;
        for (int p = 0; p < w->count; p++)
            any |= bits[p] = visible((const uint16_t *)((const char *)w->mask->data + w->parts[p].query * w->mask->nb[1]) + first);
        unpack_cells(w, size, first, any);
        if (first + CELLS < w->cells) fetch_cells(w, size, first + CELLS);
        for (int p = 0; p < w->count; p++) {
            uint8_t cells[CELLS + 8] = {0};
            int n = 0, row = w->parts[p].row;
            for (uint32_t left = bits[p]; left; left &= left - 1) cells[n++] = __builtin_ctz(left);
            if (!n) continue;
            memset(cells + n, cells[0], 8);
            switch (w->parts[p].heads) {
                case 1: add_cells(w, size, row, 1, cells, n); break;
                case 2: add_cells(w, size, row, 2, cells, n); break;
#if HEADS > 2
                case 3: add_cells(w, size, row, 3, cells, n); break;
                default: add_cells(w, size, row, 4, cells, n);
#endif
            }
        }
    }
    finish(w, size);
}

static void attend_64(work *w) { attend(w, 64); }
static void attend_128(work *w) { attend(w, 128); }
static void attend_any(work *w, int size) { attend(w, size); }

static void flush(work *w) {
    if (!w->count) return;
    switch (w->k->ne[0]) {
        case 64: attend_64(w); break;
        case 128: attend_128(w); break;
        default: attend_any(w, (int)w->k->ne[0]);
    }
    w->count = w->rows = 0;
}

/* ---- which rows are whose */

/* How many cells each query has; false if the mask is more than a mask. */
static bool count_cells(const work *w, int *counts) {
    for (int query = 0; query < w->q->ne[1]; query++) {
        const uint16_t *mask = (const uint16_t *)((const char *)w->mask->data + query * w->mask->nb[1]);
        uint16_t other = 0;
        counts[query] = 0;
        for (int i = 0; i < w->cells; i++) other |= mask[i] == MASKED ? 0 : mask[i];
        if (other) return false;
        for (int first = 0; first < w->cells; first += CELLS) counts[query] += __builtin_popcount(visible(mask + first));
    }
    return true;
}

/* This thread's share: rows in order of KV heads, then of queries, cut where the cells to go over are as many for each. */
static void share(work *w, const int *counts, int ith, int nth) {
    int queries = w->q->ne[1], heads = w->q->ne[2] / w->k->ne[2];
    int64_t all = 0, done = 0;
    for (int query = 0; query < queries; query++) all += (int64_t)counts[query] * w->q->ne[2];
    for (w->kv_head = 0; w->kv_head < w->k->ne[2]; w->kv_head++) {
        for (int query = 0; query < queries; query++)
            for (int head = 0; head < heads; head++) {
                int64_t middle = 2 * done + counts[query];
                done += counts[query];
                int whose = all ? middle * nth / (2 * all) : 0;
                if (whose != ith) continue;
                part *last = w->parts + w->count - 1;
                if (w->rows == ROWS) flush(w);
                if (w->count && last->query == query && last->heads < HEADS) {
                    last->heads++;
                } else {
                    w->parts[w->count++] = (part){query, w->kv_head * heads + head, 1, w->rows};
                }
                w->rows++;
            }
        flush(w);
    }
}

static bool serves(const struct ggml_compute_params *params, const struct ggml_tensor *out) {
    const struct ggml_tensor *q = out->src[0], *k = out->src[1], *v = out->src[2], *mask = out->src[3];
    float options[3]; /* scale, bias by distance, cap */
    memcpy(options, out->op_params, sizeof options);
    return in_use && !params->use_ref && mask && !out->src[4] && options[1] == 0 && options[2] == 0 &&
           q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_Q8_0 && v->type == GGML_TYPE_Q8_0 &&
           mask->type == GGML_TYPE_F16 && k->ne[0] == v->ne[0] && k->ne[0] % 32 == 0 && k->ne[1] % CELLS == 0 &&
           k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 && q->ne[1] <= QUERIES && q->ne[3] == 1 &&
           mask->ne[2] == 1 && mask->ne[3] == 1;
}

EXPORT void ggml_compute_forward_flash_attn_ext(const struct ggml_compute_params *params, struct ggml_tensor *out) {
    caller = __builtin_return_address(0);
    pthread_once(&once, find_llama);
    work w = {.q = out->src[0], .k = out->src[1], .v = out->src[2], .mask = out->src[3], .out = out};
    int counts[QUERIES];
    if (serves(params, out)) {
        size_t room = params->wsize / params->nth / 64 * 64;
        char *start = (char *)(((uintptr_t)params->wdata + 63) / 64 * 64) + params->ith * room;
        w.cells = w.k->ne[1];
        memcpy(&w.scale, out->op_params, sizeof w.scale);
        if (lay_out(&w, w.k->ne[0], start) + 64 <= room && count_cells(&w, counts)) {
            if (params->ith == 0) served++;
            share(&w, counts, params->ith, params->nth);
            return;
        }
    }
    llama.original(params, out);
}
