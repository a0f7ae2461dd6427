// SPDX-License-Identifier: MIT
/// \file
/// Safetensors files made of fields: names, types, shapes, offsets, values. Most are as the format wants them, some have
/// flaws; the reader must take the former with every value, and refuse the latter.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <iterator>
#include <set>

#include "fuzz/safetensors_properties.hpp"

namespace posbias_fuzz {
namespace {

/// One tensor of a file, and its part of the header.
struct Field {
  std::string name;
  std::string dtype;
  std::vector<Index> shape;
  std::vector<std::uint8_t> values;
};

class File {
 public:
  explicit File(FuzzedDataProvider& input) : input_(&input) {
    const int tensors = input_->ConsumeIntegralInRange(0, 12);
    if (one_in(4)) add_metadata();
    for (int i = 0; i < tensors; ++i) add_tensor();
    header_ += one_in(32) ? flaw("") : "}";
    if (one_in(8)) header_.append(input_->ConsumeIntegralInRange<std::size_t>(0, 9), ' ');
    if (one_in(32)) header_ += flaw(" x");
    if (one_in(32)) header_ = flaw(" ") + header_;
    if (one_in(32)) header_.insert(header_.size() / 2, flaw("\0", 1));
    if (one_in(32)) header_.insert(header_.size() / 2, flaw("\xff"));
    if (one_in(32))
      data_.push_back(0), right_ = false;
    else if (one_in(32) && !data_.empty())
      data_.pop_back(), right_ = false;
  }

  /// A file that is right may yet be cut, or lie about its header's length; two flaws might make up for each other.
  void check() const {
    std::uint64_t length = header_.size();
    const std::uint64_t lies[] = {0, length - 1, length + 1, length + data_.size() + 1, std::uint64_t{1} << 63, ~0ULL};
    const bool lies_of_length = right_ && one_in(32);
    if (lies_of_length) length = lies[input_->ConsumeIntegralInRange<std::size_t>(0, std::size(lies) - 1)];
    std::vector<std::byte> bytes(sizeof length);
    std::memcpy(bytes.data(), &length, sizeof length);
    for (const char c : header_) bytes.push_back(static_cast<std::byte>(c));
    for (const std::uint8_t c : data_) bytes.push_back(static_cast<std::byte>(c));
    const bool cut = right_ && !lies_of_length && one_in(32);
    if (cut) bytes.resize(input_->ConsumeIntegralInRange<std::size_t>(0, bytes.size() - 1));

    const std::optional<SafeTensors> file = check_file(bytes);
    const bool right = right_ && !lies_of_length && !cut;
    require(file.has_value() == right, right ? "refused: " + header_ : "not refused: " + header_);
    if (right) check_contents(*file);
  }

 private:
  [[nodiscard]] bool one_in(unsigned count) const { return input_->ConsumeIntegralInRange(1U, count) == count; }

  /// Text that must not be there.
  std::string flaw(const char* text) { return flaw(text, std::strlen(text)); }
  std::string flaw(const char* text, std::size_t size) {
    right_ = false;
    return std::string(text, size);
  }

  static std::string quoted(const std::string& text) { return posbias::io::detail::json_string(text); }

  std::string& member(const std::string& name) {
    if (!header_.ends_with('{')) header_ += ',';
    if (!names_.insert(name).second) right_ = false;
    return header_ += quoted(name) + ':';
  }

  void add_metadata() {
    if (one_in(8)) {
      member("__metadata__") += "null";
      return;
    }
    member("__metadata__") += "{\"format\":";
    header_ += one_in(16) ? flaw("[1]") : quoted(text());
    if (one_in(8)) header_ += flaw(",\"format\":\"pt\"");
    header_ += "}";
  }

  std::string text() {
    std::string result;
    for (const std::uint8_t c : input_->ConsumeBytes<std::uint8_t>(input_->ConsumeIntegralInRange<std::size_t>(0, 9)))
      result += static_cast<char>(c & 0x7F);
    return result;
  }

