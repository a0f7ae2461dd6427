# SPDX-License-Identifier: MIT
"""posbias, on the memory of torch tensors: what posbias_peers.cpp exports, called through ctypes.

Arguments are converted once, so that a call that is timed has about 1 us of Python about it.
"""

import ctypes

import torch

library = None


class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("B", "L", "NH", "H")]


def load_library(path):
    global library
    library = ctypes.CDLL(path)


def argument(value):
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous() and value.dtype in (torch.float32, torch.int64)
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, (list, tuple)):  # a struct of pointers
        fields = [(f"pointer{i}", ctypes.c_void_p) for i in range(len(value))]
        struct = type("Pointers", (ctypes.Structure,), {"_fields_": fields})
        return struct(*(tensor.data_ptr() for tensor in value))
    if isinstance(value, bool):
        return ctypes.c_bool(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    if isinstance(value, str):
        return value.encode()
    return value  # a Shape, or None


def bound(name, *arguments, result=None):
    """The call as a function without arguments, which returns `result`."""
    function = library[name]
    function.restype = None
    converted = [argument(a) for a in arguments]

    def run(_kept=arguments):
        function(*converted)
        return result

    return run


class Module:
    """A module or layer of posbias: Module("rotary", head_dim, half), with parameters by their names."""

    def __init__(self, make, *options, **parameters):
        function = library[make]
        function.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p(function(*(argument(o) for o in options)))
        self.load(parameters)

    def __del__(self):
        library["release"](self.handle)

    def load(self, parameters):
        for name, tensor in parameters.items():
            bound("load", self.handle, name, tensor.detach().contiguous())()
        return self

    def reserve(self, length):
        """Makes the table of a module that can keep one."""
        bound("reserve", self.handle, length)()
        return self

    def take_gradient(self, parameter, into):
        """Copies a sum of gradients, which starts again from 0."""
        bound("take_gradient", self.handle, parameter, into)()
        return into

    def bound(self, name, *arguments, result=None):
        run = bound(name, self.handle, *arguments, result=result)
        run.module = self  # lives as long as the call
        return run

    def summing(self, parameter, like, name, *arguments):
        """A backward call, which adds to the gradient of a parameter: that is the result of the first call."""
        gradient = torch.empty_like(like)
        self.take_gradient(parameter, gradient)  # what others left
        run = self.bound(name, *arguments)
        first = [True]

        def sums():
            run()
            if first:
                first.clear()
                return self.take_gradient(parameter, gradient)

        return sums
