"""Plans cut into work for tiled kernels: tables on the host, the same for every GPU backend. NumPy alone."""
