# SPDX-License-Identifier: MIT
# Installs the headers, and what find_package(posbias) and pkg-config find.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/posbias)

install(TARGETS posbias EXPORT posbiasTargets FILE_SET HEADERS)
install(EXPORT posbiasTargets NAMESPACE posbias:: DESTINATION ${package_dir})
if(TARGET posbias_io)
  install(TARGETS posbias_io EXPORT posbiasIoTargets FILE_SET HEADERS)
  install(EXPORT posbiasIoTargets NAMESPACE posbias:: DESTINATION ${package_dir})
endif()
if(POSBIAS_BUILD_COMPILED)
  install(TARGETS posbias_compiled EXPORT posbiasCompiledTargets)
  install(EXPORT posbiasCompiledTargets NAMESPACE posbias:: DESTINATION ${package_dir})
endif()
if(TARGET posbias_parallel)
  install(TARGETS posbias_parallel EXPORT posbiasParallelTargets FILE_SET HEADERS)
  install(EXPORT posbiasParallelTargets NAMESPACE posbias:: DESTINATION ${package_dir})
endif()

configure_package_config_file(cmake/posbiasConfig.cmake.in posbiasConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(posbiasConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/posbiasConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/posbiasConfigVersion.cmake
  cmake/PosbiasEigen.cmake
  DESTINATION ${package_dir}
)
file(RELATIVE_PATH POSBIAS_PC_TO_INCLUDE "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file(cmake/posbias.pc.in posbias.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/posbias.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)

install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
