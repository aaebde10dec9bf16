"""`python -m puredrop`."""

import sys

from puredrop.cli import main

sys.exit(main())
