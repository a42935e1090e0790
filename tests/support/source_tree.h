// tests/support/source_tree.h: the library's own sources as text, and what a reader would stumble over in them.
// SPDX-License-Identifier: MIT
//
// Each gate takes a tree and returns a line for each finding, so that it can be asked of the library and of a bad example.
#pragma once

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace sources {

using Findings = std::vector<std::string>;
/// Paths below include/attn, "mask/tree.h", and the lines of each file.
using Tree = std::map<std::string, std::vector<std::string>>;

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

inline Tree read_tree(const std::filesystem::path& root) {
  Tree tree;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".h") continue;
    std::ifstream file(entry.path());
    std::stringstream text;
    text << file.rdbuf();
    tree[entry.path().lexically_relative(root).generic_string()] = lines_of(text.str());
  }
  return tree;
}

inline std::string at(const std::string& file, std::size_t line, const std::string& what) {
  return file + ":" + std::to_string(line + 1) + ": " + what;
}

/// "mask" of "mask/tree.h"; "" of a header that users include.
inline std::string folder_of(const std::string& file) {
  const auto slash = file.find('/');
  return slash == std::string::npos ? "" : file.substr(0, slash);
}
inline std::string stem_of(const std::string& file) {
  return std::filesystem::path(file).stem().string();
}

