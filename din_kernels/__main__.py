"""`python -m din_kernels` is the console script `din-kernels`."""

import sys

from din_kernels.cli import main

sys.exit(main())
