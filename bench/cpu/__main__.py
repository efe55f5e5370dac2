"""`python -m bench.cpu`."""

import sys

from bench.cpu.cli import main

sys.exit(main())
