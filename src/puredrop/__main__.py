"""`python -m puredrop`."""

import sys

from puredrop.cli import main

if __name__ == "__main__":
    sys.exit(main())
