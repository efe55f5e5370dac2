"""CPU backend: register-tiled matrix kernels compiled by Numba."""

from sparsemoc.backends.numba.backend import BACKEND as BACKEND
from sparsemoc.backends.numba.config import NumbaConfig as NumbaConfig
