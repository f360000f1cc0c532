"""``python -m clapkit``."""

from clapkit.cli import main

main()
