// bench/peers/main.cpp: times this library and others on the same rows in turn, and prints a table.
//
//   attn_peers [name...] [--threads=1,2] [--seconds=2] [--markdown] [--json=file.json]
//
// A name is that of a row; without one, all are measured.
//
// SPDX-License-Identifier: MIT

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "in_turn.h"
#include "peer.h"
#include "subject.h"
#include "table.h"

namespace bench {
namespace {

struct Registered {
  int column;
  MakePeer make;
};
std::vector<Registered>& registered_peers() {
  static std::vector<Registered> peers;
  return peers;
}

}  // namespace

bool add_peer(int column, const MakePeer& make) {
  auto& peers = registered_peers();
  const auto behind = [&](const Registered& other) { return other.column > column; };
  peers.insert(std::find_if(peers.begin(), peers.end(), behind), {column, make});
  return true;
}

std::vector<std::unique_ptr<Peer>> make_peers(int threads) {
  std::vector<std::unique_ptr<Peer>> peers;
  for (const Registered& registered : registered_peers()) {
    if (auto peer = registered.make(threads)) peers.push_back(std::move(peer));
  }
  return peers;
}

namespace {

/// A row that a table may have.
struct Entry {
  std::string name, words;
  std::function<std::unique_ptr<Subject>()> make;
};

std::string words(const Workload& w) {
  std::ostringstream text;
  if (w.batch > 1) text << w.batch << " × ";
  text << w.query_heads << " heads";
  if (w.key_heads != w.query_heads) text << " on " << w.key_heads;
  text << ", " << w.queries << " × " << w.keys << ", d " << w.head_size;
  if (w.mask == Mask::kCausal) text << ", causal";
  if (w.mask == Mask::kBias) text << ", bias";
  if (w.mask == Mask::kKeyLengths)
    text << ", keys " << key_length(w, 0) << " … " << key_length(w, w.batch - 1);
  if (w.storage == Storage::kBfloat16) text << ", bfloat16";
  return text.str();
}

std::vector<Entry> entries() {
  std::vector<Entry> all;
  for (const Workload& w : kWorkloads) {
    if (w.storage == Storage::kDouble) continue;
    all.push_back({w.name, words(w), [&w]() -> std::unique_ptr<Subject> {
                     if (w.storage == Storage::kFloat)
                       return std::make_unique<AttentionSubject<float>>(w);
                     return std::make_unique<AttentionSubject<Eigen::bfloat16>>(w);
                   }});
  }
  all.push_back({"linear512", "512 × 512 → 2048, GELU",
                 [] { return std::make_unique<LinearGelu>(512, 512, 2048); }});
  all.push_back({"mha512", "layer, 512 tokens, d_model 512, 8 heads",
                 [] { return std::make_unique<MultiHead>(512, 512, 8); }});
  all.push_back({"seed", "layer, 10 tokens, d_model 64, 8 heads",
                 [] { return std::make_unique<MultiHead>(10, 64, 8); }});
  return all;
}

PeerRow measure(const Entry& entry, const std::vector<std::unique_ptr<Peer>>& peers, int threads) {
  const std::unique_ptr<Subject> subject = entry.make();
  std::vector<Contender> contenders;
  for (const auto& peer : peers) {
    peer->take_turn();
    const Contender contender = subject->contender(*peer);
    if (contender.call) contenders.push_back(contender);
  }
  const std::unique_ptr<Limit> limit = subject->limit(threads);
  const std::vector<double> seconds = time_in_turn(contenders, threads, *limit);
  PeerRow row{entry.name, entry.words, {}, limit->fraction(seconds[0]), limit->words()};
  for (std::size_t n = 0; n < contenders.size(); ++n) {
    row.timed.push_back({contenders[n].peer->name(), 1e3 * seconds[n], contenders[n].max_error});
  }
  return row;
}

/// What the command line asks for.
struct Wanted {
  std::vector<int> threads;
  std::vector<std::string> names;
  Form form = Form::kText;
  std::string json;

  bool has(const std::string& name) const {
    return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
  }
};

double positive(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value > 0)) {
    throw std::invalid_argument(option + ": '" + text + "' is not a number above 0");
  }
  return value;
}

Wanted parse(int argc, char** argv, const std::vector<Entry>& rows) {
  Wanted wanted;
  for (int n = 1; n < argc; ++n) {
    const std::string argument = argv[n];
    const std::string value = argument.substr(argument.find('=') + 1);
    if (argument.rfind("--threads=", 0) == 0) {
      std::istringstream list(value);
      for (std::string each; std::getline(list, each, ',');)
        wanted.threads.push_back(static_cast<int>(positive("--threads", each)));
    } else if (argument.rfind("--seconds=", 0) == 0) {
      time_budget() = positive("--seconds", value);
    } else if (argument.rfind("--json=", 0) == 0) {
      wanted.json = value;
    } else if (argument == "--markdown") {
      wanted.form = Form::kMarkdown;
    } else if (argument.rfind('-', 0) == 0) {
      throw std::invalid_argument("there is no option " + argument);
    } else if (std::none_of(rows.begin(), rows.end(),
                            [&](const Entry& row) { return row.name == argument; })) {
      throw std::invalid_argument("there is no row " + argument);
    } else {
      wanted.names.push_back(argument);
    }
  }
  if (wanted.threads.empty()) wanted.threads = {1, 2};
  return wanted;
}

PeerTable measure_all(const Wanted& wanted, const std::vector<Entry>& rows, int threads) {
  const auto peers = make_peers(threads);
  PeerTable table{threads, {}, {}};
  for (const auto& peer : peers) table.peers.emplace_back(peer->name(), peer->version());
  const TablePrinter printer(wanted.form, table);
  for (const Entry& entry : rows) {
    if (!wanted.has(entry.name)) continue;
    table.rows.push_back(measure(entry, peers, threads));
    printer.print(table.rows.back());
  }
  std::puts("");
  return table;
}

/// Denormal numbers count as 0 in all libraries alike, and in threads that are started later: some
/// of them set that themselves.
void flush_denormals() {
#if defined(__SSE__)
  constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  _mm_setcsr(_mm_getcsr() | kFlushToZero | kDenormalsAreZero);
#endif
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  try {
    const std::vector<bench::Entry> rows = bench::entries();
    const bench::Wanted wanted = bench::parse(argc, argv, rows);
    bench::flush_denormals();
    std::vector<bench::PeerTable> tables;
    for (const int threads : wanted.threads)
      tables.push_back(bench::measure_all(wanted, rows, threads));
    if (!wanted.json.empty()) bench::write_json(wanted.json, tables);
  } catch (const std::exception& error) {
    std::cerr << "attn_peers: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