  void add_tensor() {
    static const Weights loadable = weights_of(small_module());
    static const std::vector<std::string> dtypes{"F64", "F32", "F16", "BF16", "BOOL", "I8",  "U8",      "I16",
                                                 "U16", "I32", "U32", "I64",  "U64",  "C64", "F8_E4M3", "F4"};
    Field field;
    const std::size_t place = input_->ConsumeIntegralInRange<std::size_t>(0, 2 * loadable.size());
    field.name =
        place < loadable.size() ? std::next(loadable.begin(), static_cast<std::ptrdiff_t>(place))->first : text();
    field.dtype = one_in(2) ? dtypes[0] : dtypes[input_->ConsumeIntegralInRange<std::size_t>(0, dtypes.size() - 1)];
    field.shape = shape_of(field.name);
    const std::uint64_t bits = size_of(field);
    field.values = input_->ConsumeBytes<std::uint8_t>(bits / 8);
    field.values.resize(bits / 8);

    std::string shape;
    for (const Index count : field.shape) shape += (shape.empty() ? "" : ",") + std::to_string(count);
    if (one_in(48)) shape = flawed_size();
    // The values of tensors before it are its own too.
    const bool shares = !field.values.empty() && field.values.size() <= data_.size() && one_in(48);
    if (shares) right_ = false;
    const std::uint64_t size = field.values.size(), begin = data_.size() - (shares ? size : 0), end = begin + size;
    std::string offsets = std::to_string(begin) + ',' + std::to_string(end);
    if (one_in(48)) offsets = flawed_offsets(begin, end);

    std::vector<std::string> keys{"\"dtype\":" + quoted(one_in(48) ? flaw("F128") : field.dtype),
                                  "\"shape\":[" + shape + "]", "\"data_offsets\":[" + offsets + "]"};
    std::rotate(keys.begin(), keys.begin() + input_->ConsumeIntegralInRange(0, 2), keys.end());
    if (one_in(48)) keys.pop_back(), right_ = false;
    if (one_in(48)) keys.push_back(keys[0]), right_ = false;
    if (one_in(48)) keys.push_back(flaw("\"extra\":[]"));
    if (one_in(48)) keys.push_back(flaw("\"shape\":{\"a\":[[[[1]]]]}"));
    member(field.name) += '{';
    for (std::size_t i = 0; i < keys.size(); ++i) header_ += (i == 0 ? "" : ",") + keys[i];
    header_ += '}';
    if (field.name == "__metadata__") right_ = false;
    if (!shares) data_.insert(data_.end(), field.values.begin(), field.values.end());
    fields_.push_back(std::move(field));
  }

  /// That of the module's parameter of this name, or any.
  std::vector<Index> shape_of(const std::string& name) {
    std::vector<Index> shape;
    if (!one_in(16))
      posbias::for_each_parameter(small_module(), [&](std::string_view of, const auto& tensor) {
        if (of == name) shape.assign(tensor.dimensions().begin(), tensor.dimensions().end());
      });
    if (shape.empty() && name != "div")
      for (int d = input_->ConsumeIntegralInRange(0, 4); d > 0; --d)
        shape.push_back(input_->ConsumeIntegralInRange<Index>(0, 3));
    return shape;
  }

  /// In bits, a whole number of bytes.
  static std::uint64_t size_of(Field& field) {
    std::uint64_t bits = posbias::io::detail::find_stored_type(field.dtype)->bits;
    for (const Index size : field.shape) bits *= static_cast<std::uint64_t>(size);
    if (bits % 8 != 0) field.shape.push_back(2), bits *= 2;
    return bits;
  }

  /// Sizes that no file has: of the wrong kind, or far too large, also where another one is 0.
  std::string flawed_size() {
    const char* sizes[] = {"-1",
                           "1.0",
                           "1e3",
                           "18446744073709551615",
                           "9223372036854775808",
                           "9223372036854775807,9",
                           "null",
                           "[1]",
                           "0,9223372036854775807,9223372036854775807",
                           "4294967296,4294967296"};
    return flaw(sizes[input_->ConsumeIntegralInRange<std::size_t>(0, std::size(sizes) - 1)]);
  }

  std::string flawed_offsets(std::uint64_t begin, std::uint64_t end) {
    const std::pair<std::uint64_t, std::uint64_t> some[] = {{begin, end + 1},     {begin + 1, end},
                                                            {end + 1, begin},     {begin + 1, end + 1},
                                                            {begin - 1, end - 1}, {~0ULL, ~0ULL}};
    const auto& [from, to] = some[input_->ConsumeIntegralInRange<std::size_t>(0, std::size(some) - 1)];
    return flaw(one_in(4) ? "0,0,0" : (std::to_string(from) + ',' + std::to_string(to)).c_str());
  }

  void check_contents(const SafeTensors& file) const {
    require(file.entries().size() == fields_.size(), "not all tensors were read");
    for (const Field& field : fields_) {
      const SafeTensorsEntry& entry = file.entry(field.name);
      require(entry.dtype == field.dtype && entry.shape == field.shape, "another type or shape: " + header_);
      require(entry.end - entry.begin == field.values.size() &&
                  std::equal(field.values.begin(), field.values.end(),
                             data_.begin() + static_cast<std::ptrdiff_t>(entry.begin)),
              "other values: " + header_);
    }
  }

  FuzzedDataProvider* input_;
  std::string header_ = "{";
  std::vector<std::uint8_t> data_;
  std::vector<Field> fields_;
  std::set<std::string> names_;
  bool right_ = true;
};

}  // namespace
}  // namespace posbias_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzedDataProvider input(data, size);
  posbias_fuzz::File(input).check();
  return 0;
}
