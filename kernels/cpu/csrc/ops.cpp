// The operators `minimind_cpu::*`: checks, output tensors, and the loops of the headers split over torch's own threads.
// Their meaning, shapes and errors are documented at their Python twins in kernels/cpu/ops.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "attention.h"
#include "matvec.h"
#include "step.h"
#include "team.h"

namespace minimind {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 4096;  // values per thread below which splitting costs more than it saves

void check_rows(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be a CPU tensor");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16, name,
                  " must be float32 or bfloat16");
}

// NOTE: a call into torch: never per element.
template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// A cache's keys or values [B, S, K, D], with the strides of its first three dimensions.
template <class Float>
struct Cached {
  const Float* data;
  int64_t batch, position, head;
};

struct AttentionShape {
  int64_t B, S, H, K, D;
};

// Groups of query heads in parallel, and runs of positions too where there are fewer groups than threads.
template <class Float>
void attend_split(const Float* q, Cached<Float> k, Cached<Float> v, Float* out, AttentionShape n) {
  constexpr int64_t kShortestRun = 128;
  const int64_t groups = n.B * n.K, repeats = n.H / n.K, threads = torch::stable::get_num_threads();
  const int64_t splits = std::clamp<int64_t>(std::min((threads + groups - 1) / std::max<int64_t>(groups, 1),
                                                      n.S / kShortestRun), 1, threads);
  const float scale = 1.0f / std::sqrt(static_cast<float>(n.D));
  std::vector<float> wide(n.B * n.H * n.D), parts(groups * splits * repeats * n.D);
  std::vector<Partial> partials(groups * splits * repeats);
  widen_all(q, wide.data(), n.B * n.H * n.D);
  torch::stable::parallel_for(0, groups * splits, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(kHeadBlock * (n.S / splits + 1));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit / splits, split = unit % splits, b = group / n.K, head = group % n.K;
      const int64_t from = n.S * split / splits, until = n.S * (split + 1) / splits;
      attend_run(wide.data() + group * repeats * n.D, repeats,
                 k.data + b * k.batch + head * k.head + from * k.position, k.position,
                 v.data + b * v.batch + head * v.head + from * v.position, v.position, until - from, n.D, scale,
                 scores.data(), parts.data() + unit * repeats * n.D, partials.data() + unit * repeats);
    }
  });
  for (int64_t h = 0; h < n.B * n.H; ++h) {
    const auto part = [&](int64_t split) { return (h / repeats * splits + split) * repeats + h % repeats; };
    merge(parts.data(), partials.data(), part, splits, n.D, out + h * n.D);
  }
}

// body(value of the tensor's element type)
template <class Body>
void with_format(const Tensor& t, const Body& body) {
  if (t.scalar_type() == ScalarType::Float) {
    body(float{});
  } else {
    body(Bf16{});
  }
}

