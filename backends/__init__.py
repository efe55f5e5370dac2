"""Backends: what executes layouts. They import the spec and their own library, never each other."""

from sparsemoc.backends.protocol import Backend as Backend
from sparsemoc.backends.protocol import Capabilities as Capabilities
from sparsemoc.backends.protocol import Options as Options
from sparsemoc.backends.protocol import Problem as Problem
from sparsemoc.backends.protocol import Randomness as Randomness
from sparsemoc.backends.protocol import Result as Result
from sparsemoc.backends.registry import available_backends as available_backends
from sparsemoc.backends.registry import choose as choose
from sparsemoc.backends.registry import get_backend as get_backend
