"""`python -m kstep`: the console command."""

import sys

from kstep.cli import main

if __name__ == "__main__":
    sys.exit(main())
