// One decode step of a whole dense MiniMind: token ids in, logits out, the cache extended by one position.
//
// All layers run in one parallel region with four or five barriers per layer. Every thread computes the small things
// (norms, quantising activations) for itself, because a barrier costs more; matrices are split by rows, attention by
// heads. The residual stream stays fp32 whatever the weights are; keys and values are rounded to the cache's format.
#pragma once

#include <memory>

#include "attention.h"
#include "matvec.h"
#include "team.h"

namespace minimind {

struct Layer {
  const float *input_norm, *post_norm, *q_norm, *k_norm;  // q_norm and k_norm null in MiniMind2
  Matrix q, k, v, o, gate, up, down;
};

// What `plan` in kernels/decode_step.py writes, field by field, as int64.
struct Model {
  int64_t num_layers, E, H, K, D, F, V;
  Activation activation;
  float eps;
  bool half;  // bf16 tables, cache and logits
  const void *cos, *sin;
  Matrix embedding, head;
  const float* norm;
  std::vector<Layer> layers;
};

class PlanReader {
 public:
  PlanReader(const int64_t* values, int64_t count) : at_(values), end_(values + count) {}

  int64_t number() { return at_ < end_ ? *at_++ : 0; }

  template <class T>
  const T* pointer() {
    return reinterpret_cast<const T*>(number());
  }

  Matrix matrix() {
    Matrix m;
    m.kind = static_cast<Kind>(number());
    m.weight = pointer<void>();
    m.scale = pointer<void>();
    m.N = number();
    m.K = number();
    return m;
  }

  bool at_end() const { return at_ == end_; }

 private:
  const int64_t *at_, *end_;
};

inline Model read_plan(PlanReader& r) {
  Model m;
  m.num_layers = r.number(), m.E = r.number(), m.H = r.number(), m.K = r.number(), m.D = r.number();
  m.F = r.number(), m.V = r.number();
  m.activation = static_cast<Activation>(r.number());
  const uint32_t eps_bits = static_cast<uint32_t>(r.number());
  std::memcpy(&m.eps, &eps_bits, 4);
  m.half = r.number() != 0;
  m.cos = r.pointer<void>(), m.sin = r.pointer<void>();
  m.embedding = r.matrix(), m.head = r.matrix();
  m.norm = r.pointer<float>();
  for (int64_t i = 0; i < m.num_layers && !r.at_end(); ++i) {
    Layer l;
    l.input_norm = r.pointer<float>(), l.post_norm = r.pointer<float>();
    l.q_norm = r.pointer<float>(), l.k_norm = r.pointer<float>();
    l.q = r.matrix(), l.k = r.matrix(), l.v = r.matrix(), l.o = r.matrix();
    l.gate = r.matrix(), l.up = r.matrix(), l.down = r.matrix();
    m.layers.push_back(l);
  }
  return m;
}

// One row of a matrix in fp32: the embedding of a token.
inline void row_of(const Matrix& m, int64_t n, float* out) {
  for (int64_t k = 0; k < m.K; ++k) {
    switch (m.kind) {
      case Kind::f32: out[k] = static_cast<const float*>(m.weight)[n * m.K + k]; break;
      case Kind::bf16: out[k] = widen(static_cast<const Bf16*>(m.weight)[n * m.K + k]); break;
      case Kind::int8:
        out[k] = static_cast<const int8_t*>(m.weight)[n * m.K + k] * static_cast<const float*>(m.scale)[n];
        break;
      default: {
        const uint8_t byte = static_cast<const uint8_t*>(m.weight)[n * m.K / 2 + k / 32 * 16 + k % 16];
        const int value = (k % 32 < 16 ? byte & 15 : byte >> 4) - 8;
        out[k] = value * half_to_float(static_cast<const uint16_t*>(m.scale)[n * (m.K / 32) + k / 32]);
      }
    }
  }
}

// `Float` is the format of the tables, the cache and the logits. keys[layer], values[layer]: [B, K, M, D].
template <class Float>
class Step {
 public:
  Step(const Model& model, const int64_t* ids, int64_t batch, std::vector<Float*> keys, std::vector<Float*> values,
       int64_t max_length, int64_t start, Float* logits)
      : m_(model), ids_(ids), B_(batch), keys_(std::move(keys)), values_(std::move(values)), max_length_(max_length),
        start_(start), logits_(logits), qkv_width_((model.H + 2 * model.K) * model.D) {
    x_.resize(B_ * m_.E), qkv_.resize(B_ * qkv_width_), attended_.resize(B_ * m_.H * m_.D);
    gate_.resize(B_ * m_.F), up_.resize(B_ * m_.F);
    for (int64_t b = 0; b < B_; ++b) row_of(m_.embedding, ids_[b], x_.data() + b * m_.E);
  }

