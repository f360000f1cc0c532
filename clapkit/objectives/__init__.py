"""Objectives: losses on a batch of audio and text embeddings, one file each, and the parts that they share."""
