// SPDX-License-Identifier: MIT
/// \file
/// Files that are opened and not read: mapped or on disk, viewed, sharded, or of another format.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "io/safetensors_files.hpp"
#include "posbias/io/safetensors.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"

using posbias::FormatError;
using posbias::Index;
using posbias::io::SafeTensors;
using posbias::io::SafeTensorsWriter;
using posbias::io::detail::FileBytes;
using posbias_test::bytes_of;
using posbias_test::contains;
using posbias_test::file_text;
using posbias_test::little;
using posbias_test::message_of;
using posbias_test::one;
using posbias_test::peak_bytes_of;
using posbias_test::Scratch;
using posbias_test::spill;

namespace {

/// The message with which a file is refused, which is the same whether it is opened or read.
std::string refusal(const std::filesystem::path& path) {
  const std::string opened = message_of<FormatError>([&] { (void)SafeTensors::open(path); });
  CHECK(message_of<FormatError>([&] { (void)SafeTensors::read(path); }) == opened);
  CHECK(message_of<FormatError>([&] { (void)SafeTensors(FileBytes::stream(path)); }) + " (" + path.string() + ")" ==
        opened);
  return opened;
}

/// Writes a shard of int32 scalars: name and value.
void write_shard(const std::filesystem::path& path, const std::vector<std::pair<std::string, std::int32_t>>& scalars,
                 const std::string& metadata) {
  SafeTensorsWriter writer;
  for (const auto& [name, value] : scalars)
    writer.add(name, Eigen::Tensor<std::int32_t, 0>(Eigen::Tensor<std::int32_t, 0>().setConstant(value)));
  writer.add_metadata("shard", metadata);
  writer.write(path);
}

}  // namespace

TEST_CASE("a file reads the same from memory, mapped, and from disk", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "file";
  // More than a block of those that are read from disk, behind a byte: integers that may not fit, and halves.
  const Index count = 300'000;
  std::string integers, halves;
  for (Index i = 0; i < count; ++i) integers += little(static_cast<std::uint64_t>(7 * i), 4);
  for (const unsigned half : {0x3c00u, 0xc000u}) halves += little(half, 2);
  const std::string header = R"({"flag":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},)"
                             R"("n":{"dtype":"U32","shape":[300000],"data_offsets":[1,1200001]},)"
                             R"("h":{"dtype":"F16","shape":[2],"data_offsets":[1200001,1200005]}})";
  const std::string text = file_text(header, "\1" + integers + halves);
  spill(path, text);
  for (const SafeTensors& file : {SafeTensors::parse(bytes_of(text)), SafeTensors::read(path), SafeTensors::open(path),
                                  SafeTensors(FileBytes::stream(path))}) {
    CHECK(file.entries().size() == 3);
    CHECK(file.tensor<bool, 1>("flag")(0));
    const auto n = file.tensor<std::int32_t, 1>("n");
    Index wrong = 0;
    for (Index i = 0; i < count; ++i) wrong += n(i) != static_cast<std::int32_t>(7 * i);
    CHECK(wrong == 0);
    CHECK(file.tensor<float, 1>("h")(1) == -2);
  }

  SECTION("after it was removed or replaced") {
    const SafeTensors mapped = SafeTensors::open(path), streamed(FileBytes::stream(path));
    SafeTensorsWriter().write(path);
    CHECK(mapped.tensor<float, 1>("h")(0) == 1);
    CHECK(streamed.tensor<float, 1>("h")(0) == 1);
    std::filesystem::remove(path);
    CHECK(mapped.tensor<float, 1>("h")(0) == 1);
    CHECK(streamed.tensor<float, 1>("h")(0) == 1);
  }
  SECTION("by several threads") {
    const SafeTensors streamed(FileBytes::stream(path));
    std::vector<Index> wrong(4);
    std::vector<std::thread> threads;
    for (Index& errors : wrong)
      threads.emplace_back([&] {
        const auto n = streamed.tensor<std::int32_t, 1>("n");
        for (Index i = 0; i < count; ++i) errors += n(i) != static_cast<std::int32_t>(7 * i);
      });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == std::vector<Index>(4));
  }
  SECTION("and what is missing on disk is an error") {
    const SafeTensors streamed(FileBytes::stream(path));
    std::filesystem::resize_file(path, text.size() - 1);
    CHECK_THAT(message_of<FormatError>([&] { (void)streamed.tensor<float, 1>("h"); }),
               contains("cannot read 4 bytes of " + path.string()));
    CHECK(streamed.tensor<bool, 1>("flag")(0));
  }
}

