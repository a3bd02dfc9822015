"""Starts llama-cpp-python's example server, in the Python that has what it needs; arguments: SERVER CONFIG.

Its configuration can not say what `llama-server --no-repack` says: leave the weights as they are in the file.
"""

import runpy
import sys

from llama_cpp import llama_cpp

_defaults = llama_cpp.llama_model_default_params


def _as_they_are() -> object:
    params = _defaults()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_model_default_params = _as_they_are
server, config = sys.argv[1:]
sys.argv = [server, "-C", config]
runpy.run_path(server, run_name="__main__")
