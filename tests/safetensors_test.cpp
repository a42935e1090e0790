// tests/safetensors_test.cpp: the reader of examples/06_encoder: every number as it is stored, and a
// sentence for whatever else a file may hold.
// SPDX-License-Identifier: MIT
#include "../examples/06_encoder/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace {

using safetensors::File;
using safetensors::Index;

/// The bytes of a file: the header's length, the header, the data.
std::string file_of(const std::string& header, const std::string& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += char(std::uint64_t(header.size()) >> 8 * i & 0xff);
  return bytes + header + data;
}
std::string entry(const std::string& type, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}
/// What the reader says of a header in front of so many bytes of data.
std::string refusal(const std::string& header, std::size_t data_bytes) {
  try {
    File file(file_of(header, std::string(data_bytes, '\0')));
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "nothing was refused";
}
template <class T>
std::string bytes_of(std::initializer_list<T> numbers) {
  return {reinterpret_cast<const char*>(numbers.begin()), numbers.size() * sizeof(T)};
}

TEST(Safetensors, ReadsNumbersOfEachType) {
  // 0x0001 is F16's smallest, 2^-24; 0x7bff its largest, 65504; BF16 is the upper half of F32.
  const std::string half =
      bytes_of<std::uint16_t>({0x3c00, 0xc000, 0x0001, 0x7bff, 0x7c00, 0x8000});
  const std::string brain = bytes_of<std::uint16_t>({0x3f80, 0xc000, 0x3e80});
  const std::string full = bytes_of<float>({0.1f, -3, 1e-30f, 5});
  const File file(file_of(R"({"h":)" + entry("F16", "[2,3]", "[0,12]") + R"(, "b":)" +
                              entry("BF16", "[3]", "[12,18]") + R"(, "f":)" +
                              entry("F32", "[1,4]", "[18,34]") +
                              R"(, "__metadata__":{"format":"pt"}})" + "   ",
                          half + brain + full));
  safetensors::Matrix h(2, 3), f(1, 4);
  h << 1, -2, 0x1p-24f, 65504, INFINITY, -0.0f;
  f << 0.1f, -3, 1e-30f, 5;  // at an odd place in the file, too
  EXPECT_EQ(file.matrix("h", 2, 3), h);
  EXPECT_TRUE(std::signbit(file.matrix("h", 2, 3)(1, 2)));
  EXPECT_EQ(file.vector("b", 3), Eigen::RowVector3f(1, -2, 0.25f));
  EXPECT_EQ(file.matrix("f", 1, 4), f);
  EXPECT_EQ(file.tensors().size(), 3u);
}

TEST(Safetensors, TakesTensorsWithoutNumbersAndWithoutSizes) {
  const File file(file_of(R"({"none":)" + entry("F32", "[0,5]", "[0,0]") + R"(,"one":)" +
                              entry("F32", "[]", "[0,4]") + R"(,"wide":)" +
                              entry("F32", "[1099511627776,0]", "[4,4]") + "}",
                          bytes_of<float>({7})));
  EXPECT_EQ(file.matrix("none", 0, 5).size(), 0);
  EXPECT_EQ(file.tensor("one").shape.size(), 0u);
  EXPECT_EQ(file.matrix("wide", Index(1) << 40, 0).size(), 0);
  EXPECT_TRUE(File(file_of("{}", "")).tensors().empty());
}

TEST(Safetensors, RefusesWhatIsAskedForInVain) {
  const File file(file_of(R"({"a":)" + entry("F32", "[2,1]", "[0,8]") + R"(,"n":)" +
                              entry("I64", "[1]", "[8,16]") + "}",
                          std::string(16, '\0')));
  const auto error = [](const auto& f) {
    try {
      f();
    } catch (const std::runtime_error& refused) {
      return std::string(refused.what());
    }
    return std::string("nothing was refused");
  };
  EXPECT_EQ(error([&] { (void)file.matrix("b", 1, 1); }),
            "there is no tensor \"b\" among the 2 of the file, of which the first is \"a\"");
  EXPECT_EQ(error([&] { (void)file.matrix("a", 1, 2); }), "tensor \"a\" is [2, 1], needs [1, 2]");
  EXPECT_EQ(error([&] { (void)file.vector("a", 2); }), "tensor \"a\" is [2, 1], needs [2]");
  EXPECT_EQ(error([&] { (void)file.vector("n", 1); }),
            "tensor \"n\" is of type I64, needs F32, F16 or BF16");
  EXPECT_EQ(error([] { (void)File::read("/no/such/file"); }),
            "there is no such file, or it may not be read");
  EXPECT_EQ(error([] { (void)File::read("/"); }), "there is no such file, or it may not be read");
}

TEST(Safetensors, RefusesFilesThatEndTooEarly) {
  const auto error = [](const std::string& bytes) {
    try {
      File file(bytes);
    } catch (const std::runtime_error& refused) {
      return std::string(refused.what());
    }
    return std::string("nothing was refused");
  };
  EXPECT_EQ(error("\1\0"), "the file has 1 bytes, and needs 8 for the length of its header");
  EXPECT_EQ(error(""), "the file has 0 bytes, and needs 8 for the length of its header");
  const std::string whole = file_of(R"({"a":)" + entry("F32", "[2]", "[0,8]") + "}", "12345678");
  EXPECT_EQ(error(whole.substr(0, 20)),
            "the header has 54 bytes, the file 12 after its length: it is cut short");
  EXPECT_EQ(error(whole.substr(0, whole.size() - 1)),
            "tensor \"a\" ends at byte 8 of the data, the file has 7: it is cut short");
  EXPECT_EQ(error(std::string(8, '\xff')),
            "the header has 18446744073709551615 bytes, more than the 100000000 allowed");
}

TEST(Safetensors, RefusesHeadersThatAreNone) {
  EXPECT_EQ(refusal("", 0), "the header is no JSON: it errs or ends at byte 1 of 0");
  EXPECT_EQ(refusal(R"({"a":)", 0), "the header is no JSON: it errs or ends at byte 6 of 5");
  EXPECT_EQ(refusal("{\"\xff\":1}", 0), "the header is no JSON: it errs or ends at byte 3 of 7");
  EXPECT_EQ(refusal("[]", 0), "the header is JSON, but no object of tensors");
  EXPECT_EQ(refusal(R"({"a":1e999})", 0), "the header has a number that is too large for any");
  EXPECT_EQ(refusal(std::string(100'000, '['), 0),
            "the header nests deeper than lists within tensors within one object");
  const std::string a = R"("a":)" + entry("F32", "[1]", "[0,4]");
  EXPECT_EQ(refusal("{" + a + "," + a + "}", 4), "the header has \"a\" twice");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"F32","dtype":"F16"}})", 4), "the header has \"dtype\" twice");
}

