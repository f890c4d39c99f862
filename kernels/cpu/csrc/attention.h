// Attention of one new position over a cache, for a run of query heads that share a key/value head.
//
// A cache line is D values of float or Bf16; arithmetic is fp32. Scores, softmax and the weighted sum go over the
// positions begin .. end; partial results of several runs of positions can be merged (`Partial`).
#pragma once

#include <limits>
#include <vector>

#include "simd.h"

namespace minimind {

constexpr int64_t kHeadBlock = 4;  // query heads that share one pass over the keys and values

// What a run of positions leaves of one query head: the largest score, the sum of exponentials, and in `out` the
// unnormalised weighted sum.
struct Partial {
  float top = -std::numeric_limits<float>::infinity();
  float sum = 0;
};

// scores[r * length + s] = scale * q[r] . k[s]
template <int R, class Float>
void score_rows(const float* q, const Float* k, int64_t stride, int64_t length, int64_t D, float scale, float* scores) {
#ifdef MINIMIND_AVX512
  for (int64_t s = 0; s < length; ++s) {
    const Float* line = k + s * stride;
    __m512 acc[4];
    for (int r = 0; r < 4; ++r) acc[r] = _mm512_setzero_ps();
    for (int64_t d = 0; d < D; d += 16) {
      const __mmask16 m = lanes(D - d);
      const __m512 kv = load16(line + d, m);
      for (int r = 0; r < R; ++r) acc[r] = _mm512_fmadd_ps(load16(q + r * D + d, m), kv, acc[r]);
    }
    alignas(16) float sums[4];
    _mm_store_ps(sums, reduce4(acc[0], acc[1], acc[2], acc[3]));
    for (int r = 0; r < R; ++r) scores[r * length + s] = sums[r] * scale;
  }
#else
  for (int64_t s = 0; s < length; ++s) {
    for (int r = 0; r < R; ++r) {
      float sum = 0;
      for (int64_t d = 0; d < D; ++d) sum += q[r * D + d] * widen(k[s * stride + d]);
      scores[r * length + s] = sum * scale;
    }
  }
#endif
}

// scores -> exp(score - top), in place.
inline Partial exponentiate(float* scores, int64_t length) {
  Partial partial;
#ifdef MINIMIND_AVX512
  __m512 top = _mm512_set1_ps(partial.top), sum = _mm512_setzero_ps();
  for (int64_t s = 0; s < length; s += 16) {
    const __mmask16 m = lanes(length - s);
    top = _mm512_mask_max_ps(top, m, top, load16(scores + s, m));
  }
  partial.top = _mm512_reduce_max_ps(top);
  for (int64_t s = 0; s < length; s += 16) {
    const __mmask16 m = lanes(length - s);
    const __m512 e = exp16(_mm512_sub_ps(load16(scores + s, m), _mm512_set1_ps(partial.top)));
    store16(scores + s, m, e);
    sum = _mm512_mask_add_ps(sum, m, sum, e);
  }
  partial.sum = _mm512_reduce_add_ps(sum);
#else
  for (int64_t s = 0; s < length; ++s) partial.top = std::max(partial.top, scores[s]);
  for (int64_t s = 0; s < length; ++s) partial.sum += scores[s] = std::exp(scores[s] - partial.top);
#endif
  return partial;
}

// out[r * D + d] = sum over s of weights[r * length + s] * v[s][d]
template <int R, class Float>
void weigh_rows(const float* weights, const Float* v, int64_t stride, int64_t length, int64_t D, float* out) {
#ifdef MINIMIND_AVX512
  constexpr int64_t kSpan = 64;  // four vectors of a head at a time: with four heads, sixteen accumulators
  for (int64_t d0 = 0; d0 < D; d0 += kSpan) {
    const int64_t width = std::min(kSpan, D - d0);
    __mmask16 m[4];
    for (int i = 0; i < 4; ++i) m[i] = width > i * 16 ? lanes(width - i * 16) : 0;
    __m512 acc[R][4];
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_setzero_ps();
    }
    for (int64_t s = 0; s < length; ++s) {
      const Float* line = v + s * stride + d0;
      __m512 value[4];
      for (int i = 0; i < 4; ++i) value[i] = load16(line + i * 16, m[i]);
      for (int r = 0; r < R; ++r) {
        const __m512 weight = _mm512_set1_ps(weights[r * length + s]);
        for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_fmadd_ps(weight, value[i], acc[r][i]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < 4; ++i) store16(out + r * D + d0 + i * 16, m[i], acc[r][i]);
    }
  }
#else
  std::fill_n(out, R * D, 0.0f);
  for (int64_t s = 0; s < length; ++s) {
    for (int r = 0; r < R; ++r) {
      for (int64_t d = 0; d < D; ++d) out[r * D + d] += weights[r * length + s] * widen(v[s * stride + d]);
    }
  }
#endif
}

// Query heads q[0 .. num_heads) [D each] over `length` cache lines. out [num_heads, D] unnormalised; `scores` is
// space for kHeadBlock * length values.
template <class Float>
void attend_run(const float* q, int64_t num_heads, const Float* k, int64_t k_stride, const Float* v, int64_t v_stride,
                int64_t length, int64_t D, float scale, float* scores, float* out, Partial* partial) {
  for (int64_t h = 0; h < num_heads; h += kHeadBlock) {
    const int64_t count = std::min(kHeadBlock, num_heads - h);
    const auto pass = [&](auto heads) {
      constexpr int R = decltype(heads)::value;
      score_rows<R>(q + h * D, k, k_stride, length, D, scale, scores);
      for (int r = 0; r < R; ++r) partial[h + r] = exponentiate(scores + r * length, length);
      weigh_rows<R>(scores, v, v_stride, length, D, out + h * D);
    };
    switch (count) {
      case 4: pass(std::integral_constant<int, 4>{}); break;
      case 3: pass(std::integral_constant<int, 3>{}); break;
      case 2: pass(std::integral_constant<int, 2>{}); break;
      default: pass(std::integral_constant<int, 1>{});
    }
  }
}

// One head's output from `splits` unnormalised parts; part(s) is the place of the s-th.
template <class Part, class Float>
void merge(const float* parts, const Partial* partials, const Part& part, int64_t splits, int64_t D, Float* out) {
  float top = partials[part(0)].top, sum = 0;
  for (int64_t s = 1; s < splits; ++s) top = std::max(top, partials[part(s)].top);
  for (int64_t s = 0; s < splits; ++s) sum += partials[part(s)].sum * std::exp(partials[part(s)].top - top);
  for (int64_t d = 0; d < D; ++d) {
    float total = 0;
    for (int64_t s = 0; s < splits; ++s) total += parts[part(s) * D + d] * std::exp(partials[part(s)].top - top);
    store(out + d, total / sum);
  }
}

// x[0 .. D) turned by (cos, sin) in the half-split layout, in place.
template <class Table>
void rotate(float* x, const Table* cos, const Table* sin, int64_t D) {
  const int64_t half = D / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    x[i] = first * widen(cos[i]) - second * widen(sin[i]);
    x[i + half] = second * widen(cos[i + half]) + first * widen(sin[i + half]);
  }
}

}  // namespace minimind
