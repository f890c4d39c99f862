// Matrix-vector products with weights in fp32, bf16, int8 and int4: y[n] = sum over k of W[n, k] * x[k].
//
// Weights are read once, row by row, four rows together; they are what costs (see kernels/quantized_linear.py for the
// formats). fp32 and bf16 multiply in fp32; for bf16 the activations are rounded to bf16 first, as in torch. For int8
// and int4 the activations are quantised too, symmetrically to 8 bits in groups of 64 (int8) or 32 (int4) values with
// a scale of their own, and products are summed exactly in 32-bit integers within a group.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

namespace minimind {

enum class Kind : int64_t { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

// W [N, K] in row order. `scale`: fp32 [N] for int8, fp16 [N, K / 32] for int4.
struct Matrix {
  Kind kind;
  const void* weight;
  const void* scale;
  int64_t N, K;
};

constexpr int64_t kGroup8 = 64;    // activations per scale for int8 weights
constexpr int64_t kGroup4 = 32;    // values per scale for int4 weights
constexpr int64_t kChunk4 = 128;  // four groups: one vector of packed weights

// One activation vector in the form that a kind of weight multiplies with. Buffers are padded with zeros to whole
// chunks.
class Input {
 public:
  // x: K values. Call once per vector and kind; buffers are kept between calls.
  void prepare(Kind kind, const float* x, int64_t K) {
    if (kind == Kind::f32) {
      f32 = x;
    } else if (kind == Kind::bf16) {
      round(x, K);
    } else if (kind == Kind::int8) {
      quantize<kGroup8>(x, K);
    } else {
      quantize<kGroup4>(x, K);
      spread(K);
    }
  }

  // q = round(x / scale) with scale = max|x| / 127; returns the sum of q.
  static int32_t quantize_group(const float* x, int64_t n, int64_t padded, int8_t* q, float* scale) {
#ifdef MINIMIND_AVX512
    __m512 top = _mm512_setzero_ps();
    for (int64_t k = 0; k < n; k += 16) top = _mm512_max_ps(top, _mm512_abs_ps(load16(x + k, lanes(n - k))));
    const float largest = _mm512_reduce_max_ps(top);
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (int64_t k = 0; k < padded; k += 16) {
      const __mmask16 m = k < n ? lanes(n - k) : 0;
      const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x + k, m), inverse));
      total = _mm512_add_epi32(total, v);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + k), _mm512_cvtsepi32_epi8(v));
    }
    *scale = largest / 127.0f;
    return _mm512_reduce_add_epi32(total);
#else
    float largest = 0;
    for (int64_t k = 0; k < n; ++k) largest = std::max(largest, std::fabs(x[k]));
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int32_t total = 0;
    for (int64_t k = 0; k < padded; ++k) {
      q[k] = k < n ? static_cast<int8_t>(std::nearbyint(x[k] * inverse)) : 0;
      total += q[k];
    }
    *scale = largest / 127.0f;
    return total;