int64_t grain_of_rows(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

std::tuple<Tensor, Tensor> norm_rows(const Tensor& x, const Tensor* residual, const Tensor& weight, double eps,
                                     bool cast_first) {
  check_rows(x, "input"), check_rows(weight, "weight");
  STD_TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && x.size(x.dim() - 1) == weight.size(0),
                  "weight must have the length of the input's last dimension");
  if (residual != nullptr) {
    check_rows(*residual, "residual");
    STD_TORCH_CHECK(residual->numel() == x.numel(), "residual must have the input's shape");
  }
  const int64_t width = weight.size(0), rows = width == 0 ? 0 : x.numel() / width;
  // NOTE: MiniMind2's order with an fp32 weight and a bf16 input gives fp32, as type promotion does.
  const bool widens = cast_first && weight.scalar_type() == ScalarType::Float;
  Tensor y = torch::stable::new_empty(x, x.sizes(), widens ? ScalarType::Float : x.scalar_type());
  Tensor sum = residual == nullptr ? y : torch::stable::empty_like(x);
  const auto run = [&](auto in, auto other, auto w, auto out) {
    using In = decltype(in);
    using Other = decltype(other);
    using Weight = decltype(w);
    using Out = decltype(out);
    const In* from = data<In>(x);
    const Other* before = residual == nullptr ? nullptr : data<Other>(*residual);
    In* total = data<In>(sum);
    const Weight* factor = data<Weight>(weight);
    Out* to = data<Out>(y);
    torch::stable::parallel_for(0, rows, grain_of_rows(width), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin * width; at < end * width; at += width) {
        if (before != nullptr) add(from + at, before + at, total + at, width);
        rms_norm((before == nullptr ? from : total) + at, factor, to + at, width, static_cast<float>(eps), cast_first,
                 sizeof(In) == 2);
      }
    });
  };
  with_format(x, [&](auto in) {
    with_format(residual == nullptr ? x : *residual, [&](auto other) {
      with_format(weight, [&](auto w) { with_format(y, [&](auto out) { run(in, other, w, out); }); });
    });
  });
  return {y, sum};
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps, bool cast_first) {
  return std::get<0>(norm_rows(x, nullptr, weight, eps, cast_first));
}

std::tuple<Tensor, Tensor> add_rms_norm_op(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps,
                                           bool cast_first) {
  return norm_rows(x, &residual, weight, eps, cast_first);
}

Tensor swiglu_op(const Tensor& gate, const Tensor& up) {
  check_rows(gate, "gate"), check_rows(up, "up");
  STD_TORCH_CHECK(gate.numel() == up.numel() && gate.scalar_type() == up.scalar_type(),
                  "gate and up must have one shape and dtype");
  Tensor y = torch::stable::empty_like(gate);
  with_format(gate, [&](auto value) {
    using Float = decltype(value);
    const Float *g = data<Float>(gate), *u = data<Float>(up);
    Float* to = data<Float>(y);
    torch::stable::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
      gated(Activation::silu, g + begin, u + begin, to + begin, end - begin);
    });
  });
  return y;
}

// y [M, N] = x [M, K] @ W.T for few rows, with the rows of W split over the threads.
Tensor product(const Tensor& x, const Matrix& m) {
  check_rows(x, "input");
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == m.K, "the input's last dimension must be the weight's second");
  const int64_t rows = m.K == 0 ? 0 : x.numel() / m.K;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = m.N;
  Tensor y = torch::stable::new_empty(x, {shape.data(), shape.size()});
  if (rows == 0 || m.N == 0) return y;
  with_format(x, [&](auto value) {
    using Float = decltype(value);
    std::vector<float> wide(rows * m.K);
    std::vector<Input> inputs(rows);
    widen_all(data<Float>(x), wide.data(), rows * m.K);
    for (int64_t r = 0; r < rows; ++r) inputs[r].prepare(m.kind, wide.data() + r * m.K, m.K);
    Float* to = data<Float>(y);
    const int64_t grain = std::max<int64_t>(16, 65536 / (m.K * rows + 1));
    torch::stable::parallel_for(0, m.N, grain, [&](int64_t begin, int64_t end) {
      multiply(m, inputs.data(), rows, begin, end, [&](int64_t b, int64_t n, int64_t count, const float* sums) {
        for (int64_t j = 0; j < count; ++j) store(to + b * m.N + n + j, sums[j]);
      });
    });
  });
  return y;
}

Tensor linear_op(const Tensor& x, const Tensor& weight) {
  check_rows(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 2, "weight must be [N, K]");
  const Kind kind = weight.scalar_type() == ScalarType::Float ? Kind::f32 : Kind::bf16;
  return product(x, {kind, weight.data_ptr(), nullptr, weight.size(0), weight.size(1)});
}