TEST(Safetensors, RefusesTensorsThatCannotBe) {
  const auto of = [](const std::string& type, const std::string& shape,
                     const std::string& offsets) {
    return refusal(R"({"a":)" + entry(type, shape, offsets) + "}", 8);
  };
  EXPECT_EQ(refusal(R"({"a":3})", 0), "tensor \"a\" is not described by an object");
  EXPECT_EQ(refusal(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4),
            "tensor \"a\" has no string \"dtype\"");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4),
            "tensor \"a\" has no list \"shape\"");
  EXPECT_EQ(of("F32", "2", "[0,8]"), "tensor \"a\" has no list \"shape\"");
  EXPECT_EQ(of("F32", "[2]", "[8]"), "tensor \"a\" has not two \"data_offsets\"");
  const std::string number = "tensor \"a\" has in \"shape\" what is no whole number below 2^63";
  for (const char* shape : {"[-1]", "[2.0]", "[\"2\"]", "[true]", "[null]", "[9223372036854775808]",
                            "[99999999999999999999999]"})
    EXPECT_EQ(of("F32", shape, "[0,8]"), number) << shape;
  EXPECT_EQ(of("F32", "[2]", "[0,-8]"),
            "tensor \"a\" has in \"data_offsets\" what is no whole number below 2^63");
  EXPECT_EQ(of("F33", "[2]", "[0,8]"), "tensor \"a\" is of the unknown type \"F33\"");
  EXPECT_EQ(of("F32", "[4611686018427387904,4]", "[0,8]"),
            "tensor \"a\" is [4611686018427387904, 4], more than any memory holds");
  EXPECT_EQ(of("F32", "[2]", "[8,0]"), "tensor \"a\" ends at byte 0, before it begins");
  EXPECT_EQ(of("F32", "[2]", "[4,12]"),
            "tensor \"a\" ends at byte 12 of the data, the file has 8: it is cut short");
  EXPECT_EQ(of("F32", "[3]", "[0,8]"), "tensor \"a\" is F32 [3], which takes 12 bytes, and has 8");
}

