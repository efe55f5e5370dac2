"""`python -m bench.crossover`."""

import sys

from bench.crossover.cli import main

sys.exit(main())