Tensor int8_linear_op(const Tensor& x, const Tensor& q, const Tensor& scale) {
  STD_TORCH_CHECK(q.dim() == 2 && q.is_contiguous() && q.scalar_type() == ScalarType::Char, "q must be int8 [N, K]");
  STD_TORCH_CHECK(scale.is_contiguous() && scale.numel() == q.size(0) && scale.scalar_type() == ScalarType::Float,
                  "scale must be float32 [N]");
  return product(x, {Kind::int8, q.data_ptr(), scale.data_ptr(), q.size(0), q.size(1)});
}

Tensor int4_linear_op(const Tensor& x, const Tensor& packed, const Tensor& scale) {
  STD_TORCH_CHECK(packed.dim() == 2 && packed.is_contiguous() && packed.scalar_type() == ScalarType::Byte,
                  "packed must be uint8 [N, K / 2]");
  const int64_t N = packed.size(0), K = packed.size(1) * 2;
  STD_TORCH_CHECK(K % kGroup4 == 0, "K must be a multiple of 32");
  STD_TORCH_CHECK(scale.is_contiguous() && scale.numel() == N * (K / kGroup4) &&
                      scale.scalar_type() == ScalarType::Half,
                  "scale must be float16 [N, K / 32]");
  return product(x, {Kind::int4, packed.data_ptr(), scale.data_ptr(), N, K});
}

// One row [K] of an int8 or int4 matrix per id, in fp32: an embedding that is stored quantised.
Tensor take_rows(const Tensor& ids, const Matrix& m, const Tensor& like) {
  STD_TORCH_CHECK(ids.is_contiguous() && ids.scalar_type() == ScalarType::Long, "ids must be contiguous int64");
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  shape.push_back(m.K);
  const int64_t* id = data<int64_t>(ids);
  for (int64_t i = 0; i < ids.numel(); ++i) {
    STD_TORCH_CHECK(id[i] >= 0 && id[i] < m.N, "token id ", id[i], " is outside the vocabulary of ", m.N);
  }
  Tensor out = torch::stable::new_empty(like, {shape.data(), shape.size()}, ScalarType::Float);
  float* to = data<float>(out);
  torch::stable::parallel_for(0, ids.numel(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row_of(m, id[i], to + i * m.K);
  });
  return out;
}

// Each row of x in 8 bits, symmetric: q [M, K] and scale [M] = max|row| / 127.
std::tuple<Tensor, Tensor> quantize_rows_op(const Tensor& x) {
  check_rows(x, "input");
  STD_TORCH_CHECK(x.dim() == 2, "input must be [M, K]");
  const int64_t M = x.size(0), K = x.size(1);
  Tensor q = torch::stable::new_empty(x, x.sizes(), ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, {&M, 1}, ScalarType::Float);
  with_format(x, [&](auto value) {
    using Float = decltype(value);
    const Float* from = data<Float>(x);
    int8_t* to = data<int8_t>(q);
    float* scales = data<float>(scale);
    torch::stable::parallel_for(0, M, grain_of_rows(K), [&](int64_t begin, int64_t end) {
      std::vector<float> row(K);
      std::vector<int8_t> padded(K + 16);
      for (int64_t r = begin; r < end; ++r) {
        widen_all(from + r * K, row.data(), K);
        Input::quantize_group(row.data(), K, K, padded.data(), scales + r);
        std::copy_n(padded.data(), K, to + r * K);
      }
    });
  });
  return {q, scale};
}

// The int4 matrix as bf16 or fp32.
Tensor expand_int4_op(const Tensor& packed, const Tensor& scale, bool half) {
  const int64_t N = packed.size(0), K = packed.size(1) * 2, groups = K / kGroup4;
  const std::vector<int64_t> shape{N, K};
  Tensor w = torch::stable::new_empty(packed, {shape.data(), 2}, half ? ScalarType::BFloat16 : ScalarType::Float);
  with_format(w, [&](auto value) {
    using Float = decltype(value);
    const uint8_t* from = data<uint8_t>(packed);
    const uint16_t* scales = data<uint16_t>(scale);
    Float* to = data<Float>(w);
    torch::stable::parallel_for(0, N * groups, 256, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) expand_group(from + g * 16, half_to_float(scales[g]), to + g * 32);
    });
  });
  return w;
}

