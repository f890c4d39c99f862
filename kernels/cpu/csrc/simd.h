// Vector arithmetic for the CPU kernels: AVX-512 where the compiler targets it, plain loops elsewhere.
//
// Everything works on fp32; bf16 is a storage format. `Float` below means float or Bf16. Sums run in a fixed order,
// so a result depends on the machine's vector width but not on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MINIMIND_AVX512 1
#include <immintrin.h>
#endif
#if defined(MINIMIND_AVX512) && defined(__AVX512VNNI__)
#define MINIMIND_VNNI 1
#endif
#if defined(MINIMIND_AVX512) && defined(__AVX512BF16__)
#define MINIMIND_BF16 1
#endif

namespace minimind {

struct Bf16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(Bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest, ties to even; a NaN stays one.
inline Bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline void store(float* to, float x) { *to = x; }
inline void store(Bf16* to, float x) { *to = to_bf16(x); }

// IEEE half to float, for scales only.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
  if (exponent == 0) {
    const float tiny = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -tiny : tiny;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

#ifdef MINIMIND_AVX512

inline __mmask16 lanes(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }
inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load16(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
inline __m512 widen16(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline __m512 load16(const Bf16* p) { return widen16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline __m512 load16(const Bf16* p, __mmask16 m) { return widen16(_mm256_maskz_loadu_epi16(m, p)); }
inline void store16(float* p, __mmask16 m, __m512 x) { _mm512_mask_storeu_ps(p, m, x); }
inline __m256i narrow16(__m512 x) {
#ifdef MINIMIND_BF16
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i kept = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded,
                                               _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
}
inline void store16(Bf16* p, __mmask16 m, __m512 x) { _mm256_mask_storeu_epi16(p, m, narrow16(x)); }

// The four sums of the lanes of four vectors.
inline __m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const auto fold = [](__m512 x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); };
  const __m256 ab = _mm256_hadd_ps(fold(a), fold(b)), cd = _mm256_hadd_ps(fold(c), fold(d));
  const __m256 abcd = _mm256_hadd_ps(ab, cd);
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

// exp(x), within 2 units in the last place; 0 and infinity beyond fp32's range. Range reduction and polynomial of
// degree 6 (Taylor, on +-ln 2 / 2).
inline __m512 exp16(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-110.0f), _mm512_min_ps(_mm512_set1_ps(100.0f), x));  // a NaN passes both
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

#endif  // MINIMIND_AVX512

template <class Float>
void widen_all(const Float* from, float* to, int64_t n) {
#ifdef MINIMIND_AVX512
  for (int64_t i = 0; i < n; i += 16) store16(to + i, lanes(n - i), load16(from + i, lanes(n - i)));
#else
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
#endif
}

template <class Float>
float sum_of_squares(const Float* x, int64_t n) {
#ifdef MINIMIND_AVX512
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 v = load16(x + i, lanes(n - i));  // masked lanes are 0
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  return _mm512_reduce_add_ps(sum);
#else
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += widen(x[i]) * widen(x[i]);
  return sum;
#endif
}

// sum = a + b, rounded to sum's format
template <class A, class B>
void add(const A* a, const B* b, A* sum, int64_t n) {
#ifdef MINIMIND_AVX512
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes(n - i);
    store16(sum + i, m, _mm512_add_ps(load16(a + i, m), load16(b + i, m)));
  }
#else
  for (int64_t i = 0; i < n; ++i) store(sum + i, widen(a[i]) + widen(b[i]));
#endif
}

// y = x / sqrt(mean(x^2) + eps) * weight. `cast_first` is MiniMind2's order; with `to_half` it rounds to bf16 before it
// multiplies.
template <class In, class Weight, class Out>
void rms_norm(const In* x, const Weight* weight, Out* y, int64_t n, float eps, bool cast_first, bool to_half) {
  const float inverse = 1.0f / std::sqrt(sum_of_squares(x, n) / static_cast<float>(n) + eps);
  const bool rounds = cast_first && to_half;
#ifdef MINIMIND_AVX512
  const __m512 factor = _mm512_set1_ps(inverse);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes(n - i);
    __m512 v = _mm512_mul_ps(load16(x + i, m), factor);
    if (rounds) v = widen16(narrow16(v));
    store16(y + i, m, _mm512_mul_ps(v, load16(weight + i, m)));
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    float v = widen(x[i]) * inverse;
    if (rounds) v = widen(to_bf16(v));
    store(y + i, v * widen(weight[i]));
  }
#endif
}

enum class Activation : int64_t { silu = 0, gelu = 1, relu = 2, gelu_tanh = 3 };

inline float activate(Activation kind, float x) {
  switch (kind) {
    case Activation::silu: return x / (1.0f + std::exp(-x));
    case Activation::gelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    case Activation::relu: return x > 0 ? x : 0;
    default: return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
  }
}

// y = activation(gate) * up
template <class Float>
void gated(Activation kind, const Float* gate, const Float* up, Float* y, int64_t n) {
  int64_t i = 0;
#ifdef MINIMIND_AVX512
  for (; kind == Activation::silu && i < n; i += 16) {
    const __mmask16 m = lanes(n - i);
    const __m512 g = load16(gate + i, m);
    const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), g));
    __m512 s = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
    if (sizeof(Float) == 2) s = widen16(narrow16(s));
    store16(y + i, m, _mm512_mul_ps(s, load16(up + i, m)));
  }
#endif
  for (; i < n; ++i) {
    float s = activate(kind, widen(gate[i]));
    if (sizeof(Float) == 2) s = widen(to_bf16(s));
    store(y + i, s * widen(up[i]));
  }
}

}  // namespace minimind