/// Columns as an editor counts them: code points of UTF-8.
inline std::size_t columns(const std::string& line) {
  return std::size_t(
      std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

/// A line without its comment. (No string of the library holds two slashes.)
inline std::string code_of(const std::string& line) { return line.substr(0, line.find("//")); }
inline std::string comment_of(const std::string& line) {
  const auto slashes = line.find("//");
  return slashes == std::string::npos ? "" : line.substr(slashes);
}
inline std::string code_of(const std::vector<std::string>& lines) {
  std::string code;
  for (const auto& line : lines) code += code_of(line) + '\n';
  return code;
}

inline std::set<std::string> words_of(const std::string& code) {
  std::set<std::string> words;
  std::string word;
  for (const char c : code + ' ') {
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '_') {
      word += c;
    } else if (!word.empty()) {
      words.insert(word);
      word.clear();
    }
  }
  return words;
}

/// The files that a file includes, "base/check.h", with the line.
inline std::vector<std::pair<std::size_t, std::string>> includes_of(
    const std::string& file, const std::vector<std::string>& lines) {
  std::vector<std::pair<std::size_t, std::string>> includes;
  for (std::size_t n = 0; n < lines.size(); ++n) {
    const std::string start = "#include \"";
    if (lines[n].compare(0, start.size(), start) != 0) continue;
    const std::string named = lines[n].substr(start.size(), lines[n].rfind('"') - start.size());
    const auto path = std::filesystem::path(file).parent_path() / named;
    includes.emplace_back(n, path.lexically_normal().generic_string());
  }
  return includes;
}

/// A line of a table or a picture: cells set apart by gaps, one of three spaces or two of two, the label's not counted.
inline bool is_table(const std::string& comment) {
  static const std::regex label(R"(^//[/!]?<?\s*(\\tparam\s+)?\S+\s\s+)");
  const std::string body = std::regex_replace(comment, label, "");
  static const std::regex wide(R"(\S\s{3,}\S)"), narrow(R"(\S\s\s+\S.*\S\s\s+\S)");
  return std::regex_search(body, wide) || std::regex_search(body, narrow);
}

inline Findings long_lines(const Tree& tree) {
  Findings found;
  for (const auto& [file, lines] : tree) {
    for (std::size_t n = 0; n < lines.size(); ++n) {
      const bool only_comment = code_of(lines[n]).find_first_not_of(' ') == std::string::npos;
      if (columns(lines[n]) > 100 && !(only_comment && is_table(comment_of(lines[n]))))
        found.push_back(at(file, n, std::to_string(columns(lines[n])) + " columns"));
    }
  }
  return found;
}

inline Findings long_files(const Tree& tree) {
  Findings found;
  for (const auto& [file, lines] : tree)
    if (lines.size() > 400) found.push_back(file + ": " + std::to_string(lines.size()) + " lines");
  return found;
}

/// Outermost function bodies of more than 60 lines, by their braces.
inline Findings long_functions(const Tree& tree) {
  static const std::regex function(R"(\)\s*(const|noexcept|override|->[^;]*|\s)*(:[^;]*)?$)");
  static const std::regex scope(
      R"(^\s*(template\b.*>\s*)?(inline\s+)?(namespace|class|struct|enum|union|extern)\b[^()]*$)");
  struct Brace {
    std::size_t line;
    bool is_function;
  };
  Findings found;
  for (const auto& [file, lines] : tree) {
    std::vector<Brace> open;
    std::string head;
    bool goes_on = false;  // a preprocessor line, on the next one
    for (std::size_t n = 0; n < lines.size(); ++n) {
      const std::string& line = lines[n];
      const bool directive = goes_on || line.rfind('#', 0) == 0;
      goes_on = directive && !line.empty() && line.back() == '\\';
      if (directive) continue;
      for (const char c : code_of(lines[n]) + ' ') {
        if (c == '{') {
          const bool body = !head.empty() && head.size() < 2000 &&
                            !std::regex_search(head, scope) && std::regex_search(head, function);
          open.push_back({n, body});
          head.clear();
        } else if (c == '}') {
          if (open.empty()) continue;
          const Brace brace = open.back();
          open.pop_back();
          head.clear();
          const bool inner = std::any_of(open.begin(), open.end(),
                                         [](const Brace& outer) { return outer.is_function; });
          if (brace.is_function && !inner && n - brace.line + 1 > 60)
            found.push_back(at(file, brace.line,
                               "a function of " + std::to_string(n - brace.line + 1) + " lines"));
        } else if (c == ';') {
          head.clear();
        } else if (c != ' ' || (!head.empty() && head.back() != ' ')) {
          head += c;
        }
      }
    }
  }
  return found;
}

inline Findings bool_template_parameters(const Tree& tree) {
  static const std::regex parameter(R"((template\s*<|,)\s*bool\s+\w+\s*(=[^,>]*)?(,|>))");
  Findings found;
  for (const auto& [file, lines] : tree) {
    std::string head;  // of a template, which may take several lines
    std::size_t first = 0;
    for (std::size_t n = 0; n < lines.size(); ++n) {
      const std::string code = code_of(lines[n]);
      const auto start = code.find("template <");
      if (start != std::string::npos) {
        head = code.substr(start);
        first = n;
      } else if (!head.empty()) {
        head += ' ' + code;
      }
      const bool whole =
          std::count(head.begin(), head.end(), '<') <= std::count(head.begin(), head.end(), '>');
      if (head.empty() || !whole) continue;
      if (std::regex_search(head, parameter)) found.push_back(at(file, first, head));
      head.clear();
    }
  }
  return found;
}

inline Findings lines_with(const Tree& tree, const std::string& allowed_in,
                           const std::regex& what) {
  Findings found;
  for (const auto& [file, lines] : tree) {
    if (file == allowed_in) continue;
    for (std::size_t n = 0; n < lines.size(); ++n)
      if (std::regex_search(lines[n], what)) found.push_back(at(file, n, lines[n]));
  }
  return found;
}
inline Findings eigen_internals(const Tree& tree) {
  return lines_with(tree, "base/simd.h", std::regex("Eigen::internal|internal::"));
}
/// Compilers, targets and flags are told apart in one file; others ask for what that file defines.
inline Findings compiler_conditions(const Tree& tree) {
  return lines_with(tree, "base/config.h",
                    std::regex(R"(^\s*#\s*(if|elif|ifdef|ifndef)\b(?!.*\bATTN_))"));
}
inline Findings leftovers(const Tree& tree) {
  return lines_with(tree, "", std::regex(R"(\bprintf\s*\(|std::cout|\b(TODO|FIXME|XXX|HACK)\b)"));
}

/// Entries and words (the headers that users include) → call → kernel → mask, score → base. Words are below the call, so that any floor but
/// the lowest may include one; an entry, none.
inline Findings rising_includes(const Tree& tree) {
  static const std::map<std::string, int> floors = {
      {"base", 0}, {"mask", 1}, {"score", 1}, {"kernel", 2}, {"call", 3}, {"", 4}, {"mpi", 4}};
  static const std::set<std::string> entries = {
      "attn", "attention", "softmax", "kv_cache", "multi_head_attention", "linear", "mpi"};
  Findings found;
  for (const auto& [file, lines] : tree) {
    if (floors.count(folder_of(file)) == 0) {
      found.push_back(file + ": a folder that is no floor");
      continue;
    }
    const std::string from = folder_of(file);
    for (const auto& [n, to] : includes_of(file, lines)) {
      const bool is_word = folder_of(to).empty() && entries.count(stem_of(to)) == 0;
      if (to == "types.h") continue;  // the vocabulary of all floors
      if (floors.count(folder_of(to)) == 0 ||
          (floors.at(folder_of(to)) > floors.at(from) && !(is_word && from != "base")))
        found.push_back(at(file, n, "includes " + to));
    }
  }
  return found;
}

/// Names of files that a reader cannot tell apart: equal but for the folder or a plural.
inline Findings shared_names(const Tree& tree) {
  std::map<std::string, std::string> seen;
  Findings found;
  for (const auto& [file, lines] : tree) {
    std::string name = stem_of(file);
    if (name.size() > 1 && name.back() == 's') name.pop_back();
    const auto [place, fresh] = seen.emplace(name, file);
    if (!fresh) found.push_back(place->second + " and " + file);
  }
  return found;
}

/// What a header offers to those who include it: types, functions, aliases, constants, macros, enumerators of its own.
inline std::set<std::string> names_offered(const std::vector<std::string>& lines) {
  static const std::regex type(
      R"(\b(struct|class|enum class|enum|using)\s+(?:\[\[\w+\]\]\s*)?(\w+))"),
      function(R"((\w+)\s*\()"), constant(R"(\b(\w+)\s*(=|\{\}|<[^;]*> =))"),
      macro(R"(^#define (\w+))");
  std::set<std::string> names;
  for (const auto& line : lines) {
    const std::string code = code_of(line);
    std::smatch match;
    if (std::regex_search(code, match, macro)) names.insert(match[1]);
    for (auto at = code.cbegin(); std::regex_search(at, code.cend(), match, type);
         at = match.suffix().first)
      names.insert(match[2]);
    for (auto at = code.cbegin(); std::regex_search(at, code.cend(), match, function);
         at = match.suffix().first)
      names.insert(match[1]);
    if (code.find("constexpr") != std::string::npos && std::regex_search(code, match, constant))
      names.insert(match[1]);
  }
  return names;
}

/// Includes of which nothing is used. A header that users include may gather others; that is said beside the include.
inline Findings unused_includes(const Tree& tree) {
  Findings found;
  for (const auto& [file, lines] : tree) {
    const auto used = words_of(code_of(lines));
    for (const auto& [n, to] : includes_of(file, lines)) {
      const auto included = tree.find(to);
      if (included == tree.end() || !comment_of(lines[n]).empty()) continue;
      const auto offered = names_offered(included->second);
      const bool any = std::any_of(offered.begin(), offered.end(),
                                   [&](const std::string& name) { return used.count(name) != 0; });
      if (!any) found.push_back(at(file, n, "uses nothing of " + to));
    }
  }
  return found;
}

/// Constants that are named once in the whole library: where they are made.
inline Findings unused_constants(const Tree& tree) {
  static const std::regex made(R"(\bconstexpr\b[^;=(]*\b(k[A-Z]\w*)\s*(=|\{|;))");
  std::map<std::string, int> count;
  std::map<std::string, std::string> where;
  for (const auto& [file, lines] : tree) {
    for (std::size_t n = 0; n < lines.size(); ++n) {
      const std::string code = code_of(lines[n]);
      std::smatch match;
      if (std::regex_search(code, match, made)) where[match[1]] = at(file, n, match[1]);
      static const std::regex constant(R"(\bk[A-Z]\w*)");
      for (auto place = code.cbegin(); std::regex_search(place, code.cend(), match, constant);
           place = match.suffix().first)
        ++count[match[0]];
    }
  }
  Findings found;
  for (const auto& [name, place] : where)
    if (count[name] < 2) found.push_back(place);
  return found;
}

}  // namespace sources
