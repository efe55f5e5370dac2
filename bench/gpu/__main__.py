"""`python -m bench.gpu`."""

import sys

from bench.gpu.cli import main

# Each section runs in a process of its own, which reads this file again.
if __name__ == "__main__":
    sys.exit(main())
