// examples/06_encoder/bert.h: fills an encoder from a file of BERT's family (BERT, MiniLM, RoBERTa, sentence-transformers of them) as
// Hugging Face stores them: model.safetensors, and config.json beside it.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdlib>
#include <optional>
#include <utility>

#include "encoder.h"
#include "safetensors.h"

namespace encoder {

using safetensors::refuse;

/// What the weights do not say.
struct BertOptions {
  Index heads = 0;
  float epsilon = 1e-12f;    ///< of the norms
  Index first_position = 0;  ///< RoBERTa's tables begin with rows for padding

  /// Of a config.json; nothing where there is no such file.
  static std::optional<BertOptions> read(const std::filesystem::path& path) try {
    std::ifstream file(path);
    if (!file) return std::nullopt;
    const safetensors::Json config = safetensors::Json::parse(file);
    const auto only = [&](const char* field, const std::string& ours) {
      const std::string theirs = config.value(field, ours);
      if (theirs != ours) refuse(field, " is ", safetensors::quoted(theirs), ", ours is ", ours);
    };
    only("hidden_act", "gelu");
    only("position_embedding_type", "absolute");
    const auto number = [&](const char* field) {
      const auto& value = config.at(field);
      if (!value.is_number_unsigned() || value > 1'000'000) refuse(field, " is no small number");
      return value.get<Index>();
    };
    BertOptions options;
    options.heads = number("num_attention_heads");
    options.epsilon = config.value("layer_norm_eps", options.epsilon);
    if (config.value("model_type", "").find("roberta") != std::string::npos)
      options.first_position = number("pad_token_id") + 1;
    return options;
  } catch (const std::exception& error) {
    refuse("config.json: ", error.what());
  }
};

class BertFile {
 public:
  BertFile(const safetensors::File& file, const BertOptions& options)
      : file_(file), options_(options) {}

  Encoder load() {
    Encoder model;
    const std::string words = "embeddings.word_embeddings.weight";
    prefix_ = prefix_before(words);
    width_ = sizes(words).second;
    model.pre_norm = pre_norm_ = has("encoder.layer.0.attention.LayerNorm.weight");
    model.first_position = options_.first_position;
    model.words = table(words);
    model.positions = table("embeddings.position_embeddings.weight");
    model.type = table("embeddings.token_type_embeddings.weight").row(0);
    model.embeddings_norm = norm("embeddings.LayerNorm");
    for (std::size_t n = 0, count = count_blocks(); n < count; ++n)
      model.blocks.push_back(block("encoder.layer." + std::to_string(n) + "."));
    if (pre_norm_) model.last_norm = norm("LayerNorm");
    return model;
  }

 private:
  Block block(const std::string& at) const {
    const Index hidden = sizes(at + "intermediate.dense.weight").first;
    return {attention(at + "attention."), linear(at + "intermediate.dense", width_, hidden),
            linear(at + "output.dense", hidden, width_),
            norm(at + (pre_norm_ ? "attention.LayerNorm" : "attention.output.LayerNorm")),
            norm(at + (pre_norm_ ? "intermediate.LayerNorm" : "output.LayerNorm"))};
  }

  attn::MultiHeadAttention<float> attention(const std::string& at) const {
    const auto weight = [&](const char* name) {
      return matrix(at + name + ".weight", width_, width_);
    };
    const auto bias = [&](const char* name) { return vector(at + name + ".bias", width_); };
    const Matrix query = weight("self.query"), key = weight("self.key"),
                 value = weight("self.value"), output = weight("output.dense");
    const Row query_bias = bias("self.query"), key_bias = bias("self.key"),
              value_bias = bias("self.value"), output_bias = bias("output.dense");
    attn::PyTorchView<const float> view;
    view.q_proj_weight = query.data(), view.q_proj_bias = query_bias.data();
    view.k_proj_weight = key.data(), view.k_proj_bias = key_bias.data();
    view.v_proj_weight = value.data(), view.v_proj_bias = value_bias.data();
    view.out_proj_weight = output.data(), view.out_proj_bias = output_bias.data();

    attn::MultiHeadAttention<float> layer(attn::MultiHeadOptions(width_, options_.heads).biases());
    layer.edit([&](auto& w) { attn::load(w, view); });
    return layer;
  }
  /// PyTorch's Linear is y = x·Wᵀ + b with W of [out, in], ours Y = X·W + b.
  attn::Linear<float> linear(const std::string& name, Index in, Index out) const {
    attn::Linear<float> layer(attn::LinearOptions(in, out).bias());
    layer.set(matrix(name + ".weight", out, in).transpose(), vector(name + ".bias", out));
    return layer;
  }
  /// Files of BERT's first years say gamma and beta.
  LayerNorm norm(const std::string& name) const {
    const bool old = has(name + ".gamma");
    return {vector(name + (old ? ".gamma" : ".weight"), width_),
            vector(name + (old ? ".beta" : ".bias"), width_), options_.epsilon};
  }
  Matrix table(const std::string& name) const { return matrix(name, sizes(name).first, width_); }

  /// What stands before all names depends on what the model was trained for: nothing, "bert.", "roberta."
  std::string prefix_before(const std::string& name) const {
    for (const auto& [full, tensor] : file_.tensors()) {
      const std::size_t at = full.size() - std::min(full.size(), name.size());
      if (full.compare(at, std::string::npos, name) == 0) return full.substr(0, at);
    }
    return "";
  }
  /// One more than the largest number in a name: what such a block lacks is then missed by its name.
  std::size_t count_blocks() const {
    const std::string layer = prefix_ + "encoder.layer.";
    std::size_t count = 0;
    for (const auto& [name, tensor] : file_.tensors()) {
      if (name.compare(0, layer.size(), layer) == 0)
        count = std::max(count, std::size_t(std::strtoul(&name[layer.size()], nullptr, 10)) + 1);
    }
    return count;
  }

  bool has(const std::string& name) const { return file_.has(prefix_ + name); }
  Matrix matrix(const std::string& name, Index rows, Index cols) const {
    return file_.matrix(prefix_ + name, rows, cols);
  }
  Row vector(const std::string& name, Index size) const {
    return file_.vector(prefix_ + name, size);
  }
  std::pair<Index, Index> sizes(const std::string& name) const {
    const safetensors::Shape& shape = file_.tensor(prefix_ + name).shape;
    if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0) {
      refuse("tensor ", safetensors::quoted(prefix_ + name), " is ", safetensors::text(shape),
             ", needs rows and columns");
    }
    return {shape[0], shape[1]};
  }

  const safetensors::File& file_;
  BertOptions options_;
  std::string prefix_;
  Index width_ = 0;
  bool pre_norm_ = false;
};

}  // namespace encoder
