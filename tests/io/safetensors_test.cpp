// SPDX-License-Identifier: MIT
/// \file
/// The format byte by byte: files here are put together by hand, never by the writer that is under test.
#include "posbias/io/safetensors.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors_files.hpp"
#include "support/catch.hpp"

#if __has_include(<sys/resource.h>)
#include <sys/resource.h>
#include <csignal>
#endif

using posbias::FormatError;
using posbias::Index;
using posbias::ParameterTensor;
using posbias::io::load_parameters;
using posbias::io::SafeTensors;
using posbias::io::SafeTensorsWriter;
using posbias::io::save_parameters;
using posbias_test::bytes_of;
using posbias_test::contains;
using posbias_test::file_text;
using posbias_test::little;
using posbias_test::message_of;
using posbias_test::one;
using posbias_test::Scratch;
using posbias_test::slurp;
using posbias_test::text_of;

namespace {

SafeTensors parse(const std::string& header, const std::string& data = "") {
  return SafeTensors::parse(bytes_of(file_text(header, data)));
}

/// The message with which a whole file, or a header and its data, are refused.
std::string refusal_of_file(std::string_view file) {
  return message_of<FormatError>([&] { (void)SafeTensors::parse(bytes_of(file)); });
}
std::string refusal(const std::string& header, const std::string& data = "") {
  return refusal_of_file(file_text(header, data));
}

/// A file of one tensor "a" of rank 1, sized to its data.
SafeTensors vector_file(const std::string& dtype, std::size_t width, const std::string& data) {
  return parse(one('"' + dtype + '"', "[" + std::to_string(data.size() / width) + "]",
                   "[0," + std::to_string(data.size()) + "]"),
               data);
}

std::string repeated(std::string_view part, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += part;
  return text;
}

/// The bits of the value, so that NaN and -0 compare too.
std::uint32_t bits(float value) {
  return std::bit_cast<std::uint32_t>(value);
}

/// Two matrices of distinct primes as sizes, a scalar, and integers.
struct Toy {
  ParameterTensor<float, 2> weight{2, 3};
  ParameterTensor<double, 0> div;
  ParameterTensor<std::int32_t, 1> counts{2};

  Toy() {
    for (Index i = 0; i < 6; ++i) weight.data()[i] = 0.5f + static_cast<float>(i);
    div.setConstant(-3);
    counts.setValues({100, 101});
  }
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    visitor("emb.weight", self.weight);
    visitor("div", self.div);
    visitor("counts", self.counts);
  }
  [[nodiscard]] std::vector<double> values() const {
    std::vector<double> all(weight.data(), weight.data() + 6);
    all.insert(all.end(), {div(), static_cast<double>(counts(0)), static_cast<double>(counts(1))});
    return all;
  }
};

}  // namespace

TEST_CASE("a file written by hand reads as it was written", "[safetensors]") {
  // Offsets out of the order of the keys, an odd byte first: everything after it is unaligned.
  const std::string header = R"({ "__metadata__" : {"format":"pt", "note":"\u00e9\n"},)"
                             R"( "w": {"shape": [2,3], "data_offsets": [1, 25], "dtype": "F32"},)"
                             R"( "flag": {"dtype":"BOOL","shape":[],"data_offsets":[0,1]},)"
                             R"( "empty": {"dtype":"F64","shape":[4,0],"data_offsets":[25,25]} }   )";
  std::string data = little(1, 1);
  for (const std::uint32_t value : {0x3f800000u, 0x40000000u, 0x40400000u, 0xc0800000u, 0x00000001u, 0x7f800000u})
    data += little(value, 4);  // 1, 2, 3, -4, the smallest denormal, infinity
  const SafeTensors file = parse(header, data);

  REQUIRE(file.entries().size() == 3);
  CHECK(file.entries()[0].name == "flag");
  CHECK(file.entries()[1].name == "w");
  CHECK(file.entries()[1].begin == 1);
  CHECK(file.entries()[1].end == 25);
  CHECK(file.entries()[2].name == "empty");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "\xc3\xa9\n"}});
  CHECK(file.contains("w"));
  CHECK_FALSE(file.contains("__metadata__"));
  CHECK(file.dtype("w") == "F32");
  CHECK(file.shape("w") == std::vector<Index>{2, 3});
  CHECK(file.shape("flag").empty());

  const auto rows = file.tensor<float, 2>("w");
  CHECK(rows(0, 2) == 3);
  CHECK(rows(1, 0) == -4);
  CHECK(rows(1, 1) == std::numeric_limits<float>::denorm_min());
  CHECK(rows(1, 2) == std::numeric_limits<float>::infinity());
  const auto columns = file.tensor<double, 2, Eigen::ColMajor>("w");
  for (Index i = 0; i < 2; ++i)
    for (Index j = 0; j < 3; ++j) CHECK(columns(i, j) == static_cast<double>(rows(i, j)));
  CHECK(file.tensor<bool, 0>("flag")());
  CHECK(file.tensor<float, 2>("empty").dimension(0) == 4);
  CHECK(file.tensor<float, 2>("empty").size() == 0);
}

TEST_CASE("the smallest file is an empty object", "[safetensors]") {
  CHECK(parse("{}").entries().empty());
  CHECK(parse("{}      ").entries().empty());
  CHECK(parse(R"({"__metadata__":{}})").metadata().empty());
  CHECK(parse(R"({"__metadata__":null})").metadata().empty());
}

TEST_CASE("empty tensors lie between the others, wherever the header names them", "[safetensors]") {
  const SafeTensors file = parse(
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"z":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]},)"
      R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"y":{"dtype":"I64","shape":[5,0,7],"data_offsets":[2,2]},)"
      R"("x":{"dtype":"F4","shape":[0,3],"data_offsets":[2,2]}})",
      "abc");
  std::string order;
  for (const auto& entry : file.entries()) order += entry.name;
  CHECK(order == "zaxyb");
  CHECK(file.shape("y") == std::vector<Index>{5, 0, 7});
  CHECK(file.tensor<int, 1>("b")(0) == 'c');
}

TEST_CASE("a copy and a moved file read the same", "[safetensors]") {
  SafeTensors file = vector_file("U8", 1, little(7, 1));
  const SafeTensors copy = file;
  const SafeTensors moved = std::move(file);
  CHECK(copy.tensor<int, 1>("a")(0) == 7);
  CHECK(moved.tensor<int, 1>("a")(0) == 7);
}

