// SPDX-License-Identifier: MIT
/// \file
/// Compiled at -O3, where g++ warns of what it has inlined, also in system headers.
#include <filesystem>
#include <posbias/io/safetensors.hpp>
#include <string_view>
#include <unsupported/Eigen/CXX11/Tensor>

void save_and_load(const std::filesystem::path& path, Eigen::Tensor<float, 2>& tensor, std::string_view name);

void save_and_load(const std::filesystem::path& path, Eigen::Tensor<float, 2>& tensor, std::string_view name) {
  posbias::io::SafeTensorsWriter writer;
  writer.add(name, tensor);
  writer.add_metadata("format", "pt");
  writer.write(path);
  posbias::io::SafeTensors::parse(writer.bytes()).copy_to(name, tensor);
  posbias::io::SafeTensors::open(path).copy_to(name, tensor);
}
