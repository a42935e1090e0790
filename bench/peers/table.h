// bench/peers/table.h: the rows as a table for the terminal or for Markdown, and as JSON.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "../support/setting.h"
#include "row.h"

namespace bench {

enum class Form { kText, kMarkdown };

template <class... Numbers>
std::string formatted(const char* pattern, Numbers... numbers) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, numbers...);
  return text;
}

/// Four digits: 0.001234, 0.1234, 12.34, 123.4.
inline std::string milliseconds(double ms) {
  int decimals = 1;
  for (double least = 100; decimals < 6 && ms < least; least /= 10) ++decimals;
  return formatted("%.*f", ms < 0.1 ? 4 : decimals, ms);
}

/// Prints a table as its rows come: a column a peer, then what is to be read from them.
class TablePrinter {
 public:
  TablePrinter(Form form, const PeerTable& table) : form_(form), table_(table) {
    std::string setting_line, versions;
    for (const auto& [key, value] : setting()) {
      if (key != "eigen") setting_line += (setting_line.empty() ? "" : ", ") + value;
    }
    for (const auto& [name, version] : table.peers) {
      versions += (versions.empty() ? "" : ", ") + name + ' ' + version;
    }
    const std::string threads =
        table.threads == 1 ? "one thread" : std::to_string(table.threads) + " threads";
    std::printf(form == Form::kText ? "# %s\n# %s\n# %s; milliseconds\n\n" : "%s; %s; %s:\n\n",
                setting_line.c_str(), versions.c_str(), threads.c_str());
    print_header();
  }

  void print(const PeerRow& row) const {
    std::vector<std::string> cells = {row.workload};
    if (form_ == Form::kMarkdown) cells.push_back(row.words);
    const Timed* best = best_peer(row);
    for (const auto& [name, version] : table_.peers) cells.push_back(time(row, name, best));
    cells.push_back(best == nullptr ? "" : formatted("%.2f", row.timed[0].ms / best->ms));
    cells.push_back(formatted("%.2f of ", row.of_limit) + row.limit);
    std::string errors;
    for (const auto& [name, version] : table_.peers) {
      const Timed* timed = find(row, name);
      errors += (errors.empty() ? "" : " ") +
                (timed == nullptr ? "–" : formatted("%.0e", timed->max_error));
    }
    cells.push_back(errors);
    print_line(cells);
  }

 private:
  std::string time(const PeerRow& row, const std::string& name, const Timed* best) const {
    const Timed* timed = find(row, name);
    if (timed == nullptr) return "–";
    const bool fastest = best == nullptr || timed->ms <= std::min(best->ms, row.timed[0].ms);
    const std::string text = milliseconds(timed->ms);
    return fastest && form_ == Form::kMarkdown ? "**" + text + "**" : text;
  }

  void print_header() const {
    std::vector<std::string> cells = {"workload"};
    if (form_ == Form::kMarkdown) cells.emplace_back();
    for (const auto& [name, version] : table_.peers) cells.push_back(name);
    for (const char* last : {"attn / best", "of the limit", "max error of each"})
      cells.emplace_back(last);
    print_line(cells);
    if (form_ == Form::kMarkdown) print_line(std::vector<std::string>(cells.size(), "---"));
  }

  void print_line(const std::vector<std::string>& cells) const {
    if (form_ == Form::kMarkdown) {
      for (const std::string& cell : cells)
        std::printf("|%s%s", cell.empty() ? "" : " ", cell.c_str()), std::printf(" ");
      std::printf("|\n");
    } else {
      std::printf("%-10s", cells[0].c_str());
      const std::size_t times = table_.peers.size();
      for (std::size_t n = 1; n <= times; ++n) print_right(cells[n], 10);
      print_right(cells[times + 1], 13);
      print_right(cells[times + 2], 19);
      std::printf("  %s\n", cells[times + 3].c_str());
    }
    std::fflush(stdout);
  }
  /// In columns as they are seen: a dash takes three bytes.
  static void print_right(const std::string& text, std::size_t width) {
    const std::size_t seen = text == "–" ? 1 : text.size();
    std::printf("%*s%s", static_cast<int>(width - std::min(width, seen)), "", text.c_str());
  }

  Form form_;
  const PeerTable& table_;
};

/// The setting, and every row with its times and errors: what the picture is made from.
inline void write_json(const std::string& path, const std::vector<PeerTable>& tables) {
  nlohmann::ordered_json all;
  for (const auto& [key, value] : setting()) all["context"][key] = value;
  all["tables"] = nlohmann::json::array();
  for (const PeerTable& table : tables) {
    nlohmann::ordered_json rows = nlohmann::json::array();
    for (const PeerRow& row : table.rows) {
      nlohmann::ordered_json times = nlohmann::json::array();
      for (const Timed& timed : row.timed) {
        times.push_back({{"peer", timed.peer}, {"ms", timed.ms}, {"max_error", timed.max_error}});
      }
      rows.push_back({{"workload", row.workload},
                      {"words", row.words},
                      {"of_limit", row.of_limit},
                      {"limit", row.limit},
                      {"times", times}});
    }
    nlohmann::ordered_json versions;
    for (const auto& [name, version] : table.peers) versions[name] = version;
    all["tables"].push_back({{"threads", table.threads}, {"versions", versions}, {"rows", rows}});
  }
  std::ofstream file(path);
  file << all.dump(1) << '\n';
  if (!file.flush()) throw std::runtime_error(path + " could not be written");
}

}  // namespace bench
