"""``python -m harness.cli``: the same as ``selm``."""

from harness.cli import main

main()