  void run(Team& team, int64_t rank) {
    Member me{team, rank, std::vector<float>(B_ * std::max({m_.E, m_.F, m_.H * m_.D})), std::vector<Input>(B_),
              std::vector<float>(kHeadBlock * (start_ + 1)), std::vector<Partial>(m_.H)};
    for (int64_t i = 0; i < m_.num_layers; ++i) {
      const Layer& layer = m_.layers[i];
      project(me, layer);
      team.barrier();
      extend_cache(me, layer, i);
      attend(me, i);
      team.barrier();
      add_product(me, layer.o, attended_.data());
      team.barrier();
      feed_forward(me, layer);
      team.barrier();
      add_product(me, layer.down, gate_.data());
      team.barrier();
    }
    predict(me);
  }

 private:
  struct Member {
    Team& team;
    int64_t rank;
    std::vector<float> hidden;
    std::vector<Input> inputs;
    std::vector<float> scores;
    std::vector<Partial> partials;

    Range share_of(int64_t n, int64_t block) const { return share(n, block, rank, team.size); }
  };

  // me.inputs <- norm(x), in the form that `kind` multiplies with.
  void norm_inputs(Member& me, const float* weight, Kind kind) {
    for (int64_t b = 0; b < B_; ++b) {
      float* h = me.hidden.data() + b * m_.E;
      rms_norm(x_.data() + b * m_.E, weight, h, m_.E, m_.eps, false, false);
      me.inputs[b].prepare(kind, h, m_.E);
    }
  }

  // Rows of `m` that fall into this member's share of a longer row range, which begins at `offset` with m's first row.
  void slice(Member& me, const Matrix& m, Range mine, int64_t offset, float* out, int64_t width) {
    const int64_t begin = std::clamp<int64_t>(mine.begin - offset, 0, m.N);
    const int64_t end = std::clamp<int64_t>(mine.end - offset, 0, m.N);
    multiply(m, me.inputs.data(), B_, begin, end, [&](int64_t b, int64_t n, int64_t count, const float* y) {
      std::copy_n(y, count, out + b * width + offset + n);
    });
  }

  void project(Member& me, const Layer& layer) {
    norm_inputs(me, layer.input_norm, layer.q.kind);
    const Range mine = me.share_of(qkv_width_, 4);
    slice(me, layer.q, mine, 0, qkv_.data(), qkv_width_);
    slice(me, layer.k, mine, m_.H * m_.D, qkv_.data(), qkv_width_);
    slice(me, layer.v, mine, (m_.H + m_.K) * m_.D, qkv_.data(), qkv_width_);
  }

  void turn(float* head, const float* norm) {
    if (norm != nullptr) rms_norm(head, norm, head, m_.D, m_.eps, false, false);
    rotate(head, static_cast<const Float*>(m_.cos) + start_ * m_.D, static_cast<const Float*>(m_.sin) + start_ * m_.D,
           m_.D);
  }