#endif
  }

  const float* f32 = nullptr;
  std::vector<Bf16> bf16;
  std::vector<int8_t> q;          // int8: in order
  std::vector<float> scale;       // per group
  std::vector<int32_t> sum;       // per group: the sum of q
  std::vector<int8_t> q4;         // int4: per chunk the first halves of its four groups, then the second halves
  std::vector<float> scale4;      // int4: each group's scale four times
  std::vector<int32_t> start4;    // int4: -8 * sum in the first of each group's four lanes
  std::vector<int32_t> start8;    // int8: -128 * sum in the first of 16 lanes

 private:
  void round(const float* x, int64_t K) {
    bf16.resize((K + 31) / 32 * 32, Bf16{0});
#ifdef MINIMIND_AVX512
    for (int64_t k = 0; k < K; k += 16) store16(bf16.data() + k, lanes(K - k), load16(x + k, lanes(K - k)));
#else
    for (int64_t k = 0; k < K; ++k) bf16[k] = to_bf16(x[k]);
#endif
    std::fill(bf16.begin() + K, bf16.end(), Bf16{0});
  }

  template <int64_t G>
  void quantize(const float* x, int64_t K) {
    const int64_t groups = ((K + kChunk4 - 1) / kChunk4) * (kChunk4 / G);
    q.resize(groups * G), scale.resize(groups), sum.resize(groups);
    if (G == kGroup8) start8.resize(groups * 16);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t n = std::clamp<int64_t>(K - g * G, 0, G);
      sum[g] = quantize_group(x + g * G, n, G, q.data() + g * G, &scale[g]);
      if (G == kGroup8) start8[g * 16] = -128 * sum[g];
    }
  }

  void spread(int64_t K) {
    const int64_t chunks = (K + kChunk4 - 1) / kChunk4;
    q4.resize(chunks * kChunk4), scale4.resize(chunks * 16), start4.resize(chunks * 16);
    for (int64_t g = 0; g < chunks * 4; ++g) {
      int8_t* to = q4.data() + g / 4 * kChunk4 + g % 4 * 16;
      std::memcpy(to, q.data() + g * 32, 16);
      std::memcpy(to + 64, q.data() + g * 32 + 16, 16);
      std::fill_n(scale4.data() + g * 4, 4, scale[g]);
      start4[g * 4] = -8 * sum[g];
    }
  }
};

// dot<R>: R rows from row n on times one prepared input; y[r]. One struct per kind of weight.

#ifdef MINIMIND_AVX512
template <int R>
inline void store_sums(const __m512* acc, float* y) {
  if constexpr (R == 4) {
    _mm_storeu_ps(y, reduce4(acc[0], acc[1], acc[2], acc[3]));
  } else {
    for (int r = 0; r < R; ++r) y[r] = _mm512_reduce_add_ps(acc[r]);
  }
}
#endif

struct RowsF32 {
  static int64_t row_bytes(int64_t K) { return 4 * K; }

  template <int R>
  static void dot(const Matrix& m, int64_t n, const Input& in, float* y) {
    const float* w = static_cast<const float*>(m.weight) + n * m.K;
#ifdef MINIMIND_AVX512
    __m512 acc[R], more[R];
    for (int r = 0; r < R; ++r) acc[r] = more[r] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + 32 <= m.K; k += 32) {
      const __m512 x0 = load16(in.f32 + k), x1 = load16(in.f32 + k + 16);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const float* p = w + r * m.K + k;
        _mm_prefetch(reinterpret_cast<const char*>(p) + R * row_bytes(m.K), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(p) + R * row_bytes(m.K) + 64, _MM_HINT_T0);
        acc[r] = _mm512_fmadd_ps(load16(p), x0, acc[r]);
        more[r] = _mm512_fmadd_ps(load16(p + 16), x1, more[r]);
      }
    }
    for (; k < m.K; k += 16) {
      const __mmask16 mask = lanes(m.K - k);
      for (int r = 0; r < R; ++r) {
        acc[r] = _mm512_fmadd_ps(load16(w + r * m.K + k, mask), load16(in.f32 + k, mask), acc[r]);
      }
    }
    for (int r = 0; r < R; ++r) acc[r] = _mm512_add_ps(acc[r], more[r]);
    store_sums<R>(acc, y);
#else
    for (int r = 0; r < R; ++r) {
      float part[8] = {0};
      int64_t k = 0;
      for (; k + 8 <= m.K; k += 8) {
        for (int i = 0; i < 8; ++i) part[i] += w[r * m.K + k + i] * in.f32[k + i];
      }
      for (; k < m.K; ++k) part[0] += w[r * m.K + k] * in.f32[k];
      y[r] = ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
    }
#endif
  }
};

struct RowsBf16 {
  static int64_t row_bytes(int64_t K) { return 2 * K; }

