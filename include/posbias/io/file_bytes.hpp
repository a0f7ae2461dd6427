// SPDX-License-Identifier: MIT
/// \file
/// The bytes of a file: in memory, mapped, or read from disk as they are asked for; and files replaced as a whole.
///
/// Part of posbias/io/safetensors.hpp, which is what to include.
#pragma once

#if __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "posbias/core/error.hpp"

namespace posbias::io::detail {
using posbias::detail::fail;

/// A file that never changes. Copies share it, and any number of threads may read it.
class FileBytes {
 public:
  explicit FileBytes(std::vector<std::byte> bytes) : size_(bytes.size()) {
    const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    data_ = owner->data();
    owner_ = owner;
  }

  /// The whole file, in memory.
  static FileBytes read(const std::filesystem::path& path) {
    const FileBytes on_disk = stream(path);
    std::vector<std::byte> bytes(static_cast<std::size_t>(on_disk.size_));
    on_disk.stream_->read(0, bytes);
    return FileBytes(std::move(bytes));
  }

  /// Maps the file, so that only pages that are looked at take memory; where that cannot be, the same as stream().
  static FileBytes open(const std::filesystem::path& path) {
#ifdef MAP_PRIVATE
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe would block
    struct stat status = {};
    void* address = MAP_FAILED;
    if (file >= 0 && ::fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0)
      address = ::mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    if (file >= 0) ::close(file);
    if (address != MAP_FAILED) {
      const auto size = static_cast<std::size_t>(status.st_size);
      FileBytes result(size);
      result.data_ = static_cast<const std::byte*>(address);
      result.owner_ = std::shared_ptr<void>(address, [size](void* mapped) { ::munmap(mapped, size); });
      return result;
    }
#endif
    return stream(path);
  }

  /// Keeps the file open and seeks; a buffer of `block_size` is all that reading takes.
  static FileBytes stream(const std::filesystem::path& path) {
    std::error_code error;
    FileBytes result(std::filesystem::file_size(path, error));
    if (!error) result.stream_ = std::make_shared<Stream>(path);
    if (error || !result.stream_->is_open()) fail<FormatError>("SafeTensors: cannot open ", path.string());
    return result;
  }

  [[nodiscard]] std::uint64_t size() const {
    return size_;
  }
  /// The first byte, or null where bytes are read as they are asked for.
  [[nodiscard]] const std::byte* data() const {
    return data_;
  }

  /// Calls act(span) for consecutive parts of `count` bytes from `begin`. Parts start at multiples of `block_size`
  /// from there. Throws FormatError where the disk fails.
  template <class Act>
  void for_each_block(std::uint64_t begin, std::uint64_t count, Act act) const {
    if (stream_ == nullptr) return act(std::span(data_ + begin, static_cast<std::size_t>(count)));
    std::vector<std::byte> block(static_cast<std::size_t>((std::min)(count, block_size)));
    for (std::uint64_t done = 0; done < count; done += block.size()) {
      block.resize(static_cast<std::size_t>((std::min)(count - done, block_size)));
      stream_->read(begin + done, block);
      act(std::span<const std::byte>(block));
    }
  }

  /// A copy of `count` bytes from `begin`, as text.
  [[nodiscard]] std::string text(std::uint64_t begin, std::uint64_t count) const {
    std::string result;
    result.reserve(static_cast<std::size_t>(count));
    for_each_block(begin, count, [&](std::span<const std::byte> part) {
      result.append(reinterpret_cast<const char*>(part.data()), part.size());
    });
    return result;
  }

 private:
  static constexpr std::uint64_t block_size = std::uint64_t{1} << 20;  // a multiple of every scalar's size

  class Stream {
   public:
    explicit Stream(const std::filesystem::path& path) : path_(path), stream_(path, std::ios::binary) {}
    [[nodiscard]] bool is_open() const { return stream_.is_open(); }

    void read(std::uint64_t begin, std::span<std::byte> to) {
      const std::lock_guard<std::mutex> lock(mutex_);
      stream_.clear();
      stream_.seekg(static_cast<std::streamoff>(begin));
      if (!stream_.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size())))
        fail<FormatError>("SafeTensors: cannot read ", to.size(), " bytes of ", path_.string());
    }

   private:
    std::filesystem::path path_;
    std::mutex mutex_;
    std::ifstream stream_;
  };

  explicit FileBytes(std::uint64_t size) : size_(size) {}

  std::uint64_t size_;
  const std::byte* data_ = nullptr;
  std::shared_ptr<const void> owner_;  // of data_
  std::shared_ptr<Stream> stream_;
};

/// The file that writing to `path` would change: where symbolic links end, or a link if they never do.
inline std::filesystem::path follow_links(std::filesystem::path path) {
  std::error_code error;
  for (int links = 0; links < 40 && std::filesystem::is_symlink(path, error); ++links)
    path = path.parent_path() / std::filesystem::read_symlink(path, error);
  return path;
}

/// Calls write(stream) for a new file beside `path`, which then takes its place: whoever reads `path`, at any time,
/// finds the old file or the new one. Links and the file's mode stay; while it is written only its owner may read it.
/// False if any of it fails, and then all is as it was.
template <class Write>
bool replace_file(const std::filesystem::path& path, Write write) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path target = follow_links(path);
  if (fs::is_symlink(target, error)) return false;
  const fs::file_status before = fs::status(target, error);
  fs::path temporary = target;
  temporary += ".partial-" + std::to_string(std::random_device{}());
#ifdef MAP_PRIVATE
  if (fs::is_regular_file(before)) {
    const int file = ::open(temporary.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (file >= 0) ::close(file);
  }
#endif
  std::ofstream stream(temporary, std::ios::binary | std::ios::trunc);
  write(stream);
  stream.close();
  error.clear();
  if (stream && fs::is_regular_file(before)) fs::permissions(temporary, before.permissions(), error);
  if (stream && !error) fs::rename(temporary, target, error);
  if (stream && !error) return true;
  fs::remove(temporary, error);
  return false;
}

}  // namespace posbias::io::detail