TEST_CASE("every malformed file is refused by name", "[safetensors]") {
  struct Case {
    std::string header, data, message;
  };
  const std::string four(4, '\0');
  const std::string good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const std::vector<Case> cases{
      // the header as a whole
      {"", "", "must start with '{'"},
      {"    ", "", "must start with '{'"},
      {" {}", "", "must start with '{'"},
      {"[]", "", "must start with '{'"},
      {"\xef\xbb\xbf{}", "", "must start with '{'"},
      {"{}\n", "", "followed by nothing but spaces"},
      {"{} x", "", "followed by nothing but spaces"},
      {R"({"a":)", "", "must be one JSON object"},
      {"{}{}", "", "not JSON in UTF-8, byte 3"},
      {"{} {}", "", "not JSON in UTF-8, byte 4"},
      {"{}}", "", "not JSON in UTF-8, byte 3"},
      {"{/**/}", "", "not JSON in UTF-8"},
      {"{'a':1}", "", "not JSON in UTF-8"},
      {R"({"__metadata__":{},})", "", "not JSON in UTF-8"},
      {std::string("{}\0}", 4), "", "byte 3 is NUL"},
      {std::string("{}\0garbage}", 11), "", "byte 3 is NUL"},
      // UTF-8: a stray byte, an overlong slash, a surrogate, a value past U+10FFFF, a cut sequence, a lone
      // escape
      {"{\"\xff\":{" + good + "}}", four, "not JSON in UTF-8, byte 3"},
      {"{\"\xc0\xaf\":{" + good + "}}", four, "not JSON in UTF-8"},
      {"{\"\xed\xa0\x80\":{" + good + "}}", four, "not JSON in UTF-8"},
      {"{\"\xf4\x90\x80\x80\":{" + good + "}}", four, "not JSON in UTF-8"},
      {"{\"\xe2\x82\":{" + good + "}}", four, "not JSON in UTF-8"},
      {R"({"\ud800":{)" + good + "}}", four, "not JSON in UTF-8"},
      {"{\"a\tb\":{" + good + "}}", four, "not JSON in UTF-8"},
      // the values of the outer object
      {R"({"a":1})", "", R"("a" must be an object; got a number)"},
      {R"({"a":-1})", "", R"("a" must be an object; got a negative integer)"},
      {R"({"a":1.5})", "", R"("a" must be an object; got the number 1.5)"},
      {R"({"a":"b"})", "", R"("a" must be an object; got a string)"},
      {R"({"a":null})", "", R"("a" must be an object; got null)"},
      {R"({"a":true})", "", R"("a" must be an object; got a boolean)"},
      {R"({"a":[]})", "", R"("a" must be an object; got an array)"},
      {R"({"a":1e999})", "", "not JSON in UTF-8"},
      {R"({"__metadata__":{},"a":null})", "", R"("a" must be an object; got null)"},
      {R"({"__metadata__":[]})", "", R"("__metadata__" must be an object; got an array)"},
      // metadata
      {R"({"__metadata__":{"k":1}})", "", R"(__metadata__: "k" must be a string; got a number)"},
      {R"({"__metadata__":{"k":null}})", "", R"("k" must be a string; got null)"},
      {R"({"__metadata__":{"k":{}}})", "", R"("k" must be a string; got an object)"},
      {R"({"__metadata__":{"k":[]}})", "", R"("k" must be a string; got an array)"},
      // keys twice, at every level; an escape does not make another key
      {R"({"a":{)" + good + R"(},"a":{)" + good + "}}", four, R"(the key "a" occurs twice)"},
      {R"({"a":{)" + good + R"(},"\u0061":{)" + good + "}}", four, R"(the key "a" occurs twice)"},
      {R"({"__metadata__":{},"__metadata__":{}})", "", R"(the key "__metadata__" occurs twice)"},
      {R"({"__metadata__":{"k":"1","k":"1"}})", "", R"(__metadata__: the key "k" occurs twice)"},
      {R"({"a":{"dtype":"F32",)" + good + "}}", four, R"(tensor "a": the key "dtype" occurs twice)"},
      {R"({"a":{"shape":[1],)" + good + "}}", four, R"(tensor "a": the key "shape" occurs twice)"},
      {R"({"a":{"data_offsets":[0,4],)" + good + "}}", four, R"(tensor "a": the key "data_offsets" occurs twice)"},
      // a tensor's keys
      {R"({"a":{"strides":[1],)" + good + "}}", four, R"(tensor "a": expected the keys dtype, shape and data_offse)"},
      {R"({"a":{"Dtype":"F32",)" + good + "}}", four, R"(got "Dtype")"},
      {R"({"a":{}})", "", R"(tensor "a": has no dtype)"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", four, R"(tensor "a": has no dtype)"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", four, R"(tensor "a": has no shape)"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", four, R"(tensor "a": has no data_offsets)"},
      // dtype
      {one("\"F33\"", "[1]", "[0,4]"), four, R"(tensor "a": unknown dtype "F33")"},
      {one("\"f32\"", "[1]", "[0,4]"), four, R"(unknown dtype "f32")"},
      {one("\"\"", "[1]", "[0,4]"), four, R"(unknown dtype "")"},
      {one("4", "[1]", "[0,4]"), four, R"(tensor "a": "dtype" must be a string; got a number)"},
      {one("null", "[1]", "[0,4]"), four, R"("dtype" must be a string; got null)"},
      {one("[]", "[1]", "[0,4]"), four, R"("dtype" must be a string; got an array)"},
      {one("{}", "[1]", "[0,4]"), four, R"("dtype" must be a string; got an object)"},
      // shape
      {one("\"F32\"", "1", "[0,4]"), four, R"("shape" must be an array; got a number)"},
      {one("\"F32\"", "\"1\"", "[0,4]"), four, R"("shape" must be an array; got a string)"},
      {one("\"F32\"", "{}", "[0,4]"), four, R"("shape" must be an array; got an object)"},
      {one("\"F32\"", "[-1]", "[0,4]"), four, "from 0 to the largest Index; got a negative integer"},
      {one("\"F32\"", "[-0]", "[0,0]"), "", "from 0 to the largest Index; got a negative integer"},
      {one("\"F32\"", "[1.0]", "[0,4]"), four, "largest Index; got the number 1.0"},
      {one("\"F32\"", "[1e0]", "[0,4]"), four, "largest Index; got the number 1e0"},
      {one("\"F32\"", "[\"1\"]", "[0,4]"), four, "largest Index; got a string"},
      {one("\"F32\"", "[true]", "[0,4]"), four, "largest Index; got a boolean"},
      {one("\"F32\"", "[null]", "[0,4]"), four, "largest Index; got null"},
      {one("\"F32\"", "[[1]]", "[0,4]"), four, "largest Index; got an array"},
      {one("\"F32\"", "[{}]", "[0,4]"), four, "largest Index; got an object"},
      {one("\"F32\"", "[01]", "[0,4]"), four, "not JSON in UTF-8"},
      {one("\"F32\"", "[9223372036854775808]", "[0,4]"), four, "largest Index; got 9223372036854775808"},
      {one("\"F32\"", "[18446744073709551617]", "[0,4]"), four, "got the number 18446744073709551617"},
      // products that would be 4 bytes, or none, modulo 2^64
      {one("\"F32\"", "[4294967296,4294967296]", "[0,0]"), "", R"(tensor "a": its shape overflows)"},
      {one("\"F32\"", "[4611686018427387905]", "[0,4]"), four, R"(tensor "a": its shape overflows)"},
      {one("\"F32\"", "[0,4294967296,4294967296]", "[0,0]"), "", R"(tensor "a": its shape overflows)"},
      {one("\"F32\"", "[4294967296,4294967296,0]", "[0,0]"), "", R"(tensor "a": its shape overflows)"},
      // offsets
      {one("\"F32\"", "[1]", "4"), four, R"("data_offsets" must be an array; got a number)"},
      {one("\"F32\"", "[1]", "[]"), four, "an array of two 64-bit unsigned integers; got 0 of them"},
      {one("\"F32\"", "[1]", "[4]"), four, "unsigned integers; got 1 of them"},
      {one("\"F32\"", "[1]", "[0,4,4]"), four, "unsigned integers; got 3 of them"},
      {one("\"F32\"", "[1]", "[0,-4]"), four, "unsigned integers; got a negative integer"},
      {one("\"F32\"", "[1]", "[0,4.0]"), four, "unsigned integers; got the number 4.0"},
      {one("\"F32\"", "[1]", "[0,\"4\"]"), four, "unsigned integers; got a string"},
      {one("\"F32\"", "[1]", "[0,[4]]"), four, "unsigned integers; got an array"},
      {one("\"F32\"", "[1]", "[0,18446744073709551616]"), four, "got the number 18446744073709551616"},
      {one("\"F32\"", "[1]", "[4,0]"), four, R"(tensor "a": data_offsets [4, 0) end before they begin)"},
      {one("\"F32\"", "[1]", "[1,5]"), four + "x",
       "[1, 5) leave a hole after the values before; expected them to begin at 0"},
      {one("\"F32\"", "[1]", "[0,5]"), four + "x", "[0, 5) are 5 bytes; shape (1) of F32 takes 4"},
      {one("\"F32\"", "[2,3]", "[0,4]"), four, "are 4 bytes; shape (2, 3) of F32 takes 24"},
      {one("\"F32\"", "[]", "[0,0]"), "", "are 0 bytes; shape () of F32 takes 4"},
      {one("\"F32\"", "[0]", "[0,4]"), four, "are 4 bytes; shape (0) of F32 takes 0"},
      {one("\"F64\"", "[1]", "[0,4]"), four, "shape (1) of F64 takes 8"},
      {R"({"a":{)" + good + R"(},"b":{)" + good + "}}", four, R"(tensor "b": data_offsets [0, 4) overlap)"},
      {R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]},"a":{)" + good + "}}", four + "xx",
       R"(tensor "b": data_offsets [2, 6) overlap the values before; expected them to begin at 4)"},
      {R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]},"a":{)" + good + "}}", four + "xx",
       R"(tensor "b": data_offsets [5, 6) leave a hole after)"},
      {R"({"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]},"a":{)" + good + "}}", four,
       R"(tensor "b": data_offsets [2, 2) overlap)"},
      // the data
      {one("\"F32\"", "[1]", "[0,4]"), "abc", "describes 4 bytes of values; the file has 3"},
      {one("\"F32\"", "[1]", "[0,4]"), "abcde", "describes 4 bytes of values; the file has 5"},
      {"{}", "x", "describes 0 bytes of values; the file has 1"},
      {one("\"U8\"", "[1000000000000000]", "[0,1000000000000000]"), "x", "the file has 1"},
      // types below a byte must fill their bytes
      {one("\"F4\"", "[3]", "[0,2]"), "ab", R"(tensor "a": 12 bits of F4 are no whole number of bytes)"},
      {one("\"F6_E2M3\"", "[2]", "[0,2]"), "ab", "12 bits of F6_E2M3 are no whole number of bytes"},
  };
  for (const Case& c : cases) {
    INFO(c.header);
    CHECK_THAT(refusal(c.header, c.data), contains(c.message));
  }
  const std::string long_number = "1." + std::string(60, '0');
  CHECK(refusal(one("\"F32\"", "[" + long_number + "]", "[0,4]"), four)
            .ends_with("got the number " + long_number.substr(0, 40)));
}