TEST_CASE("one tensor of a large file is read without the others", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "file";
  const std::uint64_t large = std::uint64_t{1} << 36;  // no memory holds it, and no test waits for it
  spill(path, file_text(R"({"large":{"dtype":"U8","shape":[68719476736],"data_offsets":[0,68719476736]},)"
                        R"("small":{"dtype":"F32","shape":[256],"data_offsets":[68719476736,68719477760]}})",
                        ""));
  const std::uint64_t header = std::filesystem::file_size(path);
  std::filesystem::resize_file(path, header + large + 1024);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(static_cast<std::streamoff>(header + large))
      << little(0x40400000, 4);
  CHECK(peak_bytes_of([&] { CHECK(SafeTensors::open(path).tensor<float, 1>("small")(0) == 3); }) < 50'000);
  CHECK(peak_bytes_of([&] { CHECK(SafeTensors(FileBytes::stream(path)).tensor<float, 1>("small")(0) == 3); }) < 50'000);
}

TEST_CASE("reading takes a file's size once, and writing what was added", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "file";
  SafeTensorsWriter writer;
  const Index count = 1'000'000;
  CHECK(peak_bytes_of([&] {
          writer.add("a", Eigen::Tensor<float, 1>(Eigen::Tensor<float, 1>(count).setConstant(1)));
          writer.write(path);
        }) < 4'100'000);
  CHECK(peak_bytes_of([&] { (void)SafeTensors::read(path).tensor<float, 1>("a"); }) < 4'100'000);
  Eigen::Tensor<float, 1> target(count);
  CHECK(peak_bytes_of([&] { SafeTensors::open(path).copy_to("a", target); }) < 50'000);
  CHECK(peak_bytes_of([&] { SafeTensors(FileBytes::stream(path)).copy_to("a", target); }) < 1'200'000);
  CHECK(target(count - 1) == 1);
}

TEST_CASE("views are the values where they lie", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "file";
  SafeTensorsWriter writer;
  writer.add("f", Eigen::Tensor<float, 2, Eigen::RowMajor>(
                      Eigen::Tensor<float, 2, Eigen::RowMajor>(2, 3).setValues({{1, 2, 3}, {4, 5, 6}})));
  writer.add("h", Eigen::Tensor<Eigen::half, 1>(Eigen::Tensor<Eigen::half, 1>(1).setConstant(Eigen::half(3))));
  writer.add("scalar", Eigen::Tensor<std::int64_t, 0>(Eigen::Tensor<std::int64_t, 0>().setConstant(-1)));
  writer.add("b", Eigen::Tensor<bool, 1>(Eigen::Tensor<bool, 1>(2).setConstant(true)));
  writer.add("none", Eigen::Tensor<float, 2>(0, 5));
  writer.write(path);
  for (SafeTensors file : {SafeTensors::open(path), SafeTensors::read(path)}) {
    const auto f = file.view<float, 2>("f");
    CHECK(f(1, 0) == 4);
    CHECK(f(0, 2) == 3);
    CHECK(f.data() == file.view<float, 2>("f").data());
    CHECK(file.view<Eigen::half, 1>("h")(0) == Eigen::half(3));
    CHECK(file.view<long, 0>("scalar")() == -1);
    CHECK(file.view<long long, 0>("scalar")() == -1);
    CHECK(file.view<bool, 1>("b")(1));
    CHECK(file.view<float, 2>("none").dimension(1) == 5);
    // A copy or the object that it moved to keeps them.
    const SafeTensors copy = file;
    file = SafeTensors::parse(bytes_of(file_text("{}", "")));
    CHECK(f(1, 2) == 6);
    CHECK(copy.view<float, 2>("f").data() == f.data());

    CHECK_THAT(message_of<FormatError>([&] { (void)copy.view<float, 1>("f"); }),
               contains(R"(SafeTensors::view: "f" has shape (2, 3); expected rank 1)"));
    CHECK(message_of<FormatError>([&] { (void)copy.view<float, 1>("h"); }) ==
          R"(SafeTensors::view: "h" has dtype F16; expected F32; SafeTensors::tensor copies the values)");
    CHECK_THAT(message_of<FormatError>([&] { (void)copy.view<float, 1>("g"); }), contains(R"(named "g")"));
  }
  const SafeTensors streamed(FileBytes::stream(path));
  CHECK_THAT(message_of<FormatError>([&] { (void)streamed.view<float, 2>("f"); }),
             contains(R"("f" is on disk, and not mapped; SafeTensors::tensor copies)"));

  // Bytes that no bool has, and values at an odd address.
  const SafeTensors flags = SafeTensors::parse(bytes_of(file_text(one("\"BOOL\"", "[1]", "[0,1]"), "\2")));
  CHECK_THAT(message_of<FormatError>([&] { (void)flags.view<bool, 1>("a"); }), contains("holds 2"));
  std::string header = one("\"F32\"", "[1]", "[0,4]");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::string data = little(0x3f800000, 4);
  const SafeTensors odd = SafeTensors::parse(bytes_of(file_text(header + ' ', data)));
  CHECK_THAT(message_of<FormatError>([&] { (void)odd.view<float, 1>("a"); }), contains("is not aligned to 4 bytes"));
  CHECK(odd.tensor<float, 1>("a")(0) == 1);
  CHECK(SafeTensors::parse(bytes_of(file_text(header, data))).tensor<float, 1>("a")(0) == 1);
}

TEST_CASE("other formats are named", "[safetensors]") {
  const Scratch scratch;
  const auto path = scratch.path / "model.bin";
  const std::string rest(100, '\1');
  const auto refused = [&](std::string_view begin) {
    spill(path, std::string(begin) + rest);
    return refusal(path);
  };
  using namespace std::string_view_literals;
  CHECK(refused("PK\3\4\0\0\x08\x08"sv) ==
        "SafeTensors: expected a safetensors file; this is a zip archive, as torch.save (.pt, .pth, .bin) and "
        "numpy.savez write it (" +
            path.string() + ")");
  CHECK_THAT(refused("GGUF\3\0\0\0"sv), contains("this is a GGUF file"));
  CHECK_THAT(refused("\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20"sv), contains("this is a pickle, as torch.save"));
  CHECK_THAT(refused("\x80\4\x95\xd3\0\0\0\0\0\0\0"sv), contains("this is a pickle"));
  CHECK_THAT(refused("\x89HDF\r\n\x1a\n"), contains("this is an HDF5 file"));
  CHECK_THAT(refused("\x93NUMPY\1\0"sv), contains("this is a NumPy array"));
  CHECK_THAT(refused("version https://git-lfs.github.com/spec/v1\n"), contains("git lfs pull"));
  CHECK_THAT(refused("{\n  \"metadata\": {"), contains("this is JSON"));
  // The length of a header, which such a file may have had before it was cut.
  CHECK_THAT(refused("\x80\2\0\0\0\0\0\0"sv), contains("the header has 640 bytes; the file has 100"));
  CHECK_THAT(refused("{\2\0\0\0\0\0\0"sv), contains("the header has 635 bytes"));
}

TEST_CASE("a sharded checkpoint opens by its index", "[safetensors]") {
  const Scratch scratch;
  const auto index = scratch.path / "model.safetensors.index.json";
  write_shard(scratch.path / "m-1.safetensors", {{"a", 1}, {"c", 3}, {"unnamed", 9}}, "first");
  write_shard(scratch.path / "m-2.safetensors", {{"b", 2}, {"a", 8}}, "second");
  const auto indexed = [&](const std::string& weight_map) {
    spill(index, R"({"metadata":{"total_size":12,"x":[{"weight_map":{"y":[]}},null,1.5,-1,true]},"weight_map":)" +
                     weight_map + "}\n");
    return message_of<FormatError>([&] { (void)SafeTensors::open(index); });
  };
  REQUIRE(indexed(R"({"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-1.safetensors"})") == "<nothing thrown>");
  const SafeTensors file = SafeTensors::open(index);
  CHECK(file.entries().size() == 3);
  CHECK(file.entries()[2].name == "b");
  CHECK(file.tensor<int, 0>("a")() == 1);
  CHECK(file.view<int, 0>("b")() == 2);
  CHECK(file.tensor<int, 0>("c")() == 3);
  CHECK_FALSE(file.contains("unnamed"));
  CHECK(file.metadata().at("shard") == "first");
  CHECK(indexed("{}") == "<nothing thrown>");

  // As caches of downloads have it: links from a folder of names to one of contents.
  std::filesystem::create_directories(scratch.path / "names");
  for (const char* name : {"m-1.safetensors", "m-2.safetensors", "model.safetensors.index.json"})
    std::filesystem::create_symlink(scratch.path / name, scratch.path / "names" / name);
  REQUIRE(indexed(R"({"a":"m-2.safetensors"})") == "<nothing thrown>");
  CHECK(SafeTensors::open(scratch.path / "names" / index.filename()).tensor<int, 0>("a")() == 8);

  const std::string of_index = " (" + index.string() + ")";
  CHECK(indexed(R"({"a":"m-3.safetensors"})") ==
        "SafeTensors: cannot open " + (scratch.path / "m-3.safetensors").string() + of_index);
  CHECK(indexed(R"({"a":"m-1.safetensors","d":"m-1.safetensors"})") ==
        R"(SafeTensors: the index: tensor "d" is not in the shard "m-1.safetensors")" + of_index);
  CHECK(indexed(R"({"a":"m-1.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"})") ==
        R"(SafeTensors: the index: tensor "b" is not in the shard "m-1.safetensors" but in "m-2.safetensors")" +
            of_index);
  spill(scratch.path / "bad.safetensors", "GGUF\3\1\1\1\1");
  CHECK_THAT(indexed(R"({"a":"bad.safetensors"})"),
             contains("GGUF file, as llama.cpp reads it (" + (scratch.path / "bad.safetensors").string() + ")"));
  CHECK_THAT(message_of<FormatError>([&] { (void)SafeTensors::read(index); }), contains("this is JSON; SafeTensors::"));
}

TEST_CASE("no shard is outside the folder of its index", "[safetensors]") {
  const Scratch scratch;
  const auto index = scratch.path / "folder" / "i.json";
  std::filesystem::create_directories(index.parent_path() / "inner");
  write_shard(scratch.path / "s", {{"a", 1}}, "");
  write_shard(index.parent_path() / "inner" / "s", {{"a", 1}}, "");
  for (const std::string shard : {"../s", "inner/s", "inner/../../s", "..", ".", "", "..\\\\s", "C:s", "s\\u0000"}) {
    spill(index, R"({"weight_map":{"a":")" + shard + "\"}}");
    CHECK(message_of<FormatError>([&] { (void)SafeTensors::open(index); }) ==
          R"(SafeTensors: the index: tensor "a": the shard ")" + shard +
              R"(" must be the name of a file beside the index ()" + index.string() + ")");
  }
  spill(index, R"({"weight_map":{"a":")" + (scratch.path / "s").string() + "\"}}");
  CHECK_THAT(message_of<FormatError>([&] { (void)SafeTensors::open(index); }), contains("must be the name of a file"));
}

