// SPDX-License-Identifier: MIT
/// \file
/// A PyTorch state dict, from a safetensors file: load_state_dict FILE. FILE is a recorded run of Hugging Face's T5, of
/// this project's tests: its parameters, behind the prefix "param.", and the bias they gave there.
///
///     load_state_dict tests/golden/t5_hf__encoder.safetensors
///
/// A checkpoint is loaded alike, with a prefix such as "encoder.block.0.layer.0.SelfAttention.". A .pt file is a pickle,
/// which only Python reads; a line of Python converts it:
///
///     import torch, safetensors.torch as s
///     s.save_file({n: t.contiguous().clone() for n, t in torch.load("model.pt").items()}, "model.safetensors")
#include <algorithm>
#include <exception>
#include <iostream>
#include <posbias/io/safetensors.hpp>
#include <posbias/posbias.hpp>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: load_state_dict FILE\nFILE is tests/golden/t5_hf__encoder.safetensors.\n";
    return 2;
  }
  try {
    const auto file = posbias::io::SafeTensors::read(argv[1]);
    for (const auto& entry : file.entries())
      if (entry.name.starts_with("param.")) std::cout << "loads " << entry.name << ", " << entry.dtype << '\n';

    const auto recorded = file.tensor<float, 4>("f32.out.bias");  // (1, NH, L1, L2)
    posbias::RelativePositionBias<float> t5({.n_heads = recorded.dimension(1)});
    posbias::io::load_parameters(t5, file, "param.");  // throws unless names and shapes are the module's

    const auto bias = t5.bias(recorded.dimension(2), recorded.dimension(3));
    const bool equal =
        std::equal(bias.data(), bias.data() + bias.size(), recorded.data(), recorded.data() + recorded.size());
    std::cout << bias.size() << " numbers of the bias " << (equal ? "are" : "are not") << " those of the package\n";
    return equal ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "load_state_dict: " << error.what() << '\n';
    return 1;
  }
}
