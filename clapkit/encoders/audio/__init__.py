"""Audio towers, one file each."""