TEST_CASE("every malformed index is refused by name", "[safetensors]") {
  const auto refused = [](std::string_view text) {
    return message_of<FormatError>([&] { (void)posbias::io::detail::parse_index(text); });
  };
  const auto nested = [](const std::string& part, const std::string& end, int depth) {
    std::string text;
    for (int i = 0; i < depth; ++i) text += part;
    for (int i = 0; i < depth; ++i) text += end;
    return text;
  };
  CHECK(refused(R"({"weight_map":{"a":"b"}})") == "<nothing thrown>");
  CHECK(refused(R"({"weight_map":{},"x":{"weight_map":1},"y":"z"})") == "<nothing thrown>");
  CHECK(refused(R"({"x":)" + nested("[", "]", 1'000'000) + R"(,"weight_map":{}})") == "<nothing thrown>");
  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {"", "the index is not JSON in UTF-8, byte 1"},
           {"{", "the index is not JSON in UTF-8"},
           {R"({"weight_map":{}} x)", "the index is not JSON in UTF-8"},
           {std::string("{\"weight_map\":{}}\0x", 19), "the index is not JSON, byte 18 is NUL"},
           {"[]", "the index must be an object"},
           {"\"a\"", "the index must be an object"},
           {"1", "the index must be an object"},
           {"{}", "the index has no weight_map"},
           {R"({"x":{"weight_map":{}}})", "the index has no weight_map"},
           {R"({"weight_map":"a"})", "weight_map must be an object"},
           {R"({"weight_map":[]})", "weight_map must be an object"},
           {R"({"weight_map":null})", "weight_map must be an object"},
           {R"({"weight_map":{},"weight_map":{}})", "weight_map occurs twice"},
           {R"({"weight_map":{"a":1}})", R"(tensor "a": its shard must be a string)"},
           {R"({"weight_map":{"a":-1}})", R"(tensor "a": its shard must be a string)"},
           {R"({"weight_map":{"a":null}})", R"(tensor "a": its shard must be a string)"},
           {R"({"weight_map":{"a":["b"]}})", R"(tensor "a": its shard must be a string)"},
           {R"({"weight_map":{"a":{"b":"c"}}})", R"(tensor "a": its shard must be a string)"},
           {R"({"weight_map":{"a":"b","a":"b"}})", R"(tensor "a" occurs twice)"},
           {R"({"weight_map":{"a":"b","\u0061":"c"}})", R"(tensor "a" occurs twice)"},
       }) {
    INFO(text);
    CHECK_THAT(refused(text), contains("SafeTensors: the index") && contains(message));
  }
}

TEST_CASE("what is no file is not opened", "[safetensors]") {
  const Scratch scratch;
  for (const auto& path : {scratch.path, scratch.path / "none", scratch.path / "none.json", std::filesystem::path()}) {
    const std::string message = message_of<FormatError>([&] { (void)SafeTensors::open(path); });
    CHECK(message == "SafeTensors: cannot open " + path.string());
  }
  spill(scratch.path / "empty", "");
  CHECK_THAT(refusal(scratch.path / "empty"), contains("the file has 0"));
  spill(scratch.path / "short", "1234567");
  CHECK_THAT(refusal(scratch.path / "short"), contains("the file has 7"));
}