TEST_CASE("lengths that the file does not hold are refused", "[safetensors]") {
  CHECK_THAT(refusal_of_file(""), contains("expected 8 bytes for the header's length; the file has 0"));
  CHECK_THAT(refusal_of_file("1234567"), contains("the file has 7"));
  CHECK_THAT(refusal_of_file(little(0, 8)), contains("must start with '{'"));
  CHECK_THAT(refusal_of_file(little(3, 8) + "{}"), contains("the header has 3 bytes; the file has 2 after its length"));
  // Claims that would wrap around when 8 is added to them.
  CHECK_THAT(refusal_of_file(little(~std::uint64_t{0}, 8) + "{}"),
             contains("18446744073709551615 bytes; the file has 2"));
  CHECK_THAT(refusal_of_file(little(~std::uint64_t{7}, 8) + "{}"),
             contains("18446744073709551608 bytes; the file has 2"));
  CHECK_THAT(refusal_of_file(little(100'000'000, 8) + "{}"), contains("100000000 bytes; the file has 2"));
}

TEST_CASE("a header may have a hundred million bytes and no more", "[safetensors]") {
  std::vector<std::byte> file(8 + 100'000'000, std::byte{' '});
  const auto begin_with = [&](const std::string& text) {
    for (std::size_t i = 0; i < text.size(); ++i) file[i] = static_cast<std::byte>(text[i]);
  };
  begin_with(little(100'000'000, 8) + "{}");
  CHECK(SafeTensors::parse(file).entries().empty());
  file.push_back(std::byte{' '});
  begin_with(little(100'000'001, 8) + "{}");
  CHECK_THAT(message_of<FormatError>([&] { (void)SafeTensors::parse(std::move(file)); }),
             contains("the header has 100000001 bytes; allowed are 100000000"));
}

