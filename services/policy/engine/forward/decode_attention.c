/* Attention of one new token per row over float32 keys and values that lie in rows of a cache.
 *
 * For a few dozen rows, torch's attention spends most of its time between the small products (32 rows of 120 tokens, 4
 * key-value heads of 32: 640 microseconds a layer, this 250). Here the heads that share keys read them together, and the
 * next keys are fetched while these are multiplied. One thread.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define AHEAD 8 /* keys */
#define MOST_DIMENSION 256

static inline __attribute__((always_inline)) void fetch(const float *from, const int64_t dimension)
{
    for (int64_t d = 0; d < dimension; d += 16)
        __builtin_prefetch(from + d);
}

/* The `group` queries that share one key-value head. `weights` has room for group x length numbers. */
static inline __attribute__((always_inline)) void attend(
    float *restrict out, const float *restrict queries, const float *restrict keys, const float *restrict values,
    int64_t count, int64_t group, const int64_t dimension, float scale, float *restrict weights, int64_t length)
{
    for (int64_t t = 0; t < count; t++) {
        const float *key = keys + t * dimension;
        fetch(key + AHEAD * dimension, dimension);
        for (int64_t g = 0; g < group; g++) {
            const float *query = queries + g * dimension;
            float product = 0;
            for (int64_t d = 0; d < dimension; d++)
                product += query[d] * key[d];
            weights[g * length + t] = product;
        }
    }
    for (int64_t g = 0; g < group; g++) {
        float *weight = weights + g * length;
        float sums[MOST_DIMENSION], largest = weight[0], total = 0;
        for (int64_t t = 1; t < count; t++)
            largest = weight[t] > largest ? weight[t] : largest;
        for (int64_t t = 0; t < count; t++)
            weight[t] = expf((weight[t] - largest) * scale);
        for (int64_t t = 0; t < count; t++)
            total += weight[t];
        for (int64_t d = 0; d < dimension; d++)
            sums[d] = 0;
        for (int64_t t = 0; t < count; t++) {
            const float *value = values + t * dimension;
            if (g == 0)
                fetch(value + AHEAD * dimension, dimension);
            for (int64_t d = 0; d < dimension; d++)
                sums[d] += weight[t] * value[d];
        }
        for (int64_t d = 0; d < dimension; d++)
            out[g * dimension + d] = sums[d] / total;
    }
}

/* out     [batch, heads, dimension]
 * qkv     [batch, stride]: queries of all heads, then keys, then values of the key-value heads
 * keys, values [cache rows, key-value heads, length, dimension]; the new ones are written at `positions`
 * rows, positions [batch]; window 0: no limit to how far back a row looks
 */
void decode_attention(
    float *restrict out, const float *restrict qkv, int64_t stride, float *restrict keys, float *restrict values,
    const int64_t *restrict rows, const int64_t *restrict positions, int64_t batch, int64_t heads, int64_t kv_heads,
    int64_t dimension, int64_t length, int64_t window, float scale, float *restrict weights)
{
    const int64_t group = heads / kv_heads;
    for (int64_t b = 0; b < batch; b++) {
        const int64_t seen = positions[b] + 1;
        const int64_t first = window && seen > window ? seen - window : 0;
        for (int64_t h = 0; h < kv_heads; h++) {
            const float *queries = qkv + b * stride + h * group * dimension;
            const float *key = qkv + b * stride + (heads + h) * dimension;
            const float *value = key + kv_heads * dimension;
            const int64_t row = (rows[b] * kv_heads + h) * length;
            float *result = out + (b * heads + h * group) * dimension;
            memcpy(keys + (row + positions[b]) * dimension, key, dimension * sizeof(float));
            memcpy(values + (row + positions[b]) * dimension, value, dimension * sizeof(float));
            const float *from_key = keys + (row + first) * dimension, *from_value = values + (row + first) * dimension;
            switch (dimension) { /* loops of known length */
            case 32: attend(result, queries, from_key, from_value, seen - first, group, 32, scale, weights, length); break;
            case 64: attend(result, queries, from_key, from_value, seen - first, group, 64, scale, weights, length); break;
            case 128: attend(result, queries, from_key, from_value, seen - first, group, 128, scale, weights, length); break;
            default: attend(result, queries, from_key, from_value, seen - first, group, dimension, scale, weights, length);
            }
        }
    }
}
