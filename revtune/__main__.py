"""`python -m revtune` is the program `revtune`."""

import sys

from revtune.cli import main

sys.exit(main())
