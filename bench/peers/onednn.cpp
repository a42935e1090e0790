// bench/peers/onednn.cpp: the formula by oneDNN's primitives: matmul, softmax, matmul; native
// bfloat16 too.
// SPDX-License-Identifier: MIT

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "fastest.h"
#include "peer.h"

namespace bench {
namespace {

// WHAT  For so many heads at a time: S = scale Q Kᵀ (+ added scores, a post-op), softmax, Y = P V.
//       Operands and result in their plain layouts, which the caller has them in; a layer's weights
//       in the layout that the primitive asks for, reordered beforehand.
// WHY   Primitives are made once for a size. Threads are their own.
// EDGES Padded keys are left out of both products; under a causal mask they are whole. With
//       bfloat16, S is float and P bfloat16. Scores are added to one head at a time: added to
//       several, a reference loop takes over, hundreds of times slower.

using dnnl::memory;
using Type = memory::data_type;
using Arguments = std::unordered_map<int, memory>;

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}
dnnl::stream& stream() {
  static dnnl::stream all(engine());
  return all;
}

/// `heads` matrices in memory: steps between heads, rows and columns, in elements.
struct Steps {
  Index head, row, column;
};
memory::desc describe(Type type, Index heads, Index rows, Index columns, Steps steps) {
  return {{heads, rows, columns}, type, {steps.head, steps.row, steps.column}};
}

struct HeadsShape {
  Index heads, rows, keys, key_size, value_size;
  Steps q, k, v, y;  ///< as [head, token, feature]
};

class HeadsTogether {
 public:
  HeadsTogether(Type type, const HeadsShape& s, const RowMatrix<float>& added)
      : q_(describe(type, s.heads, s.rows, s.key_size, s.q), engine(), nullptr),
        k_(describe(type, s.heads, s.key_size, s.keys, {s.k.head, s.k.column, s.k.row}), engine(),
           nullptr),
        v_(describe(type, s.heads, s.keys, s.value_size, s.v), engine(), nullptr),
        y_(describe(type, s.heads, s.rows, s.value_size, s.y), engine(), nullptr) {
    const Steps whole{s.rows * s.keys, s.keys, 1};
    scores_ = memory(describe(Type::f32, s.heads, s.rows, s.keys, whole), engine());
    weights_ = type == Type::f32 ? scores_
                                 : memory(describe(type, s.heads, s.rows, s.keys, whole), engine());

    dnnl::primitive_attr attributes;
    attributes.set_output_scales(0, {1 / std::sqrt(static_cast<float>(s.key_size))});
    Arguments arguments = {{DNNL_ARG_SRC, q_}, {DNNL_ARG_WEIGHTS, k_}, {DNNL_ARG_DST, scores_}};
    if (added.size() != 0) {
      added_ = memory(describe(Type::f32, 1, s.rows, s.keys, whole), engine());
      std::copy_n(added.data(), added.size(), static_cast<float*>(added_.get_data_handle()));
      dnnl::post_ops after;
      after.append_binary(dnnl::algorithm::binary_add, added_.get_desc());
      attributes.set_post_ops(after);
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, added_);
    }
    const dnnl::matmul::desc scores(q_.get_desc(), k_.get_desc(), scores_.get_desc());
    const dnnl::softmax_v2_forward::desc softmax(dnnl::prop_kind::forward_inference,
                                                 dnnl::algorithm::softmax_accurate,
                                                 scores_.get_desc(), weights_.get_desc(), 2);
    const dnnl::matmul::desc sum(weights_.get_desc(), v_.get_desc(), y_.get_desc());
    add_step(dnnl::matmul({scores, attributes, engine()}), arguments);
    add_step(dnnl::softmax_v2_forward({softmax, engine()}),
             {{DNNL_ARG_SRC, scores_}, {DNNL_ARG_DST, weights_}});
    add_step(dnnl::matmul({sum, engine()}),
             {{DNNL_ARG_SRC, weights_}, {DNNL_ARG_WEIGHTS, v_}, {DNNL_ARG_DST, y_}});
  }