bool multiplies_bf16_op() {
#if defined(MINIMIND_BF16) || defined(__AMX_BF16__)
  return true;
#else
  return false;
#endif
}

// Whether sums of int8 products are exact in oneDNN: without these instructions it adds pairs in 16 bits, which saturate.
bool multiplies_int8_op() {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || !defined(__x86_64__)
  return true;
#else
  return false;
#endif
}

Tensor int8_embedding_op(const Tensor& ids, const Tensor& q, const Tensor& scale) {
  return take_rows(ids, {Kind::int8, q.data_ptr(), scale.data_ptr(), q.size(0), q.size(1)}, scale);
}

Tensor int4_embedding_op(const Tensor& ids, const Tensor& packed, const Tensor& scale) {
  return take_rows(ids, {Kind::int4, packed.data_ptr(), scale.data_ptr(), packed.size(0), packed.size(1) * 2}, scale);
}

// Buffers of one new position's attention: q [B, 1, H, D], k and v [B, S, K, D] with any strides but the last.
Tensor decode_attention_op(const Tensor& q, const Tensor& k, const Tensor& v) {
  check_rows(q, "q");
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && q.size(1) == 1, "q must be [B, 1, H, D]");
  const int64_t B = q.size(0), H = q.size(2), D = q.size(3), S = k.size(1), K = k.size(2);
  for (const Tensor* t : {&k, &v}) {
    STD_TORCH_CHECK(t->is_cpu() && t->size(0) == B && t->size(1) == S && t->size(2) == K && t->size(3) == D &&
                        (t->stride(3) == 1 || D == 1) && t->scalar_type() == q.scalar_type(),
                    "k and v must be [B, S, K, D] with contiguous lines, in q's dtype");
  }
  STD_TORCH_CHECK(S > 0 && K > 0 && H % K == 0, "attention needs positions, and K must divide H");
  Tensor out = torch::stable::empty_like(q);
  with_format(q, [&](auto value) {
    using Float = decltype(value);
    const Cached<Float> keys{data<Float>(k), k.stride(0), k.stride(1), k.stride(2)};
    const Cached<Float> values{data<Float>(v), v.stride(0), v.stride(1), v.stride(2)};
    attend_split(data<Float>(q), keys, values, data<Float>(out), {B, S, H, K, D});
  });
  return out;
}

Tensor decode_step_op(const Tensor& plan, const Tensor& ids, const std::vector<Tensor>& keys,
                      const std::vector<Tensor>& values, int64_t start, int64_t vocab_size) {
  PlanReader reader(data<int64_t>(plan), plan.numel());
  const Model model = read_plan(reader);
  STD_TORCH_CHECK(reader.at_end() && static_cast<int64_t>(model.layers.size()) == model.num_layers,
                  "the plan does not have the length that it should");
  STD_TORCH_CHECK(vocab_size == model.V, "vocab_size is not that of the plan");
  STD_TORCH_CHECK(static_cast<int64_t>(keys.size()) == model.num_layers && keys.size() == values.size() && !keys.empty(),
                  "one key and one value buffer per layer are needed");
  STD_TORCH_CHECK(ids.dim() == 2 && ids.size(1) == 1 && ids.is_contiguous() && ids.scalar_type() == ScalarType::Long,
                  "ids must be contiguous int64 [B, 1]");
  const int64_t B = ids.size(0), M = keys[0].size(2);
  const ScalarType format = model.half ? ScalarType::BFloat16 : ScalarType::Float;
  for (const auto* buffers : {&keys, &values}) {
    for (const Tensor& t : *buffers) {
      STD_TORCH_CHECK(t.is_contiguous() && t.dim() == 4 && t.size(0) == B && t.size(1) == model.K && t.size(2) == M &&
                          t.size(3) == model.D && t.scalar_type() == format,
                      "each cache buffer must be contiguous [B, K, M, D] in the model's format");
    }
  }
  STD_TORCH_CHECK(start >= 0 && start < M, "the cache is full: position ", start, " of ", M);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t id = data<int64_t>(ids)[b];
    STD_TORCH_CHECK(id >= 0 && id < model.V, "token id ", id, " is outside the vocabulary of ", model.V);
  }
  Tensor logits = torch::stable::new_empty(keys[0], {B, 1, model.V});
  if (B == 0) return logits;
  const auto run = [&](auto value) {
    using Float = decltype(value);
    std::vector<Float*> k, v;
    for (int64_t i = 0; i < model.num_layers; ++i) k.push_back(data<Float>(keys[i])), v.push_back(data<Float>(values[i]));
    Step<Float> step(model, data<int64_t>(ids), B, std::move(k), std::move(v), M, start, data<Float>(logits));
    run_team([&](Team& team, int64_t rank) { step.run(team, rank); });
  };
  model.half ? run(Bf16{}) : run(float{});
  return logits;
}

}  // namespace
}  // namespace minimind