TEST_CASE("nesting deeper than the format's ends the parse, not the stack", "[safetensors]") {
  const int depth = 1'000'000;
  CHECK_THAT(refusal(repeated("{\"a\":", depth) + repeated("}", depth)), contains(R"(tensor "a": expected the keys)"));
  CHECK_THAT(refusal(repeated("{\"dtype\":", depth) + repeated("}", depth)),
             contains("must be a string; got an object"));
  CHECK_THAT(refusal("{\"a\":" + repeated("[", depth) + repeated("]", depth) + "}"), contains("got an array"));
  CHECK_THAT(refusal(one("\"F32\"", repeated("[", depth) + repeated("]", depth), "[0,4]")), contains("got an array"));
}

TEST_CASE("a name in a message is escaped and cut", "[safetensors]") {
  CHECK_THAT(refusal("{\"x\\u0000\\u001f\\\"\\\\\":1}"), contains(R"("x\u0000\u001f\"\\" must be an object)"));
  const std::string message = refusal("{\"" + repeated("\xc3\xa9", 100'000) + "x\":1}");
  CHECK(message.size() < 300);
  CHECK_THAT(message, contains("\"" + repeated("\xc3\xa9", 40) + "\"... must be an object"));
  CHECK_THAT(refusal("{\"x" + repeated("\xc3\xa9", 100'000) + "\":1}"),
             contains("\"x" + repeated("\xc3\xa9", 39) + "\"..."));
  CHECK(refusal("{\"" + repeated("x", 100'000) + "\xff\":1}").size() < 400);
}

TEST_CASE("every prefix of a file is refused", "[safetensors]") {
  const std::string whole =
      file_text(R"({"__metadata__":{"k":"v"},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}} )", "abc");
  REQUIRE_NOTHROW(SafeTensors::parse(bytes_of(whole)));
  for (std::size_t length = 0; length < whole.size(); ++length) {
    INFO(length);
    CHECK_THAT(refusal_of_file(whole.substr(0, length)), contains("SafeTensors: "));
  }
}

TEST_CASE("a header with any byte replaced parses or is refused", "[safetensors]") {
  const std::string whole =
      file_text(R"({"__metadata__":{"k":"\u00e9"},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}} )", "abc");
  int parsed = 0;
  int refused = 0;
  for (std::size_t at = 0; at + 3 < whole.size(); ++at)
    for (int replacement = 0; replacement < 256; ++replacement) {
      std::string changed = whole;
      changed[at] = static_cast<char>(replacement);
      try {
        const SafeTensors file = SafeTensors::parse(bytes_of(changed));
        ++parsed;
        for (const auto& entry : file.entries()) (void)file.tensor<std::int64_t, 1>(entry.name);
      } catch (const FormatError&) {
        ++refused;
      }
    }
  CHECK(parsed > 256);  // names and metadata may be almost anything
  CHECK(refused > 10'000);
}

TEST_CASE("types that are not read still have a size", "[safetensors]") {
  for (const auto& [dtype, bytes] : {std::pair{"F4", 4},
                                     {"F6_E2M3", 6},
                                     {"F6_E3M2", 6},
                                     {"F8_E5M2", 8},
                                     {"F8_E4M3", 8},
                                     {"F8_E8M0", 8},
                                     {"F8_E4M3FNUZ", 8},
                                     {"F8_E5M2FNUZ", 8},
                                     {"C64", 64}}) {
    INFO(dtype);
    const SafeTensors file = parse(one('"' + std::string(dtype) + '"', "[2,4]", "[0," + std::to_string(bytes) + "]"),
                                   std::string(static_cast<std::size_t>(bytes), 'x'));
    CHECK(file.dtype("a") == dtype);
    CHECK_THAT(message_of<FormatError>([&, &f = file] { (void)f.tensor<float, 2>("a"); }),
               contains(R"("a" has dtype )" + std::string(dtype) + ", which does not convert to F32"));
  }
  // 3 of 4 bits would be no whole bytes, but 0 of them are.
  CHECK(parse(one("\"F4\"", "[3,0]", "[0,0]")).shape("a") == std::vector<Index>{3, 0});
}

TEST_CASE("floating point converts by one rounding", "[safetensors]") {
  SECTION("F16") {
    // 1, -2, the largest, the smallest denormal, 1/3 rounded, infinity, -0
    std::string data;
    for (const unsigned half : {0x3c00u, 0xc000u, 0x7bffu, 0x0001u, 0x3555u, 0x7c00u, 0x8000u, 0x7e00u})
      data += little(half, 2);
    const auto values = vector_file("F16", 2, data).tensor<float, 1>("a");
    CHECK(values(0) == 1);
    CHECK(values(1) == -2);
    CHECK(values(2) == 65504);
    CHECK(values(3) == 0x1p-24f);
    CHECK(values(4) == 0x1.554p-2f);
    CHECK(values(5) == std::numeric_limits<float>::infinity());
    CHECK(bits(values(6)) == 0x80000000u);
    CHECK(std::isnan(values(7)));
    CHECK(vector_file("F16", 2, data).tensor<double, 1>("a")(3) == 0x1p-24);
    const auto as_they_are = vector_file("F16", 2, data).tensor<Eigen::half, 1>("a");
    CHECK(std::bit_cast<std::uint16_t>(as_they_are(4)) == 0x3555);
    CHECK(std::bit_cast<std::uint16_t>(as_they_are(7)) == 0x7e00);
  }
  SECTION("BF16 is the upper half of a float") {
    std::string data;
    for (const unsigned upper : {0x3f80u, 0xc049u, 0x0001u, 0xff80u, 0x8000u}) data += little(upper, 2);
    const auto values = vector_file("BF16", 2, data).tensor<float, 1>("a");
    CHECK(bits(values(0)) == 0x3f800000u);
    CHECK(bits(values(1)) == 0xc0490000u);
    CHECK(bits(values(2)) == 0x00010000u);
    CHECK(bits(values(3)) == 0xff800000u);
    CHECK(bits(values(4)) == 0x80000000u);
    CHECK(vector_file("BF16", 2, data).tensor<double, 1>("a")(1) == -3.140625);
    CHECK(std::bit_cast<std::uint16_t>(vector_file("BF16", 2, data).tensor<Eigen::bfloat16, 1>("a")(1)) == 0xc049);
    CHECK_THAT(message_of<FormatError>([&] { (void)vector_file("BF16", 2, data).tensor<Eigen::half, 1>("a"); }),
               contains(R"("a" has dtype BF16, which does not convert to F16)"));
  }
  SECTION("F64 to float rounds to nearest, ties to even, and past the largest float to infinity") {
    std::string data;
    for (const std::uint64_t value :
         std::vector<std::uint64_t>{0x3ff0000010000000u, 0x3ff0000030000000u, 0x3ff0000010000001u, 0x3fb999999999999au,
                                    0xffefffffffffffffu, 0x0000000000000001u})
      data += little(value, 8);
    const auto values = vector_file("F64", 8, data).tensor<float, 1>("a");
    CHECK(bits(values(0)) == 0x3f800000u);  // 1 + 2^-24: down to the even 1
    CHECK(bits(values(1)) == 0x3f800002u);  // 1 + 3*2^-24: up to the even one
    CHECK(bits(values(2)) == 0x3f800001u);  // 1 + 2^-24 and a little
    CHECK(values(3) == 0.1f);
    CHECK(values(4) == -std::numeric_limits<float>::infinity());
    CHECK(bits(values(5)) == 0);
    CHECK(vector_file("F64", 8, data).tensor<double, 1>("a")(5) == std::numeric_limits<double>::denorm_min());
  }
}

TEST_CASE("integers convert without loss or not at all", "[safetensors]") {
  const auto refused = [](const std::string& dtype, std::size_t width, std::uint64_t value, auto scalar) {
    const SafeTensors file =
        vector_file(dtype, width, little(5, static_cast<int>(width)) + little(value, static_cast<int>(width)));
    return message_of<FormatError>([&] { (void)file.tensor<decltype(scalar), 1>("a"); });
  };
  CHECK(vector_file("I8", 1, little(0x80, 1)).tensor<std::int32_t, 1>("a")(0) == -128);
  CHECK(vector_file("U8", 1, little(0x80, 1)).tensor<std::int32_t, 1>("a")(0) == 128);
  CHECK(vector_file("I16", 2, little(0x8001, 2)).tensor<std::int32_t, 1>("a")(0) == -32767);
  CHECK(vector_file("U16", 2, little(0x8001, 2)).tensor<std::int32_t, 1>("a")(0) == 32769);
  CHECK(vector_file("I32", 4, little(0x80000000, 4)).tensor<std::int32_t, 1>("a")(0) == -2147483647 - 1);
  CHECK(vector_file("U32", 4, little(0x7fffffff, 4)).tensor<std::int32_t, 1>("a")(0) == 2147483647);
  CHECK(vector_file("U32", 4, little(0x80000000, 4)).tensor<std::int64_t, 1>("a")(0) == 2147483648);
  CHECK(vector_file("I64", 8, little(~std::uint64_t{6}, 8)).tensor<std::int32_t, 1>("a")(0) == -7);
  CHECK(vector_file("I64", 8, little(std::uint64_t{1} << 63, 8)).tensor<std::int64_t, 1>("a")(0) ==
        std::numeric_limits<std::int64_t>::min());
  CHECK(vector_file("I64", 8, little(9, 8)).tensor<long, 1>("a")(0) == 9);
  CHECK(vector_file("I64", 8, little(9, 8)).tensor<long long, 1>("a")(0) == 9);
  CHECK_THAT(refused("U32", 4, 0x80000000, std::int32_t{}),
             contains(R"("a" holds 2147483648, which does not convert to I32)"));
  CHECK_THAT(refused("I64", 8, 0x80000000, std::int32_t{}), contains("holds 2147483648"));
  CHECK_THAT(refused("I64", 8, ~std::uint64_t{0x80000000}, std::int32_t{}), contains("holds -2147483649"));
  CHECK_THAT(refused("U64", 8, std::uint64_t{1} << 63, std::int64_t{}),
             contains("holds 9223372036854775808, which does not convert to I64"));
  CHECK_THAT(refused("U64", 8, 0x80000000, std::int32_t{}), contains("to I32"));
}

TEST_CASE("bool is 0 or 1, and no type stands for another kind", "[safetensors]") {
  const auto flags = vector_file("BOOL", 1, std::string("\0\1\1", 3)).tensor<bool, 1>("a");
  CHECK_FALSE(flags(0));
  CHECK(flags(1));
  CHECK_THAT(message_of<FormatError>([] { (void)vector_file("BOOL", 1, "\2").tensor<bool, 1>("a"); }),
             contains(R"("a" holds 2, which does not convert to BOOL)"));
  CHECK_THAT(message_of<FormatError>([] { (void)vector_file("BOOL", 1, "\1").tensor<int, 1>("a"); }),
             contains("has dtype BOOL, which does not convert to I32"));
  CHECK_THAT(message_of<FormatError>([] { (void)vector_file("U8", 1, "\1").tensor<bool, 1>("a"); }),
             contains("has dtype U8, which does not convert to BOOL"));
  CHECK_THAT(message_of<FormatError>([] { (void)vector_file("I32", 4, "abcd").tensor<float, 1>("a"); }),
             contains("has dtype I32, which does not convert to F32"));
  CHECK_THAT(message_of<FormatError>([] { (void)vector_file("F32", 4, "abcd").tensor<std::int64_t, 1>("a"); }),
             contains("has dtype F32, which does not convert to I64"));
}

TEST_CASE("asking for what is not there is refused by name", "[safetensors]") {
  const SafeTensors file = parse(one("\"F32\"", "[1,1]", "[0,4]"), "abcd");
  CHECK_THAT(message_of<FormatError>([&] { (void)file.shape("b"); }), contains(R"(no tensor is named "b")"));
  CHECK_THAT(message_of<FormatError>([&] { (void)file.dtype("b"); }), contains(R"(no tensor is named "b")"));
  CHECK_THAT(message_of<FormatError>([&] { (void)file.tensor<float, 1>("b"); }), contains(R"(no tensor is named "b")"));
  CHECK_THAT(message_of<FormatError>([&] { (void)file.tensor<float, 1>("a"); }),
             contains(R"("a" has shape (1, 1); expected rank 1)"));
  CHECK_THAT(message_of<FormatError>([&] { (void)file.tensor<float, 3>("a"); }), contains("expected rank 3"));
}

TEST_CASE("copying into a tensor needs its exact shape and writes all or nothing", "[safetensors]") {
  const SafeTensors file =
      parse(one("\"I64\"", "[2,3]", "[0,48]"),
            little(1, 8) + little(2, 8) + little(3, 8) + little(4, 8) + little(5, 8) + little(1ull << 40, 8));
  std::vector<std::int64_t> memory(6, -1);
  Eigen::TensorMap<Eigen::Tensor<std::int64_t, 2, Eigen::ColMajor>> columns(memory.data(), 2, 3);
  file.check_fits("a", columns);
  file.copy_to("a", columns);
  CHECK(memory == std::vector<std::int64_t>{1, 4, 2, 5, 3, 1ll << 40});

  Eigen::Tensor<std::int32_t, 2> narrow(2, 3);
  narrow.setConstant(-1);
  CHECK_THAT(message_of<FormatError>([&] { file.copy_to("a", narrow); }), contains("holds 1099511627776"));
  for (Index i = 0; i < 6; ++i) CHECK(narrow.data()[i] == -1);
  Eigen::Tensor<std::int64_t, 2> transposed(3, 2);
  CHECK_THAT(message_of<FormatError>([&] { file.copy_to("a", transposed); }),
             contains("has shape (2, 3); expected (3, 2)"));
  CHECK_THAT(message_of<FormatError>([&] { file.check_fits("a", transposed); }), contains("expected (3, 2)"));
}

TEST_CASE("the writer's bytes are those of the format", "[safetensors]") {
  SafeTensorsWriter writer;
  Eigen::Tensor<bool, 1> flags(3);
  flags.setValues({true, false, true});
  Eigen::Tensor<float, 2, Eigen::RowMajor> w(2, 3);
  w.setValues({{1, 2, 3}, {-4, 0.5f, 0}});
  Eigen::Tensor<double, 0, Eigen::RowMajor> scalar;
  scalar.setConstant(-2);
  Eigen::Tensor<std::int64_t, 1, Eigen::RowMajor> ids(1);
  ids.setValues({-7});
  writer.add("flags", flags);
  writer.add("w", w);
  writer.add("s \"q\"", scalar);
  writer.add("ids", ids);
  Eigen::Tensor<Eigen::half, 1> half(1);
  half.setConstant(Eigen::half(-2));
  Eigen::Tensor<Eigen::bfloat16, 2> brain(2, 1);
  brain.setValues({{Eigen::bfloat16(1)}, {Eigen::bfloat16(-2)}});
  writer.add("half", half);
  writer.add("brain", brain);
  writer.add_metadata("format", "pt");
  writer.add_metadata("a", "line\n");

  std::string header = R"({"__metadata__":{"a":"line\u000a","format":"pt"},)"
                       R"("ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                       R"("s \"q\"":{"dtype":"F64","shape":[],"data_offsets":[8,16]},)"
                       R"("w":{"dtype":"F32","shape":[2,3],"data_offsets":[16,40]},)"
                       R"("brain":{"dtype":"BF16","shape":[2,1],"data_offsets":[40,44]},)"
                       R"("half":{"dtype":"F16","shape":[1],"data_offsets":[44,46]},)"
                       R"("flags":{"dtype":"BOOL","shape":[3],"data_offsets":[46,49]}})";
  while (header.size() % 8 != 0) header += ' ';
  std::string data = little(~std::uint64_t{6}, 8) + little(0xc000000000000000u, 8);
  for (const std::uint32_t value : {0x3f800000u, 0x40000000u, 0x40400000u, 0xc0800000u, 0x3f000000u, 0u})
    data += little(value, 4);
  data += little(0xc0003f80u, 4) + little(0xc000u, 2) + std::string("\1\0\1", 3);
  CHECK(text_of(writer.bytes()) == file_text(header, data));
}

TEST_CASE("a writer without tensors writes the smallest file", "[safetensors]") {
  CHECK(text_of(SafeTensorsWriter().bytes()) == little(8, 8) + "{}      ");
}

TEST_CASE("layout, ownership and order of calls do not show in the bytes", "[safetensors]") {
  Eigen::Tensor<double, 3, Eigen::RowMajor> rows(2, 3, 5);
  Eigen::Tensor<double, 3, Eigen::ColMajor> columns(2, 3, 5);
  for (Index i = 0; i < 2; ++i)
    for (Index j = 0; j < 3; ++j)
      for (Index k = 0; k < 5; ++k) rows(i, j, k) = columns(i, j, k) = static_cast<double>(100 * i + 10 * j + k);
  const Eigen::TensorMap<const Eigen::Tensor<double, 3, Eigen::RowMajor>> map(rows.data(), 2, 3, 5);
  const auto written = [](const auto&... tensors) {
    SafeTensorsWriter writer;
    char name = 'a';
    (writer.add(std::string(1, name++), tensors), ...);
    return text_of(writer.bytes());
  };
  const std::string bytes = written(rows, rows);
  CHECK(written(columns, rows) == bytes);
  CHECK(written(map, columns) == bytes);

  SafeTensorsWriter other;
  other.add("b", rows);
  other.add("a", rows);
  CHECK(text_of(other.bytes()) == bytes);

  // The tenth value in row-major order is (0, 2, 0), whatever the layout in memory.
  const SafeTensors file = SafeTensors::parse(bytes_of(written(columns)));
  CHECK(file.tensor<double, 3>("a").data()[10] == 20);
  const auto back = file.tensor<double, 3, Eigen::ColMajor>("a");
  CHECK(std::equal(back.data(), back.data() + 30, columns.data()));
}

TEST_CASE("what is written is read back", "[safetensors]") {
  const std::string odd = "\xc3\xa9 \"\\\x01\x1f/";
  Eigen::Tensor<float, 4> values(2, 3, 5, 7);
  for (Index i = 0; i < values.size(); ++i)
    values.data()[i] = std::ldexp(static_cast<float>(i), static_cast<int>(i % 60) - 30);
  values.data()[0] = -0.0f;
  Eigen::Tensor<std::int32_t, 1> numbers(2);
  numbers.setValues({std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()});
  SafeTensorsWriter writer;
  writer.add(odd, values);
  writer.add("", numbers);
  writer.add("none", Eigen::Tensor<double, 2>(3, 0));
  writer.add_metadata(odd, odd);
  const SafeTensors file = SafeTensors::parse(writer.bytes());
  const auto back = file.tensor<float, 4, Eigen::ColMajor>(odd);
  for (Index i = 0; i < values.size(); ++i) REQUIRE(bits(back.data()[i]) == bits(values.data()[i]));
  CHECK(file.tensor<std::int32_t, 1>("")(0) == std::numeric_limits<std::int32_t>::min());
  CHECK(file.tensor<std::int32_t, 1>("")(1) == std::numeric_limits<std::int32_t>::max());
  CHECK(file.shape("none") == std::vector<Index>{3, 0});
  CHECK(file.metadata().at(odd) == odd);
}

TEST_CASE("the writer refuses what the reader would", "[safetensors]") {
  const Eigen::Tensor<float, 1> tensor(1);
  SafeTensorsWriter writer;
  writer.add("a", tensor);
  CHECK_THAT(message_of<FormatError>([&] { writer.add("a", tensor); }), contains(R"(the name "a" is taken)"));
  CHECK_THAT(message_of<FormatError>([&] { writer.add("__metadata__", tensor); }), contains("is taken"));
  writer.add_metadata("k", "v");
  CHECK_THAT(message_of<FormatError>([&] { writer.add_metadata("k", "w"); }), contains(R"(the key "k" is taken)"));
  CHECK(SafeTensors::parse(writer.bytes()).metadata().at("k") == "v");
  writer.add("\xff", tensor);
  CHECK_THAT(message_of<FormatError>([&] { (void)writer.bytes(); }), contains("not JSON in UTF-8"));
}

TEST_CASE("files are replaced as a whole or not at all", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "weights.safetensors";
  Eigen::Tensor<float, 1> tensor(3);
  tensor.setValues({1, 2, 3});
  SafeTensorsWriter writer;
  writer.add("a", tensor);
  writer.write(path);
  CHECK(slurp(path) == text_of(writer.bytes()));
  CHECK(SafeTensors::read(path).tensor<float, 1>("a")(2) == 3);

  tensor(2) = 9;
  SafeTensorsWriter longer;
  longer.add("a", tensor);
  longer.add("b", Eigen::Tensor<float, 1>(tensor));
  longer.write(path);
  CHECK(SafeTensors::read(path).tensor<float, 1>("b")(2) == 9);
  CHECK(scratch.files() == 1);

  SECTION("a header that cannot be written") {
    longer.add("\xff", tensor);
    CHECK_THAT(message_of<FormatError>([&] { longer.write(path); }), contains("not JSON in UTF-8"));
  }
  SECTION("no such directory") {
    CHECK_THAT(message_of<FormatError>([&] { longer.write(scratch.path / "none" / "x"); }), contains("cannot write"));
  }
  SECTION("a directory in the way") {
    const auto directory = scratch.path / "d";
    std::filesystem::create_directories(directory / "full");
    CHECK_THAT(message_of<FormatError>([&] { longer.write(directory); }), contains("cannot write"));
    std::filesystem::remove_all(directory);
  }
  SECTION("a link that never ends") {
    std::filesystem::create_symlink("round", scratch.path / "round");
    CHECK_THAT(message_of<FormatError>([&] { longer.write(scratch.path / "round"); }), contains("cannot write"));
    std::filesystem::remove(scratch.path / "round");
  }
#ifdef RLIMIT_FSIZE
  SECTION("no room") {
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    rlimit small = before;
    small.rlim_cur = 100;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
    const std::string message = message_of<FormatError>([&] { longer.write(path); });
    setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
    CHECK_THAT(message, contains("cannot write " + path.string()));
  }
#endif
  CHECK(SafeTensors::read(path).tensor<float, 1>("b")(2) == 9);
  CHECK(scratch.files() == 1);
}

TEST_CASE("a file that is written over keeps its mode, and links lead to it", "[safetensors]") {
  namespace fs = std::filesystem;
  const Scratch scratch;
  const Eigen::Tensor<float, 1> one_value = Eigen::Tensor<float, 1>(1).setConstant(1);
  SafeTensorsWriter before, after;
  before.add("a", one_value);
  after.add("b", one_value);
  fs::create_directories(scratch.path / "blobs");
  const fs::path file = scratch.path / "blobs" / "file";
  before.write(file);
  for (const fs::perms mode : {fs::perms{0600}, fs::perms{0640}, fs::perms{0444}, fs::perms{0666}}) {
    fs::permissions(file, mode);
    before.write(file);
    CHECK(fs::status(file).permissions() == mode);
  }
  fs::create_symlink(fs::path("blobs") / "file", scratch.path / "relative");
  fs::create_symlink(scratch.path / "relative", scratch.path / "absolute");
  after.write(scratch.path / "absolute");
  CHECK(fs::is_symlink(scratch.path / "absolute"));
  CHECK(fs::is_symlink(scratch.path / "relative"));
  CHECK(SafeTensors::read(file).contains("b"));
  CHECK(fs::status(file).permissions() == fs::perms{0666});
  CHECK(scratch.files() == 3);

  // A link to a file that is not there yet makes it.
  fs::remove(file);
  after.write(scratch.path / "relative");
  CHECK(fs::is_symlink(scratch.path / "relative"));
  CHECK(SafeTensors::read(file).contains("b"));
}

TEST_CASE("a file that cannot be read is named", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "bad";
  CHECK_THAT(message_of<FormatError>([&] { (void)SafeTensors::read(path); }), contains("cannot open " + path.string()));
  CHECK_THAT(message_of<FormatError>([&] { (void)SafeTensors::read(scratch.path); }), contains("cannot open"));
  std::ofstream(path) << "garbage!garbage!";
  CHECK_THAT(message_of<FormatError>([&] { (void)SafeTensors::read(path); }), contains("(" + path.string() + ")"));
  std::ofstream(path, std::ios::trunc).close();
  CHECK_THAT(message_of<FormatError>([&] { (void)SafeTensors::read(path); }), contains("the file has 0"));
}

TEST_CASE("a module's parameters go out and come back", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "toy.safetensors";
  Toy toy;
  toy.weight(1, 2) = 42;
  toy.div() = 0.1;
  toy.counts(1) = -5;
  save_parameters(path, toy, "layer.0.");
  CHECK(SafeTensors::read(path).shape("layer.0.emb.weight") == std::vector<Index>{2, 3});
  CHECK(SafeTensors::read(path).shape("layer.0.div").empty());

  Toy other;
  load_parameters(other, path, "layer.0.");
  CHECK(other.values() == toy.values());
  CHECK(other.values() == std::vector<double>{0.5, 1.5, 2.5, 3.5, 4.5, 42, 0.1, 100, -5});

  // Two modules in one file; each takes its own.
  SafeTensorsWriter writer;
  save_parameters(writer, Toy());
  save_parameters(writer, toy, "second.");
  const SafeTensors both = SafeTensors::parse(writer.bytes());
  load_parameters(other, both);
  CHECK(other.values() == Toy().values());
  load_parameters(other, both, "second.");
  CHECK(other.values() == toy.values());
}

TEST_CASE("a function says what a file calls the parameters", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "toy.safetensors";
  SafeTensorsWriter writer;
  Toy toy;
  toy.weight(1, 2) = 42;
  writer.add("embed", toy.weight);
  writer.add("old.div", toy.div);
  writer.add("old.counts", toy.counts);
  writer.write(path);
  const auto name_in_file = [](std::string_view name) {
    return name == "emb.weight" ? "embed" : "old." + std::string(name);
  };
  Toy other;
  load_parameters(other, path, name_in_file);
  CHECK(other.values() == toy.values());
  CHECK(other.values()[5] == 42);
  CHECK_THAT(message_of<FormatError>(
                 [&] { load_parameters(other, SafeTensors::read(path), [](std::string_view) { return "old.div"; }); }),
             contains(R"("old.div" has shape (); expected (2, 3))"));
}

TEST_CASE("a file that does not fit leaves the module as it was", "[safetensors]") {
  const Eigen::Tensor<double, 2> weight = Eigen::Tensor<double, 2>(2, 3).setConstant(8);
  const Eigen::Tensor<double, 0> div = Eigen::Tensor<double, 0>().setConstant(8);
  const Eigen::Tensor<std::int64_t, 1> counts = Eigen::Tensor<std::int64_t, 1>(2).setConstant(8);
  const Eigen::Tensor<std::int64_t, 1> too_large = Eigen::Tensor<std::int64_t, 1>(2).setConstant(std::int64_t{1} << 40);
  const auto refused = [](const auto& w, const auto& d, const auto& c, std::string_view last = "counts") {
    SafeTensorsWriter writer;
    writer.add("emb.weight", w);
    writer.add("div", d);
    writer.add(last, c);
    const SafeTensors file = SafeTensors::parse(writer.bytes());
    Toy toy;
    const std::string message = message_of<FormatError>([&] { load_parameters(toy, file); });
    CHECK(toy.values() == (message == "<nothing thrown>" ? std::vector<double>(9, 8.0) : Toy().values()));
    return message;
  };
  CHECK(refused(weight, div, counts) == "<nothing thrown>");
  CHECK_THAT(refused(weight, div, counts, "count"), contains(R"(no tensor is named "counts")"));
  CHECK_THAT(refused(weight, div, Eigen::Tensor<std::int64_t, 1>(3)),
             contains(R"("counts" has shape (3); expected (2))"));
  CHECK_THAT(refused(weight, div, Eigen::Tensor<std::int64_t, 0>()),
             contains(R"("counts" has shape (); expected (2))"));
  CHECK_THAT(refused(weight, div, too_large), contains(R"("counts" holds 1099511627776)"));
  CHECK_THAT(refused(weight, div, weight), contains(R"("counts" has shape (2, 3); expected (2))"));
  CHECK_THAT(refused(weight, Eigen::Tensor<double, 1>(1), counts), contains(R"("div" has shape (1); expected ())"));
  CHECK_THAT(refused(weight, Eigen::Tensor<std::int64_t, 0>(), counts), contains("does not convert to F64"));
  CHECK_THAT(refused(Eigen::Tensor<float, 2>(3, 2), div, counts),
             contains(R"("emb.weight" has shape (3, 2); expected (2, 3))"));

  Toy toy;
  SafeTensorsWriter writer;
  save_parameters(writer, toy, "prefix.");
  CHECK_THAT(message_of<FormatError>([&] { load_parameters(toy, SafeTensors::parse(writer.bytes()), "prefix"); }),
             contains(R"(no tensor is named "prefixemb.weight")"));
}

#ifdef POSBIAS_GOLDEN_DIR
TEST_CASE("golden files hold what another reader finds in them", "[safetensors][golden]") {
  // Numbers and bits as read from the bytes with Python's struct module.
  const SafeTensors file =
      SafeTensors::read(std::filesystem::path(POSBIAS_GOLDEN_DIR) / "bio_learnedvocab__default.safetensors");
  CHECK(file.metadata().at("module") == "positional.LearnedVocab.mod_x");
  CHECK(file.metadata().at("config") == R"({"dim": 4, "max_seq_len": 10})");
  CHECK(file.entries().size() == 7);
  CHECK(file.entries().front().name == "grad_in.x");
  CHECK(file.entries().back().name == "f32.out.x");
  CHECK(file.shape("param.emb.weight") == std::vector<Index>{10, 4});
  const auto weight = file.tensor<double, 2, Eigen::ColMajor>("param.emb.weight");
  CHECK(weight(0, 0) == -0.5107154250144958);
  CHECK(weight(2, 3) == -0.40440621972084045);
  CHECK(weight(9, 2) == -0.011213719844818115);
  CHECK(file.tensor<double, 3>("out.x")(1, 5, 2) == 0.10658859834074974);
  CHECK(bits(file.tensor<float, 3>("f32.out.x")(0, 0, 0)) == 0x3eac7abau);
  CHECK(bits(file.tensor<float, 3>("f32.out.x")(1, 5, 2)) == 0x3dda4b20u);
}

TEST_CASE("every golden file parses, and its bytes are its values", "[safetensors][golden]") {
  int files = 0;
  for (const auto& item : std::filesystem::directory_iterator(POSBIAS_GOLDEN_DIR)) {
    if (item.path().extension() != ".safetensors") continue;
    INFO(item.path());
    ++files;
    const SafeTensors file = SafeTensors::read(item.path());
    const std::string raw = slurp(item.path());
    CHECK(file.metadata().count("peer") == 1);
    REQUIRE_FALSE(file.entries().empty());
    const std::size_t data = raw.size() - static_cast<std::size_t>(file.entries().back().end);
    std::uint64_t next = 0;
    for (const auto& entry : file.entries()) {
      INFO(entry.name);
      CHECK(entry.begin == next);
      next = entry.end;
      const auto same = [&](const auto& tensor) {
        const std::string_view stored(raw.data() + data + entry.begin,
                                      static_cast<std::size_t>(entry.end - entry.begin));
        const auto* values = reinterpret_cast<const char*>(tensor.data());
        return stored == std::string_view(values, static_cast<std::size_t>(tensor.size()) * sizeof(*tensor.data()));
      };
      const auto same_rank = [&]<int Rank>(std::integral_constant<int, Rank>) {
        if (entry.dtype == "F64") return same(file.tensor<double, Rank>(entry.name));
        if (entry.dtype == "F32") return same(file.tensor<float, Rank>(entry.name));
        if (entry.dtype == "I64") return same(file.tensor<std::int64_t, Rank>(entry.name));
        return entry.dtype == "BOOL" && same(file.tensor<bool, Rank>(entry.name));
      };
      const auto any_rank = [&]<int... Rank>(std::integer_sequence<int, Rank...>) {
        return ((entry.shape.size() == Rank && same_rank(std::integral_constant<int, Rank>{})) || ...);
      };
      CHECK(any_rank(std::make_integer_sequence<int, 6>{}));
    }
  }
  CHECK(files > 80);
}
#endif