  // This member's key/value heads of the new position, into the cache.
  void extend_cache(Member& me, const Layer& layer, int64_t i) {
    const Range mine = me.share_of(B_ * m_.K, 1);
    for (int64_t g = mine.begin; g < mine.end; ++g) {
      float* k = qkv_.data() + g / m_.K * qkv_width_ + (m_.H + g % m_.K) * m_.D;
      const float* v = k + m_.K * m_.D;
      turn(k, layer.k_norm);
      const int64_t line = (g * max_length_ + start_) * m_.D;
      for (int64_t d = 0; d < m_.D; ++d) store(keys_[i] + line + d, k[d]), store(values_[i] + line + d, v[d]);
    }
    const Range heads = me.share_of(B_ * m_.H, 1);
    for (int64_t h = heads.begin; h < heads.end; ++h) {
      turn(qkv_.data() + h / m_.H * qkv_width_ + h % m_.H * m_.D, layer.q_norm);
    }
    // Where the split of the query heads follows that of the key/value heads, each member reads what it wrote.
    if (B_ * m_.K % me.team.size != 0) me.team.barrier();
  }

  void attend(Member& me, int64_t i) {
    const Range mine = me.share_of(B_ * m_.H, 1);
    const int64_t repeats = m_.H / m_.K, length = start_ + 1;
    for (int64_t h = mine.begin; h < mine.end;) {
      const int64_t group = h / repeats, until = std::min(mine.end, (group + 1) * repeats);
      const float* q = qkv_.data() + h / m_.H * qkv_width_ + h % m_.H * m_.D;
      const int64_t base = group * max_length_ * m_.D;
      float* out = attended_.data() + h * m_.D;
      attend_run(q, until - h, keys_[i] + base, m_.D, values_[i] + base, m_.D, length, m_.D,
                 1.0f / std::sqrt(static_cast<float>(m_.D)), me.scores.data(), out, me.partials.data());
      for (int64_t j = h; j < until; ++j) {
        const float inverse = 1.0f / me.partials[j - h].sum;
        for (int64_t d = 0; d < m_.D; ++d) out[(j - h) * m_.D + d] *= inverse;
      }
      h = until;
    }
  }

  // x += W @ from
  void add_product(Member& me, const Matrix& m, const float* from) {
    for (int64_t b = 0; b < B_; ++b) me.inputs[b].prepare(m.kind, from + b * m.K, m.K);
    const Range mine = me.share_of(m.N, 4);
    multiply(m, me.inputs.data(), B_, mine.begin, mine.end, [&](int64_t b, int64_t n, int64_t count, const float* y) {
      for (int64_t j = 0; j < count; ++j) x_[b * m_.E + n + j] += y[j];
    });
  }

  // gate_ <- activation(gate) * up
  void feed_forward(Member& me, const Layer& layer) {
    norm_inputs(me, layer.post_norm, layer.gate.kind);
    const Range mine = me.share_of(m_.F, 16);
    slice(me, layer.gate, mine, 0, gate_.data(), m_.F);
    slice(me, layer.up, mine, 0, up_.data(), m_.F);
    for (int64_t b = 0; b < B_; ++b) {
      const int64_t at = b * m_.F + mine.begin;
      gated(m_.activation, gate_.data() + at, up_.data() + at, gate_.data() + at, mine.end - mine.begin);
    }
  }

  void predict(Member& me) {
    norm_inputs(me, m_.norm, m_.head.kind);
    const Range mine = me.share_of(m_.V, 4);
    multiply(m_.head, me.inputs.data(), B_, mine.begin, mine.end,
             [&](int64_t b, int64_t n, int64_t count, const float* y) {
               for (int64_t j = 0; j < count; ++j) store(logits_ + b * m_.V + n + j, y[j]);
             });
  }

  const Model& m_;
  const int64_t* ids_;
  int64_t B_;
  std::vector<Float*> keys_, values_;
  int64_t max_length_, start_;
  Float* logits_;
  int64_t qkv_width_;
  std::vector<float> x_, qkv_, attended_, gate_, up_;
};

}  // namespace minimind
