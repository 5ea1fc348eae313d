"""The demo as a program: what `megacontext demo` and `make demo` show, with all its options."""

from __future__ import annotations

import sys

from megacontext_sdk._cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