TEST(Safetensors, RefusesBytesOfTwoTensorsAndOfNone) {
  const auto of = [](const std::string& a, const std::string& b) {
    return refusal(R"({"a":)" + entry("U8", "[4]", a) + R"(,"b":)" + entry("U8", "[4]", b) + "}",
                   8);
  };
  EXPECT_EQ(of("[0,4]", "[4,8]"), "nothing was refused");
  EXPECT_EQ(of("[4,8]", "[0,4]"), "nothing was refused");
  EXPECT_EQ(of("[0,4]", "[3,7]"), "tensor \"b\" overlaps another");
  EXPECT_EQ(of("[0,4]", "[0,4]"), "tensor \"b\" overlaps another");
  EXPECT_EQ(refusal(R"({"a":)" + entry("U8", "[4]", "[0,4]") + "}", 8),
            "bytes 4 to 8 of the data belong to no tensor");
  EXPECT_EQ(refusal(R"({"a":)" + entry("U8", "[4]", "[4,8]") + "}", 8),
            "bytes 0 to 4 of the data belong to no tensor");
}

// ---- Any bytes at all -----------------------------------------------------------------------------

/// A file that was damaged in one to three places: in a header whose length stays right, or anywhere.
class Damage {
 public:
  explicit Damage(std::uint32_t seed) : engine_(seed) {}

  std::string operator()(const std::string& header, const std::string& data) {
    std::string text = header;
    if (below(4) != 0) {
      for (std::size_t n = 1 + below(3); n > 0; --n) change(text);
      return file_of(text, data);
    }
    std::string bytes = file_of(header, data);
    for (std::size_t n = 1 + below(3); n > 0; --n) change(bytes);
    return bytes;
  }

 private:
  std::size_t below(std::size_t n) { return engine_() % n; }
  void change(std::string& bytes) {
    if (bytes.empty()) return;
    const std::size_t at = below(bytes.size()), length = 1 + below(12);
    const std::string piece = bytes.substr(below(bytes.size()), length);
    switch (below(8)) {
      case 0:
        bytes[at] = char(engine_());
        break;
      case 1:
        bytes[at] = char(bytes[at] ^ 1 << below(8));
        break;
      case 2:
        bytes[at] = "0123456789[]{},:\"-.e"[below(20)];
        break;
      case 3:
        bytes.insert(at, piece);
        break;
      case 4:
        bytes.replace(at, length, piece);
        break;
      case 5:
        bytes.erase(at, length);
        break;
      case 6:
        bytes.insert(at, std::to_string(std::uint64_t(engine_()) << below(33)));
        break;
      case 7:
        bytes.resize(at);
        break;
    }
  }

  std::mt19937 engine_;
};

TEST(Safetensors, ReadsOrRefusesAnyBytes) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":)" + entry("F32", "[2,3]", "[0,24]") + R"(,"b":)" +
      entry("BF16", "[4]", "[24,32]") + R"(,"c":)" + entry("F16", "[1,2]", "[32,36]") + R"(,"d":)" +
      entry("I64", "[1]", "[36,44]") + "}";
  const std::string data(44, '\1');
  Damage damage(1);
  // What each check says: the damage is to reach them all, or nearly.
  std::map<std::string, int> said = {{"for the length of its header", 0},
                                     {"allowed", 0},
                                     {"after its length", 0},
                                     {"no JSON", 0},
                                     {"nests deeper", 0},
                                     {"twice", 0},
                                     {"no object of tensors", 0},
                                     {"not described", 0},
                                     {"no string", 0},
                                     {"no list", 0},
                                     {"no whole number", 0},
                                     {"not two", 0},
                                     {"unknown type", 0},
                                     {"more than any memory", 0},
                                     {"before it begins", 0},
                                     {"of the data, the file has", 0},
                                     {"which takes", 0},
                                     {"belong to no tensor", 0}};
  int read = 0;
  for (int n = 0; n < 100'000; ++n) {
    try {
      const File file(damage(header, data));
      ++read;
      for (const auto& [name, tensor] : file.tensors()) {
        if (tensor.type == "I64") continue;
        if (tensor.shape.size() == 2) (void)file.matrix(name, tensor.shape[0], tensor.shape[1]);
        if (tensor.shape.size() == 1) (void)file.vector(name, tensor.shape[0]);
      }
    } catch (const std::runtime_error& error) {
      for (auto& [words, times] : said)
        times += std::string(error.what()).find(words) != std::string::npos;
    }
  }
  EXPECT_GT(read, 1000);
  for (const auto& [words, times] : said) EXPECT_GT(times, 0) << words;
}

}  // namespace
