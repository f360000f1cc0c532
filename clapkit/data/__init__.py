"""From audio files and captions to batches: manifests, decoding, checks, splits and recipes."""
