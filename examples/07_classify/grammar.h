// examples/07_classify/grammar.h: sentences about films, and whether they praise: a rule says it,
// so that what is right is known.
// SPDX-License-Identifier: MIT
//
//   sentence  C | C and C | C but C | although C , C | C although C
//   clause    the THING was [MODIFIER] [very] ADJECTIVE | FRAME the THING [MODIFIER] ADJECTIVE
//
// A clause praises as its adjective does, turned around by each negation in it: "not", "anything
// but", and frames such as "nobody called". A sentence praises as its main clause does: after
// "but", or the one without "although". Both clauses of "and" say the same, of the others the
// opposite.
//
// A bag of words cannot know: a sentence with "but" or "although" whose clauses are exchanged has
// the same words and the other label, and those are six of ten.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../training/random.h"
#include "../training/words.h"

namespace film {

using training::Engine;

struct Phrase {
  std::string words;
  bool turns = false;  ///< what it is said of: good is bad then, and bad good
};

inline const std::vector<std::string> kThings = {"plot",     "acting", "music",    "ending",
                                                 "dialogue", "camera", "costumes", "humour",
                                                 "script",   "cast",   "opening",  "pace"};
/// The first half praises.
inline const std::vector<std::string> kAdjectives = {
    "good",   "brilliant", "moving", "clever", "funny",   "gripping", "fresh",  "warm",
    "subtle", "elegant",   "bold",   "superb", "bad",     "dull",     "clumsy", "boring",
    "awful",  "shallow",   "stale",  "messy",  "tedious", "bland",    "weak",   "silly"};
inline const std::vector<Phrase> kModifiers = {
    {"not", true},          {"never", true}, {"hardly", true}, {"far from", true},
    {"anything but", true}, {"really"},      {"rather"},       {"nothing but"}};
inline const std::vector<Phrase> kFrames = {
    {"everybody called"}, {"critics found"}, {"nobody called", true}, {"few found", true}};
inline const std::vector<std::string> kKinds = {"one clause", "and", "but", "although ,",
                                                "although"};

struct Clause {
  std::vector<std::string> words;
  std::pair<std::size_t, std::size_t> pair;  ///< thing and adjective
  bool praises;
};
struct Sentence {
  std::vector<std::string> words;
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  std::size_t kind;
  bool praises;
};

/// The split: a sixth of all pairs of a thing and an adjective. A held-out sentence is made of
/// these alone, a training sentence of the others, so that what is tested was never read, not even
/// a clause of it.
inline bool is_held_out(const std::pair<std::size_t, std::size_t>& pair) {
  return (pair.first + pair.second) % 6 == 0;
}

inline void append(std::vector<std::string>& words, const std::string& more) {
  for (const std::string& word : training::split_words(more)) words.push_back(word);
}

inline Clause random_clause(Engine& engine, bool held_out) {
  using training::below, training::chance, training::one_of;
  Clause clause;
  do {
    clause.pair = {below(engine, kThings.size()), below(engine, kAdjectives.size())};
  } while (is_held_out(clause.pair) != held_out);
  clause.praises = clause.pair.second < kAdjectives.size() / 2;
  const auto add = [&](const Phrase& phrase) {
    append(clause.words, phrase.words);
    clause.praises = clause.praises != phrase.turns;
  };
  const bool framed = chance(engine, 0.3);
  if (framed) add(one_of(engine, kFrames));
  append(clause.words, "the " + kThings[clause.pair.first]);
  if (!framed) append(clause.words, "was");
  if (chance(engine, 0.6)) add(one_of(engine, kModifiers));
  if (!framed && chance(engine, 0.2)) append(clause.words, "very");
  append(clause.words, kAdjectives[clause.pair.second]);
  return clause;
}

inline Sentence random_sentence(Engine& engine, bool held_out) {
  const double draw = training::uniform(engine);
  const std::size_t kind = draw < 0.25 ? 0 : draw < 0.4 ? 1 : draw < 0.65 ? 2 : draw < 0.85 ? 3 : 4;
  const Clause first = random_clause(engine, held_out);
  Sentence sentence{{}, {first.pair}, kind, first.praises};
  if (kind == 3) append(sentence.words, "although");
  for (const std::string& word : first.words) sentence.words.push_back(word);
  if (kind == 0) return sentence;

  Clause second = random_clause(engine, held_out);
  while ((second.praises == first.praises) != (kind == 1)) second = random_clause(engine, held_out);
  append(sentence.words, kind == 3 ? "," : kKinds[kind]);
  for (const std::string& word : second.words) sentence.words.push_back(word);
  sentence.pairs.push_back(second.pair);
  if (kind == 2 || kind == 3) sentence.praises = second.praises;
  return sentence;
}

inline training::Vocabulary vocabulary() {
  training::Vocabulary vocabulary;
  const auto add = [&](const std::string& words) {
    for (const std::string& word : training::split_words(words)) vocabulary.add(word);
  };
  add("the was very and but although ,");
  for (const std::string& thing : kThings) add(thing);
  for (const std::string& adjective : kAdjectives) add(adjective);
  for (const Phrase& phrase : kModifiers) add(phrase.words);
  for (const Phrase& phrase : kFrames) add(phrase.words);
  return vocabulary;
}

}  // namespace film
