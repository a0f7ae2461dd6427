// SPDX-License-Identifier: MIT
/// \file
/// posbias for Python's ctypes, to be timed beside Python packages on the memory of their tensors. Not an interface for
/// anything else.
///
/// All tensors are row-major and of float: x (B, L, H); q, k, v (B, L, NH, H); masks (B, NH, L, L). A module is made once
/// and called often; `threads` is the number of threads that a call works on. What throws ends the program, with the
/// exception's message.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <posbias/parallel/thread_pool.hpp>
#include <posbias/posbias.hpp>
#include <string_view>
#include <utility>

namespace {

using namespace posbias;
template <int Rank>
using Map = Eigen::TensorMap<Eigen::Tensor<float, Rank, Eigen::RowMajor>>;

struct Shape {
  std::int64_t B, L, NH, H;
};

Map<3> tokens(float* data, const Shape& s) {
  return {data, s.B, s.L, s.H};
}
Map<4> heads(float* data, const Shape& s) {
  return {data, s.B, s.L, s.NH, s.H};
}
Map<4> logits(float* data, const Shape& s) {
  return {data, s.B, s.NH, s.L, s.L};
}

/// Pools are kept, as a program would keep its own.
Executor on(int threads) {
  static std::map<int, ThreadPool> pools;
  return threads > 1 ? Executor(pools.try_emplace(threads, threads).first->second) : Executor();
}

/// A module or layer behind one pointer.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual void load(std::string_view name, const float* values) = 0;
  virtual void take_gradient(std::string_view name, float* values) = 0;
};

/// What is learned, with its gradients.
template <class Base, class Owner>
class Learned : public Base {
 public:
  explicit Learned(Owner owner) : owner_(std::move(owner)), gradients_(owner_.zero_gradients()) {}

  void load(std::string_view name, const float* values) override {
    for_each_parameter(owner_, [&](std::string_view each, auto& tensor) {
      if (each == name) std::copy_n(values, tensor.size(), tensor.data());
    });
  }
  /// Copies a gradient, and starts its sum again.
  void take_gradient(std::string_view name, float* values) override {
    for_each_parameter(gradients_, [&](std::string_view each, auto& tensor) {
      if (each != name) return;
      std::copy_n(tensor.data(), tensor.size(), values);
      std::fill_n(tensor.data(), tensor.size(), 0.0F);
    });
  }

 protected:
  Owner owner_;
  typename Owner::Gradients gradients_;
};

/// What attention reads and writes.
struct AttentionData {
  float *out, *q, *k, *v, *log_sum_exp;
};
struct AttentionGradients {
  float *q, *k, *v, *out;
};

class AnyModule : public Subject {
 public:
  virtual void reserve(Index length) = 0;
  virtual void mod_x(float* x, const Shape&, const TokenPositions&) const = 0;
  virtual void mod_x_backward(float* grad_x, const Shape&, const TokenPositions&) = 0;
  virtual void mod_qkv(float* q, float* k, const Shape&, const PairPositions&) const = 0;
  virtual void mod_qkv_backward(float* grad_q, float* grad_k, float* q, float* k, const Shape&,
                                const PairPositions&) = 0;
  virtual void mod_mask(float* mask, float* q, const Shape&, const PairPositions&) const = 0;
  virtual void mod_mask_backward(float* grad_mask, float* grad_q, float* q, const Shape&, const PairPositions&) = 0;
  virtual void bias(Index length, const PairPositions&, float* copy) const = 0;
  virtual void attend(const AttentionData&, const Shape&, const AttentionOptions&) const = 0;
  virtual void attend_backward(const AttentionGradients&, const AttentionData&, const Shape&,
                               const AttentionOptions&) = 0;
};

template <class M>
class Held final : public Learned<AnyModule, M> {
 public:
  using Learned<AnyModule, M>::Learned;

  /// Makes the table of a module that can keep one.
  void reserve(Index length) override {
    if constexpr (requires { this->owner_.reserve(length); }) this->owner_.reserve(length);
  }

  void mod_x(float* x, const Shape& s, const TokenPositions& at) const override { module().mod_x(tokens(x, s), at); }
  void mod_x_backward(float* grad_x, const Shape& s, const TokenPositions& at) override {
    module().mod_x_backward(tokens(grad_x, s), at, this->gradients_);
  }

