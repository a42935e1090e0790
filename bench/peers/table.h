// bench/peers/table.h: the rows as a table for the terminal or for Markdown, and as JSON.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../support/setting.h"
#include "format.h"
#include "row.h"

namespace bench {

enum class Form { kText, kMarkdown };

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
    cells.push_back(errors(row));
    print_line(cells);
  }

 private:
  /// Of each, in the terminal; of this library and the range of the others.
  std::string errors(const PeerRow& row) const {
    const auto text = [](double error) { return formatted("%.0e", error); };
    if (form_ == Form::kText) {
      std::string all;
      for (const auto& [name, version] : table_.peers) {
        const Timed* timed = find(row, name);
        all += (all.empty() ? "" : " ") + (timed == nullptr ? "–" : text(timed->max_error));
      }
      return all;
    }
    std::string all = text(row.timed[0].max_error);
    if (row.timed.size() == 1) return all;
    const auto [least, most] = std::minmax_element(
        row.timed.begin() + 1, row.timed.end(),
        [](const Timed& a, const Timed& b) { return a.max_error < b.max_error; });
    return all + " (" + text(least->max_error) + " … " + text(most->max_error) + ")";
  }

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
    for (const char* last : {"attn / best", "of the limit"}) cells.emplace_back(last);
    cells.emplace_back(form_ == Form::kText ? "max error of each" : "max error (others')");
    print_line(cells);
    if (form_ == Form::kMarkdown) print_line(std::vector<std::string>(cells.size(), "---"));
  }

  void print_line(const std::vector<std::string>& cells) const {
    if (form_ == Form::kMarkdown) {
      std::string line = "|";
      for (const std::string& cell : cells) line += (cell.empty() ? "" : ' ' + cell) + " |";
      std::puts(line.c_str());
    } else {
      const std::size_t times = table_.peers.size();
      std::printf("%-10s", cells[0].c_str());
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
