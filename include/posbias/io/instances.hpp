// SPDX-License-Identifier: MIT
/// \file
/// All that `posbias::compiled` holds of posbias/io/safetensors.hpp; see posbias/instances.hpp.
#if defined POSBIAS_TEMPLATE
namespace posbias::io {

POSBIAS_TEMPLATE detail::Header detail::parse_header<>(std::string_view, std::uint64_t);
POSBIAS_TEMPLATE detail::WeightMap detail::parse_index<>(std::string_view);
POSBIAS_TEMPLATE SafeTensors SafeTensors::opened<>(const std::filesystem::path&, bool);
POSBIAS_TEMPLATE void SafeTensors::add<>(detail::FileBytes, const Shard*);
POSBIAS_TEMPLATE void SafeTensors::check_fits<float>(std::string_view, const std::vector<Index>&) const;
POSBIAS_TEMPLATE void SafeTensors::check_fits<double>(std::string_view, const std::vector<Index>&) const;
POSBIAS_TEMPLATE void SafeTensors::copy_values<Eigen::RowMajor>(std::string_view, float*) const;
POSBIAS_TEMPLATE void SafeTensors::copy_values<Eigen::RowMajor>(std::string_view, double*) const;

}  // namespace posbias::io
#endif