  void mod_qkv(float* q, float* k, const Shape& s, const PairPositions& at) const override {
    module().mod_qkv(heads(q, s), heads(k, s), heads(k, s), at);
  }
  void mod_qkv_backward(float* grad_q, float* grad_k, float* q, float* k, const Shape& s,
                        const PairPositions& at) override {
    module().mod_qkv_backward(heads(grad_q, s), heads(grad_k, s), heads(grad_k, s), heads(q, s), heads(k, s),
                              heads(k, s), at, this->gradients_);
  }

  void mod_mask(float* mask, float* q, const Shape& s, const PairPositions& at) const override {
    module().mod_mask(logits(mask, s), heads(q, s), heads(q, s), heads(q, s), at);
  }
  void mod_mask_backward(float* grad_mask, float* grad_q, float* q, const Shape& s, const PairPositions& at) override {
    module().mod_mask_backward(logits(grad_mask, s), heads(grad_q, s), heads(grad_q, s), heads(grad_q, s), heads(q, s),
                               heads(q, s), heads(q, s), at, this->gradients_);
  }

  /// Makes the bias, copies it if somebody wants to see it, and throws it away.
  void bias(Index length, const PairPositions& at, float* copy) const override {
    if constexpr (requires { this->owner_.bias(length, length, at); }) {
      const auto result = module().bias(length, length, at);
      if (copy != nullptr) std::copy_n(result.data(), result.size(), copy);
    }
  }

  void attend(const AttentionData& d, const Shape& s, const AttentionOptions& options) const override {
    attention(heads(d.out, s), heads(d.q, s), heads(d.k, s), heads(d.v, s), module(), options, sums(d, s));
  }
  void attend_backward(const AttentionGradients& g, const AttentionData& d, const Shape& s,
                       const AttentionOptions& options) override {
    attention_backward(heads(g.q, s), heads(g.k, s), heads(g.v, s), heads(g.out, s), heads(d.out, s), heads(d.q, s),
                       heads(d.k, s), heads(d.v, s), module(), options, this->gradients_, sums(d, s));
  }

 private:
  [[nodiscard]] const M& module() const { return this->owner_; }
  static Map<3> sums(const AttentionData& d, const Shape& s) { return {d.log_sum_exp, s.B, s.NH, s.L}; }
};

template <class M>
AnyModule* hold(const typename M::Options& options) {
  return std::make_unique<Held<M>>(M(options)).release();
}

/// RelativeAttention of x to itself, with relative positions (B, L, L, 1) and all terms.
class Layer final : public Learned<Subject, RelativeAttention<float>> {
 public:
  using Learned::Learned;

  void forward(float* pooled, float* logits, float* x, std::int64_t* relative, const Shape& s, int threads) const {
    owner_.forward(tokens(pooled, s), all_logits(logits, s), tokens(x, s), tokens(x, s), tokens(x, s),
                   call(relative, s, threads));
  }
  void backward(float* grad_x, float* grad_pooled, float* logits, float* x, std::int64_t* relative, const Shape& s,
                int threads) {
    owner_.backward(tokens(grad_x, s), tokens(grad_x, s), tokens(grad_x, s), tokens(grad_pooled, s),
                    all_logits(logits, s), tokens(x, s), tokens(x, s), tokens(x, s), call(relative, s, threads),
                    gradients_);
  }

 private:
  static Map<4> all_logits(float* data, const Shape& s) { return {data, s.B, s.L, s.L, s.NH}; }
  static RelativeAttentionCall call(std::int64_t* relative, const Shape& s, int threads) {
    using Relative = Eigen::TensorMap<Eigen::Tensor<std::int64_t, 4, Eigen::RowMajor>>;
    return {.relative_positions = Relative(relative, s.B, s.L, s.L, 1), .executor = on(threads)};
  }
};

}  // namespace