  template <int R>
  static void dot(const Matrix& m, int64_t n, const Input& in, float* y) {
    const Bf16* w = static_cast<const Bf16*>(m.weight) + n * m.K;
    const Bf16* x = in.bf16.data();
#ifdef MINIMIND_AVX512
    __m512 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k < m.K; k += 32) {
      const __mmask32 mask = m.K - k >= 32 ? 0xffffffffu : (1u << (m.K - k)) - 1;
      const __m512i xv = _mm512_loadu_si512(x + k);  // padded
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Bf16* p = w + r * m.K + k;
        _mm_prefetch(reinterpret_cast<const char*>(p) + R * row_bytes(m.K), _MM_HINT_T0);
        const __m512i wv = _mm512_maskz_loadu_epi16(mask, p);
#ifdef MINIMIND_BF16
        acc[r] = _mm512_dpbf16_ps(acc[r], (__m512bh)wv, (__m512bh)xv);
#else
        const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
        acc[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(wv, 16)),
                                 _mm512_castsi512_ps(_mm512_slli_epi32(xv, 16)), acc[r]);
        acc[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(wv, high)),
                                 _mm512_castsi512_ps(_mm512_and_si512(xv, high)), acc[r]);
#endif
      }
    }
    store_sums<R>(acc, y);
#else
    for (int r = 0; r < R; ++r) {
      float part[4] = {0};
      int64_t k = 0;
      for (; k + 4 <= m.K; k += 4) {
        for (int i = 0; i < 4; ++i) part[i] += widen(w[r * m.K + k + i]) * widen(x[k + i]);
      }
      for (; k < m.K; ++k) part[0] += widen(w[r * m.K + k]) * widen(x[k]);
      y[r] = (part[0] + part[2]) + (part[1] + part[3]);
    }
#endif
  }
};

struct RowsInt8 {
  static int64_t row_bytes(int64_t K) { return K; }

  template <int R>
  static void dot(const Matrix& m, int64_t n, const Input& in, float* y) {
    const int8_t* w = static_cast<const int8_t*>(m.weight) + n * m.K;
    const float* scale = static_cast<const float*>(m.scale) + n;
#ifdef MINIMIND_VNNI
    // The instruction multiplies unsigned by signed bytes: the weight is moved up by 128, and the accumulator starts
    // at -128 * the sum of the group's activations.
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
    for (int64_t k = 0, g = 0; k < m.K; k += kGroup8, ++g) {
      const __mmask64 mask = m.K - k >= 64 ? ~0ull : (1ull << (m.K - k)) - 1;
      const __m512i xv = _mm512_loadu_si512(in.q.data() + k);
      const __m512i start = _mm512_loadu_si512(in.start8.data() + g * 16);
      const __m512 xs = _mm512_set1_ps(in.scale[g]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int8_t* p = w + r * m.K + k;
        _mm_prefetch(reinterpret_cast<const char*>(p) + R * row_bytes(m.K), _MM_HINT_T0);
        const __m512i moved = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, p), flip);
        acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, moved, xv)), xs, acc[r]);
      }
    }
    store_sums<R>(acc, y);
    for (int r = 0; r < R; ++r) y[r] *= scale[r];
#else
    for (int r = 0; r < R; ++r) {
      float total = 0;
      for (int64_t k = 0, g = 0; k < m.K; k += kGroup8, ++g) {
        int32_t dot = 0;
        for (int64_t i = k; i < std::min(m.K, k + kGroup8); ++i) dot += int32_t{w[r * m.K + i]} * in.q[i];
        total += static_cast<float>(dot) * in.scale[g];
      }
      y[r] = total * scale[r];
    }
#endif
  }
};

struct RowsInt4 {
  static int64_t row_bytes(int64_t K) { return K / 2; }

