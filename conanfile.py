# SPDX-License-Identifier: MIT
"""posbias for Conan 2: the headers, and with -o "&:compiled=True" the library posbias::compiled. conan create . -s compiler.cppstd=20 --build=missing"""
import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load


class Posbias(ConanFile):
    name = "posbias"
    description = "Positional-bias modules for transformers on Eigen tensors"
    license = "MIT"
    topics = ("header-only", "transformer", "rotary", "alibi", "attention", "eigen")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"io": [True, False], "compiled": [True, False], "fPIC": [True, False]}
    default_options = {"io": False, "compiled": False, "fPIC": True}
    exports = "include/posbias/version.hpp"
    exports_sources = "include/*", "src/*", "cmake/*", "CMakeLists.txt", "LICENSE"
    no_copy_source = True

    def set_version(self):
        header = load(self, str(Path(self.recipe_folder) / "include/posbias/version.hpp"))
        self.version = ".".join(re.findall(r"#define POSBIAS_VERSION_[A-Z]+ (\d+)", header))

    def configure(self):
        if self.options.compiled:
            self.package_type = "static-library"

    def requirements(self):
        self.requires("eigen/[>=3.4 <6]", transitive_headers=True)
        if self.options.io:
            self.requires("nlohmann_json/[>=3.11 <4]", transitive_headers=True)

    def layout(self):
        cmake_layout(self)

    def validate(self):
        check_min_cppstd(self, 20)

    def generate(self):
        if self.options.compiled:
            CMakeDeps(self).generate()
            toolchain = CMakeToolchain(self)
            for part in ("TESTS", "EXAMPLES", "BENCHMARKS"):
                toolchain.cache_variables[f"POSBIAS_BUILD_{part}"] = False
            toolchain.cache_variables["CMAKE_DISABLE_FIND_PACKAGE_nlohmann_json"] = not self.options.io
            toolchain.generate()

    def build(self):
        if self.options.compiled:
            cmake = CMake(self)
            cmake.configure()
            cmake.build(target="posbias_compiled")

    def package(self):
        copy(self, "LICENSE", self.source_folder, str(Path(self.package_folder) / "licenses"))
        copy(self, "*.hpp", str(Path(self.source_folder) / "include"), str(Path(self.package_folder) / "include"))
        for library in ("*.a", "*.lib"):
            copy(self, library, self.build_folder, str(Path(self.package_folder) / "lib"), keep_path=False)

    def package_id(self):
        if not self.info.options.compiled:
            self.info.clear()

    def package_info(self):
        # The whole package has a target too, which must not have the core's name.
        self.cpp_info.set_property("cmake_target_name", "posbias::everything")
        core = self.cpp_info.components["core"]
        core.requires = ["eigen::eigen"]
        core.set_property("cmake_target_name", "posbias::posbias")
        parallel = self.cpp_info.components["parallel"]
        parallel.requires = ["core"]
        parallel.set_property("cmake_target_name", "posbias::parallel")
        if self.settings.os in ("Linux", "FreeBSD"):
            parallel.system_libs = ["pthread"]
        if self.options.io:
            io = self.cpp_info.components["io"]
            io.requires = ["core", "nlohmann_json::nlohmann_json"]
            io.set_property("cmake_target_name", "posbias::io")
        for component in self.cpp_info.components.values():
            component.bindirs = []
            component.libdirs = []
        if self.options.compiled:
            compiled = self.cpp_info.components["compiled"]
            compiled.requires = ["core", "io"] if self.options.io else ["core"]
            compiled.libs = ["posbias_compiled"]
            compiled.defines = ["POSBIAS_COMPILED"] + ["POSBIAS_COMPILED_IO"] * bool(self.options.io)
            compiled.set_property("cmake_target_name", "posbias::compiled")