extern "C" {

AnyModule* sinusoidal(std::int64_t dim, bool half) {
  return hold<Sinusoidal<float>>({.dim = dim, .layout = half ? SinusoidLayout::half : SinusoidLayout::interleaved});
}
AnyModule* learned_vocab(std::int64_t dim, std::int64_t length) {
  return hold<LearnedVocab<float>>({.dim = dim, .max_seq_len = length});
}
AnyModule* learned_continuous(std::int64_t dim, std::int64_t depth, double divide) {
  return hold<LearnedContinuous<float>>({.dim = dim, .depth = depth, .divide = divide});
}
AnyModule* rotary(std::int64_t head_dim, bool half) {
  return hold<Rotary<float>>(
      {.head_dim = head_dim, .pairing = half ? RotaryPairing::half : RotaryPairing::interleaved});
}
AnyModule* alibi(std::int64_t n_heads) {
  return hold<ALiBi<float>>({.n_heads = n_heads});
}
AnyModule* relative_position_bias(std::int64_t n_heads) {
  return hold<RelativePositionBias<float>>({.n_heads = n_heads});
}
AnyModule* dynamic_position_bias(std::int64_t dim, std::int64_t n_heads, std::int64_t depth) {
  return hold<DynamicPositionBias<float>>({.dim = dim, .n_heads = n_heads, .depth = depth});
}
AnyModule* transformer_xl(std::int64_t dim, std::int64_t n_heads, bool bio_attention) {
  return hold<TransformerXL<float>>(
      {.dim = dim, .n_heads = n_heads, .form = bio_attention ? XLForm::bio_attention : XLForm::paper});
}
Layer* relative_attention(std::int64_t size, std::int64_t n_heads, std::int64_t n_positions) {
  return std::make_unique<Layer>(
             RelativeAttention<float>({.size = size, .n_heads = n_heads, .n_positions = n_positions}))
      .release();
}

void load(Subject* subject, const char* name, const float* values) {
  subject->load(name, values);
}
void take_gradient(Subject* subject, const char* name, float* values) {
  subject->take_gradient(name, values);
}
void release(Subject* subject) {
  delete subject;
}

void reserve(AnyModule* module, std::int64_t length) {
  module->reserve(length);
}
void mod_x(AnyModule* module, float* x, Shape shape, int threads) {
  module->mod_x(x, shape, {.executor = on(threads)});
}
void mod_x_backward(AnyModule* module, float* grad_x, Shape shape, int threads) {
  module->mod_x_backward(grad_x, shape, {.executor = on(threads)});
}
void mod_qkv(AnyModule* module, float* q, float* k, std::int64_t start, Shape shape, int threads) {
  module->mod_qkv(q, k, shape, {.q_k = Positions::range(start), .executor = on(threads)});
}
void mod_qkv_backward(AnyModule* module, float* grad_q, float* grad_k, float* q, float* k, Shape shape, int threads) {
  module->mod_qkv_backward(grad_q, grad_k, q, k, shape, {.executor = on(threads)});
}
void mod_mask(AnyModule* module, float* mask, float* q, Shape shape, int threads) {
  module->mod_mask(mask, q, shape, {.executor = on(threads)});
}
void mod_mask_backward(AnyModule* module, float* grad_mask, float* grad_q, float* q, Shape shape, int threads) {
  module->mod_mask_backward(grad_mask, grad_q, q, shape, {.executor = on(threads)});
}
void bias(AnyModule* module, std::int64_t length, int threads, float* copy) {
  module->bias(length, {.executor = on(threads)}, copy);
}

void attend(AnyModule* module, AttentionData data, Shape shape, bool causal, int threads) {
  module->attend(data, shape, {.causal = causal, .executor = on(threads)});
}
void attend_backward(AnyModule* module, AttentionGradients gradients, AttentionData data, Shape shape, bool causal,
                     int threads) {
  module->attend_backward(gradients, data, shape, {.causal = causal, .executor = on(threads)});
}

void layer_forward(Layer* layer, float* pooled, float* logits, float* x, std::int64_t* relative, Shape shape,
                   int threads) {
  layer->forward(pooled, logits, x, relative, shape, threads);
}
void layer_backward(Layer* layer, float* grad_x, float* grad_pooled, float* logits, float* x, std::int64_t* relative,
                    Shape shape, int threads) {
  layer->backward(grad_x, grad_pooled, logits, x, relative, shape, threads);
}

void t5_buckets(const std::int64_t* relative, std::int64_t* buckets, std::int64_t count) {
  const auto size = static_cast<std::size_t>(count);
  t5_bucket(std::span(relative, size), std::span(buckets, size));
}

}  // extern "C"
