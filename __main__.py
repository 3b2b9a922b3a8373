"""`python -m camelid` is the command `camelid`, also where the folder of installed commands is not on the PATH."""

import sys

from .launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