  template <int R>
  static void dot(const Matrix& m, int64_t n, const Input& in, float* y) {
    const int64_t row = m.K / 2, groups = m.K / kGroup4;
    const uint8_t* w = static_cast<const uint8_t*>(m.weight) + n * row;
    const uint16_t* scale = static_cast<const uint16_t*>(m.scale) + n * groups;
#ifdef MINIMIND_VNNI
    const __m512i low = _mm512_set1_epi8(15);
    const __m256i fourfold = _mm256_set_epi16(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
    for (int64_t c = 0; c * 4 < groups; ++c) {
      const int64_t left = groups - c * 4;
      const __mmask64 mask = left >= 4 ? ~0ull : (1ull << (left * 16)) - 1;
      const __mmask8 scale_mask = left >= 4 ? 15 : static_cast<__mmask8>((1 << left) - 1);
      const __m512i x_first = _mm512_loadu_si512(in.q4.data() + c * kChunk4);
      const __m512i x_second = _mm512_loadu_si512(in.q4.data() + c * kChunk4 + 64);
      const __m512i start = _mm512_loadu_si512(in.start4.data() + c * 16);
      const __m512 x_scale = load16(in.scale4.data() + c * 16);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const uint8_t* p = w + r * row + c * 64;
        _mm_prefetch(reinterpret_cast<const char*>(p) + R * row_bytes(m.K), _MM_HINT_T0);
        const __m512i packed = _mm512_maskz_loadu_epi8(mask, p);
        const __m512i first = _mm512_and_si512(packed, low);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
        __m512i dot = _mm512_dpbusd_epi32(start, first, x_first);
        dot = _mm512_dpbusd_epi32(dot, second, x_second);
        const __m128i four = _mm_maskz_loadu_epi16(scale_mask, scale + r * groups + c * 4);
        const __m256i spread = _mm256_permutexvar_epi16(fourfold, _mm256_castsi128_si256(four));
        const __m512 factor = _mm512_mul_ps(_mm512_cvtph_ps(spread), x_scale);
        acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, acc[r]);
      }
    }
    store_sums<R>(acc, y);
#else
    for (int r = 0; r < R; ++r) {
      float total = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* p = w + r * row + g * 16;
        const int8_t* x = in.q.data() + g * kGroup4;
        int32_t dot = -8 * in.sum[g];
        for (int j = 0; j < 16; ++j) dot += int32_t{p[j] & 15} * x[j] + int32_t{p[j] >> 4} * x[j + 16];
        total += static_cast<float>(dot) * half_to_float(scale[r * groups + g]) * in.scale[g];
      }
      y[r] = total;
    }
#endif
  }
};

// The 32 values of a packed group.
template <class Float>
void expand_group(const uint8_t* packed, float scale, Float* out) {
#ifdef MINIMIND_AVX512
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)), low = _mm_set1_epi8(15);
  const __m128i halves[2] = {_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low)};
  for (int i = 0; i < 2; ++i) {
    const __m512i levels = _mm512_sub_epi32(_mm512_cvtepu8_epi32(halves[i]), _mm512_set1_epi32(8));
    store16(out + 16 * i, 0xffff, _mm512_mul_ps(_mm512_cvtepi32_ps(levels), _mm512_set1_ps(scale)));
  }
#else
  for (int j = 0; j < 16; ++j) {
    store(out + j, ((packed[j] & 15) - 8) * scale);
    store(out + j + 16, ((packed[j] >> 4) - 8) * scale);
  }
#endif
}

// y[b][n] for n in begin .. end and every input, through emit(b, n, count, sums).
template <class Rows, class Emit>
void rows_of(const Matrix& m, const Input* inputs, int64_t num_inputs, int64_t begin, int64_t end, const Emit& emit) {
  float y[4];
  int64_t n = begin;
  for (; n + 4 <= end; n += 4) {
    for (int64_t b = 0; b < num_inputs; ++b) {
      Rows::template dot<4>(m, n, inputs[b], y);
      emit(b, n, 4, y);
    }
  }
  for (; n < end; ++n) {
    for (int64_t b = 0; b < num_inputs; ++b) {
      Rows::template dot<1>(m, n, inputs[b], y);
      emit(b, n, 1, y);
    }
  }
}

template <class Emit>
void multiply(const Matrix& m, const Input* inputs, int64_t num_inputs, int64_t begin, int64_t end, const Emit& emit) {
  switch (m.kind) {
    case Kind::f32: return rows_of<RowsF32>(m, inputs, num_inputs, begin, end, emit);
    case Kind::bf16: return rows_of<RowsBf16>(m, inputs, num_inputs, begin, end, emit);
    case Kind::int8: return rows_of<RowsInt8>(m, inputs, num_inputs, begin, end, emit);
    default: return rows_of<RowsInt4>(m, inputs, num_inputs, begin, end, emit);
  }
}

}  // namespace minimind