STABLE_TORCH_LIBRARY(minimind_cpu, m) {
  m.def("rms_norm(Tensor input, Tensor weight, float eps, bool cast_first) -> Tensor");
  m.def("add_rms_norm(Tensor input, Tensor residual, Tensor weight, float eps, bool cast_first) -> (Tensor, Tensor)");
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("linear(Tensor input, Tensor weight) -> Tensor");
  m.def("int8_linear(Tensor input, Tensor q, Tensor scale) -> Tensor");
  m.def("int4_linear(Tensor input, Tensor packed, Tensor scale) -> Tensor");
  m.def("int8_embedding(Tensor ids, Tensor q, Tensor scale) -> Tensor");
  m.def("int4_embedding(Tensor ids, Tensor packed, Tensor scale) -> Tensor");
  m.def(
      "decode_step(Tensor plan, Tensor ids, Tensor(a!)[] keys, Tensor(b!)[] values, int start, int vocab_size) -> Tensor");
  m.def("decode_attention(Tensor q, Tensor k, Tensor v) -> Tensor");
  m.def("quantize_rows(Tensor input) -> (Tensor, Tensor)");
  m.def("expand_int4(Tensor packed, Tensor scale, bool half) -> Tensor");
  m.def("multiplies_bf16() -> bool");
  m.def("multiplies_int8() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(minimind_cpu, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&minimind::rms_norm_op));
  m.impl("add_rms_norm", TORCH_BOX(&minimind::add_rms_norm_op));
  m.impl("swiglu", TORCH_BOX(&minimind::swiglu_op));
  m.impl("linear", TORCH_BOX(&minimind::linear_op));
  m.impl("int8_linear", TORCH_BOX(&minimind::int8_linear_op));
  m.impl("int4_linear", TORCH_BOX(&minimind::int4_linear_op));
  m.impl("int8_embedding", TORCH_BOX(&minimind::int8_embedding_op));
  m.impl("int4_embedding", TORCH_BOX(&minimind::int4_embedding_op));
  m.impl("decode_attention", TORCH_BOX(&minimind::decode_attention_op));
  m.impl("quantize_rows", TORCH_BOX(&minimind::quantize_rows_op));
  m.impl("expand_int4", TORCH_BOX(&minimind::expand_int4_op));
  m.impl("decode_step", TORCH_BOX(&minimind::decode_step_op));
}

STABLE_TORCH_LIBRARY_IMPL(minimind_cpu, CompositeExplicitAutograd, m) {
  m.impl("multiplies_bf16", TORCH_BOX(&minimind::multiplies_bf16_op));
  m.impl("multiplies_int8", TORCH_BOX(&minimind::multiplies_int8_op));
}