  template <class Stored>
  void operator()(const Stored* q, const Stored* k, const Stored* v, Stored* y) {
    point(q_, q), point(k_, k), point(v_, v), point(y_, y);
    for (const auto& [primitive, arguments] : steps_) primitive.execute(stream(), arguments);
    stream().wait();
  }

 private:
  void add_step(const dnnl::primitive& primitive, const Arguments& arguments) {
    steps_.emplace_back(primitive, arguments);
  }
  /// Inputs are not written, though oneDNN's memory is of one kind.
  template <class Stored>
  static void point(memory& to, const Stored* data) {
    to.set_data_handle(const_cast<Stored*>(data));
  }

  memory q_, k_, v_, y_, scores_, weights_, added_;
  std::vector<std::pair<dnnl::primitive, Arguments>> steps_;
};

/// The heads of a workload, some of them at a time.
template <class Stored>
class Attention {
 public:
  Attention(const AttentionTask& task, Index heads_at_once)
      : w_(task.workload), shape_(w_), heads_at_once_(heads_at_once) {
    const Type type = storage_of<Stored> == Storage::kFloat ? Type::f32 : Type::bf16;
    const RowMatrix<float> added = added_scores(task);
    const Index sequences = w_.mask == Mask::kKeyLengths ? w_.batch : 1;
    for (Index b = 0; b < sequences; ++b) {
      const Index d = w_.head_size, dv = w_.value_size;
      const HeadsShape heads{heads_at_once,
                             shape_.rows,
                             key_length(w_, b),
                             d,
                             dv,
                             {shape_.rows * d, d, 1},
                             {w_.keys * d, d, 1},
                             {w_.keys * dv, dv, 1},
                             {shape_.rows * dv, dv, 1}};
      for_sequence_.emplace_back(type, heads, added);
    }
  }

  void operator()(const Operands<Stored>& x, Stored* y) {
    const Index all = shape_.sequences * shape_.heads;
    for (Index head = 0; head < all; head += heads_at_once_) {
      const std::size_t sequence =
          for_sequence_.size() == 1 ? 0 : static_cast<std::size_t>(head / shape_.heads);
      for_sequence_[sequence](x.q.data() + head * shape_.rows * w_.head_size,
                              x.k.data() + head * w_.keys * w_.head_size,
                              x.v.data() + head * w_.keys * w_.value_size,
                              y + head * shape_.rows * w_.value_size);
    }
  }

 private:
  Workload w_;
  ProductShape shape_;
  Index heads_at_once_;
  std::vector<HeadsTogether> for_sequence_;
};

/// y = after(x W + b), W in the layout that suits the primitive.
class Dense {
 public:
  Dense(const DenseWeights& dense, Index rows, const dnnl::post_ops& after)
      : x_({{rows, dense.weight.rows()}, Type::f32, memory::format_tag::ab}, engine(), nullptr),
        y_({{rows, dense.weight.cols()}, Type::f32, memory::format_tag::ab}, engine(), nullptr) {
    const Index in = dense.weight.rows(), out = dense.weight.cols();
    memory plain({{in, out}, Type::f32, memory::format_tag::ab}, engine(),
                 const_cast<float*>(dense.weight.data()));
    memory bias({{1, out}, Type::f32, memory::format_tag::ab}, engine());
    std::copy_n(dense.bias.data(), out, static_cast<float*>(bias.get_data_handle()));
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(after);
    const dnnl::matmul::primitive_desc chosen({x_.get_desc(),
                                               {{in, out}, Type::f32, memory::format_tag::any},
                                               bias.get_desc(),
                                               y_.get_desc()},
                                              attributes, engine());
    memory weights(chosen.weights_desc(), engine());
    dnnl::reorder(plain, weights).execute(stream(), plain, weights);
    stream().wait();
    matmul_ = dnnl::matmul(chosen);
    arguments_ = {
        {DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_BIAS, bias}, {DNNL_ARG_DST, y_}};
  }
  void operator()(const float* x, float* y) {
    x_.set_data_handle(const_cast<float*>(x));
    y_.set_data_handle(y);
    matmul_.execute(stream(), arguments_);
    stream().wait();
  }

