// bench/peers/subject.h: a row of the table: its operands, a peer's call on them, how far it errs,
// and its limit.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>

#include "../support/layer_reference.h"
#include "../support/machine.h"
#include "../support/read_speed.h"
#include "../support/reference.h"
#include "../support/threads.h"
#include "peer.h"

namespace bench {

/// The most that n cores can do, measured beside the library's samples.
class Limit {
 public:
  virtual ~Limit() = default;
  /// Behind a sample of `calls` calls of so many seconds each.
  virtual void probe(double seconds, int calls) = 0;
  virtual double fraction(double seconds) const = 0;
  virtual std::string words() const = 0;
};

/// Of arithmetic: multiply-adds in registers.
class PeakLimit : public Limit {
 public:
  PeakLimit(double flops, int threads) : flops_(flops), threads_(threads) {}
  void probe(double, int) override {
    best_ = std::max(
        best_, threads_ == 1 ? multiply_add_peak<float>() : multiply_add_peak<float>(threads_));
  }
  double fraction(double seconds) const override { return flops_ / seconds / best_; }
  std::string words() const override {
    return std::to_string(static_cast<int>(1e-9 * best_ + 0.5)) + " GF/s";
  }

 private:
  double flops_;
  int threads_;
  double best_ = 0;
};

/// Of memory: reading as much of it by the fastest pattern. reading(pattern, times): mean seconds.
class ReadingLimit : public Limit {
 public:
  using Reading = std::function<double(ReadPattern, int)>;
  ReadingLimit(double bytes, const Reading& reading)
      : bytes_(bytes),
        reading_(reading),
        beside_(fastest_pattern([&](ReadPattern pattern) { return reading(pattern, 1); })) {}
  void probe(double seconds, int calls) override {
    beside_.add(bytes_, reading_(beside_.pattern(), calls), seconds);
  }
  double fraction(double) const override { return beside_.fraction(); }
  std::string words() const override {
    return std::to_string(static_cast<int>(1e-9 * beside_.bandwidth() + 0.5)) + " GB/s";
  }

 private:
  double bytes_;
  Reading reading_;
  BesideReading beside_;
};

/// A peer with its call for a row, empty where it has none, and the largest error of its result.
struct Contender {
  Peer* peer;
  std::function<void()> call;
  double max_error = 0;
};

class Subject {
 public:
  virtual ~Subject() = default;
  /// Calls may be made as long as the subject lives.
  virtual Contender contender(Peer& peer) = 0;
  virtual std::unique_ptr<Limit> limit(int threads) = 0;
};

template <class Stored>
class AttentionSubject : public Subject {
 public:
  explicit AttentionSubject(const Workload& w)
      : w_(w),
        operands_(w),
        bias_(w.mask == Mask::kBias ? w.queries : 0, w.keys),
        y_(output_size(w)) {
    Uniform uniform(3);
    fill(bias_, uniform);
  }

  Contender contender(Peer& peer) override {
    const Attend<Stored> attend = prepare(peer);
    if (!attend) return {&peer, {}};
    y_.setConstant(Stored(0));
    attend(operands_.first(), y_.data());
    const double error = max_error(w_, operands_.first(), bias_, y_.data());
    return {&peer, [this, attend] { attend(operands_.next(), y_.data()); }, error};
  }
  std::unique_ptr<Limit> limit(int threads) override {
    if (!is_bound_by_memory(w_)) return std::make_unique<PeakLimit>(flops(w_), threads);
    return std::make_unique<ReadingLimit>(
        static_cast<double>(operands_.first().key_value_bytes()),
        [this, threads](ReadPattern pattern, int times) {
          double seconds = 0;
          for (int n = 0; n < times; ++n)
            seconds += operands_.next().seconds_to_read_keys_and_values(pattern, threads);
          return seconds / times;
        });
  }

 private:
  Attend<Stored> prepare(Peer& peer) const {
    if constexpr (std::is_same_v<Stored, float>) {
      return peer.attention({w_, bias_});
    } else {
      return peer.attention_bfloat16({w_, bias_});
    }
  }

  Workload w_;
  Rotation<Stored> operands_;
  RowMatrix<float> bias_;
  Eigen::Array<Stored, Eigen::Dynamic, 1> y_;
};

/// A layer: x [tokens, in] → y [tokens, out].
class LayerSubject : public Subject {
 public:
  Contender contender(Peer& peer) override {
    const Apply apply = prepare(peer);
    if (!apply) return {&peer, {}};
    y_.setZero();
    apply(x_.data(), y_.data());
    return {&peer, [this, apply] { apply(x_.data(), y_.data()); }, max_error(expected_, y_)};
  }
  std::unique_ptr<Limit> limit(int threads) override {
    return std::make_unique<PeakLimit>(flops_, threads);
  }

 protected:
  LayerSubject(Index tokens, Index in, Index out, double flops)
      : flops_(flops), x_(tokens * in + kReadAhead), y_(tokens, out) {
    Uniform uniform(5);
    fill(x_, uniform);
  }
  virtual Apply prepare(Peer& peer) const = 0;
  Eigen::Map<const RowMatrix<float>> x() const {
    return {x_.data(), y_.rows(), (x_.size() - kReadAhead) / y_.rows()};
  }
  void expect(const Eigen::MatrixXd& expected) { expected_ = expected; }

 private:
  static constexpr Index kReadAhead = 16;  ///< some libraries read behind their inputs
  double flops_;
  Eigen::VectorXf x_;
  RowMatrix<float> y_;
  Eigen::MatrixXd expected_;
};

/// linear512: 512 x 512 → 2048, GELU.
class LinearGelu : public LayerSubject {
 public:
  LinearGelu(Index tokens, Index in, Index out, Uniform uniform = Uniform(3))
      : LayerSubject(tokens, in, out, 2. * static_cast<double>(tokens * in * out)),
        weights_(in, out, uniform),
        tokens_(tokens) {
    expect(gelu_reference(linear_reference(weights_, RowMatrix<float>(x()))));
  }

 private:
  Apply prepare(Peer& peer) const override { return peer.linear({weights_, tokens_}); }
  DenseWeights weights_;
  Index tokens_;
};

/// The multi-head layer: four projections of 2·L·d² operations each, and the two products of
/// attention.
class MultiHead : public LayerSubject {
 public:
  MultiHead(Index tokens, Index width, Index heads, Uniform uniform = Uniform(3))
      : LayerSubject(tokens, width, width,
                     8. * static_cast<double>(tokens * width * width) +
                         4. * static_cast<double>(tokens * tokens * width)),
        weights_(width, uniform),
        tokens_(tokens),
        heads_(heads) {
    expect(layer_reference(weights_, heads, RowMatrix<float>(x())));
  }

 private:
  Apply prepare(Peer& peer) const override { return peer.layer({weights_, tokens_, heads_}); }
  LayerWeights weights_;
  Index tokens_, heads_;
};

}  // namespace bench
