"""``python -m nni_robust`` is the ``nni-robust`` command."""

from __future__ import annotations

import sys

from nni_robust.cli import main

if __name__ == "__main__":
    sys.exit(main())
