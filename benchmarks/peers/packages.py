# SPDX-License-Identifier: MIT
"""The Python packages, imported without what they import and nobody needs here, and their versions."""

import importlib
import importlib.metadata
import pathlib
import sys
import types

names = ("torch", "bio-attention", "zetascale", "x-transformers", "transformers", "edspdf", "einops")


def versions():
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def file_of(module):
    """The module of one file; the packages around it are not run (zetascale and edspdf import far more than they use)."""
    parts = module.split(".")
    site = next(pathlib.Path(p) for p in sys.path if pathlib.Path(p, parts[0]).is_dir())
    for depth in range(1, len(parts)):
        name = ".".join(parts[:depth])
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(site.joinpath(*parts[:depth]))]
            sys.modules[name] = package
    return importlib.import_module(module)


bio = importlib.import_module("bio_attention.positional")
xt = importlib.import_module("x_transformers.x_transformers")
zeta_alibi = file_of("zeta.nn.biases.alibi")
zeta_t5 = file_of("zeta.nn.biases.relative_position_bias")
zeta_dynamic = file_of("zeta.nn.biases.dynamic_position_bias")
zeta_xpos = file_of("zeta.nn.embeddings.xpos_relative_position")
zeta_rope = file_of("zeta.nn.embeddings.rope")
zeta_half = file_of("zeta.nn.embeddings.sinusoidal")
edspdf = file_of("edspdf.layers.relative_attention")
