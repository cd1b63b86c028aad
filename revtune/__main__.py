"""`python -m revtune` is the program `revtune`."""

from __future__ import annotations

import sys

from revtune.program.cli.main import main

sys.exit(main())
