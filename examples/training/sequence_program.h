// examples/training/sequence_program.h: what a program does that trains an encoder–decoder: train
// or restore, test on what is held out, write, and show what was attended to.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "heat_map.h"
#include "loss_curve.h"
#include "program.h"
#include "sequence_task.h"

namespace training {

/// Texts, as a program shows them.
struct Shown {
  std::vector<Sequence> sources;  ///< to be written of; the attention is that of the first
  const char* between;            ///< the words of a source: " ", or ""
  std::string parts;              ///< "character", "word": what a source is made of
};

/// Writes a target for one source.
template <class Scalar>
Pair written(EncoderDecoder<Scalar>& model, const Sequence& source) {
  return {source, decode_greedily(model, Batch({source}))[0]};
}

/// What each word that is written attends to in the source, in the last block, on the mean of its
/// heads: in the terminal and as a picture.
template <class Scalar>
void show_attention(EncoderDecoder<Scalar>& model, const SequenceData& data, const Pair& pair,
                    const std::string& title, const std::filesystem::path& picture) {
  const PairBatch batch({pair});
  const HeatMap map{data.target_words.words(batch.targets), data.source_words.words(pair.source),
                    model.attention_to_source(batch)};
  std::printf("\n%s, in the last block on the mean of its heads\n", title.c_str());
  print(map);
  draw(map, title).save(picture);
}

/// Whether all is as it should be: enough of the held-out texts right, the words those of full
/// passes, the losses those of two workers.
inline bool run_program(const SequenceData& data, const Shown& shown, double accuracy,
                        const ProgramOptions& options) {
  Engine engine(42);
  EncoderDecoder<float> model({data.source_words.size(), data.target_words.size()}, engine);
  const bool same_bits = same_bits_in_parallel(model, data.train);
  std::printf("\nAn encoder-decoder of %d weights\n", int(parameter_count(model)));
  model.workers = options.threads;
  const std::vector<double> losses =
      train_or_restore(model, options, [&] { return train(model, data.train); });
  const bool passed = passes(model, data.held_out, accuracy);

  std::printf("\nWritten by the model\n");
  for (const Sequence& source : shown.sources) {
    const Pair pair = written(model, source);
    std::printf("  %s\n    %s\n", join(data.source_words.words(pair.source), shown.between).c_str(),
                join(data.target_words.words(pair.target)).c_str());
  }
  show_attention(model, data, written(model, shown.sources[0]),
                 "Which " + shown.parts + " each word attends to", options.picture("attention"));
  if (!losses.empty()) draw_losses({{options.name, losses}}, "Loss").save(options.picture("loss"));
  return passed && same_bits;
}

}  // namespace training
