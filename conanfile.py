# SPDX-License-Identifier: MIT
"""posbias for Conan 2: the headers. conan create . -s compiler.cppstd=20 --build=missing"""
import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.layout import basic_layout


class Posbias(ConanFile):
    name = "posbias"
    description = "Positional-bias modules for transformers on Eigen tensors"
    license = "MIT"
    topics = ("header-only", "transformer", "rotary", "alibi", "attention", "eigen")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"io": [True, False]}
    default_options = {"io": False}
    exports = "include/posbias/version.hpp"
    exports_sources = "include/*", "LICENSE"
    no_copy_source = True

    def set_version(self):
        header = load(self, str(Path(self.recipe_folder) / "include/posbias/version.hpp"))
        self.version = ".".join(re.findall(r"#define POSBIAS_VERSION_[A-Z]+ (\d+)", header))

    def requirements(self):
        self.requires("eigen/[>=3.4 <6]", transitive_headers=True)
        if self.options.io:
            self.requires("nlohmann_json/[>=3.11 <4]", transitive_headers=True)

    def layout(self):
        basic_layout(self)

    def validate(self):
        check_min_cppstd(self, 20)

    def package(self):
        copy(self, "LICENSE", self.source_folder, str(Path(self.package_folder) / "licenses"))
        copy(self, "*.hpp", str(Path(self.source_folder) / "include"), str(Path(self.package_folder) / "include"))

    def package_id(self):
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
