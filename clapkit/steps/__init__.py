"""One module per command: each combines the core packages and writes one run directory."""
