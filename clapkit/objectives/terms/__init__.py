"""Terms that can be added to any objective, one file each."""