 private:
  memory x_, y_;
  dnnl::matmul matmul_;
  Arguments arguments_;
};

class Layer {
 public:
  Layer(const LayerTask& task, Index heads_at_once)
      : width_(task.weights.output.weight.rows()),
        heads_(task.heads),
        heads_at_once_(heads_at_once),
        projection_(joined(task.weights), task.tokens, {}),
        output_(task.weights.output, task.tokens, {}),
        projected_(task.tokens, 3 * width_),
        attended_(task.tokens, width_),
        attend_(Type::f32, shape(), {}) {}

  void operator()(const float* x, float* y) {
    const Index d = width_ / heads_;
    projection_(x, projected_.data());
    for (Index h = 0; h < heads_; h += heads_at_once_) {
      const float* q = projected_.data() + h * d;
      attend_(q, q + width_, q + 2 * width_, attended_.data() + h * d);
    }
    output_(attended_.data(), y);
  }

 private:
  HeadsShape shape() const {
    const Index d = width_ / heads_, n = projected_.rows();
    const Steps projected{d, 3 * width_, 1};
    return {heads_at_once_, n, n, d, d, projected, projected, projected, {d, width_, 1}};
  }

  Index width_, heads_, heads_at_once_;
  Dense projection_, output_;
  RowMatrix<float> projected_, attended_;
  HeadsTogether attend_;
};

class OneDnn : public Peer {
 public:
  explicit OneDnn(int threads) : threads_(threads) {}
  std::string name() const override { return "oneDNN"; }
  std::string version() const override {
    const dnnl_version_t* v = dnnl::version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
           std::to_string(v->patch);
  }
  /// Its threads are those of the OpenMP runtime that it was built with, whichever that is.
  void take_turn() override {
    using SetThreads = void (*)(int);
    static const auto set_threads =
        reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    if (set_threads == nullptr) throw std::runtime_error("oneDNN is built without OpenMP");
    set_threads(threads_);
  }

  Attend<float> attention(const AttentionTask& task) override { return attend<float>(task); }
  Attend<Eigen::bfloat16> attention_bfloat16(const AttentionTask& task) override {
    return attend<Eigen::bfloat16>(task);
  }
  Apply linear(const LinearTask& task) override {
    take_turn();
    dnnl::post_ops gelu;
    gelu.append_eltwise(1, dnnl::algorithm::eltwise_gelu_erf, 0, 0);
    auto dense = std::make_shared<Dense>(task.weights, task.rows, gelu);
    return [dense](const float* x, float* y) { (*dense)(x, y); };
  }
  Apply layer(const LayerTask& task) override {
    take_turn();
    const Eigen::VectorXf x = Eigen::VectorXf::Ones(task.weights.query.weight.rows() * task.tokens);
    Eigen::VectorXf y = x;
    const auto layer = fastest(
        {1, task.heads},
        [&](Index heads_at_once) { return std::make_shared<Layer>(task, heads_at_once); },
        [&](Layer& made) { made(x.data(), y.data()); });
    return [layer](const float* from, float* to) { (*layer)(from, to); };
  }

 private:
  template <class Stored>
  Attend<Stored> attend(const AttentionTask& task) {
    if (!has_product_shape(task.workload)) return {};
    take_turn();
    const bool adds = added_scores(task).size() != 0;
    return fastest_attention<Stored>(
        task, adds ? std::vector<Index>{1} : heads_at_once(task),
        [&](Index heads) { return std::make_shared<Attention<Stored>>(task, heads); });
  }

  int threads_;
};

const bool registered = add_peer(3, [](int threads) { return std::make_unique<OneDnn>(threads); });

}  // namespace
}  // namespace bench
