"""`python -m gfo_lab`."""

import sys

from gfo_lab.cli import main

sys.exit(main())
