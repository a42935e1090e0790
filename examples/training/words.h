// examples/training/words.h: words and their numbers, and how wide they are on a screen.
// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch.h"

namespace training {

inline std::vector<std::string> split_words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}
/// The characters of UTF-8.
inline std::vector<std::string> split_characters(const std::string& text) {
  std::vector<std::string> characters;
  for (const char byte : text) {
    if ((static_cast<unsigned char>(byte) & 0xc0) != 0x80) characters.emplace_back();
    if (!characters.empty()) characters.back() += byte;
  }
  return characters;
}
/// With blanks between them, or with what a language puts there.
inline std::string join(const std::vector<std::string>& words, const char* between = " ") {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}
/// Columns of a terminal: two for a character of three bytes from U+2E80 on, as Chinese has, one
/// for others.
inline std::size_t width_on_screen(const std::string& text) {
  std::size_t width = 0;
  for (const std::string& character : split_characters(text))
    width += character.size() >= 3 && character >= "\u2e80" ? 2 : 1;
  return width;
}

/// Words that have a number each, in the order in which they were added.
class Vocabulary {
 public:
  int add(const std::string& word) {
    const auto [at, fresh] = ids_.try_emplace(word, size());
    if (fresh) words_.push_back(word);
    return at->second;
  }
  int size() const { return int(words_.size()); }
  const std::string& word(int id) const { return words_[std::size_t(id)]; }

  Sequence ids(const std::vector<std::string>& words) const {
    Sequence ids;
    for (const std::string& word : words) {
      const auto found = ids_.find(word);
      if (found == ids_.end()) throw std::invalid_argument("the model knows no word " + word);
      ids.push_back(found->second);
    }
    return ids;
  }
  std::vector<std::string> words(const Sequence& ids) const {
    std::vector<std::string> words;
    for (const int id : ids) words.push_back(word(id));
    return words;
  }

 private:
  std::map<std::string, int> ids_;
  std::vector<std::string> words_;
};

}  // namespace training
