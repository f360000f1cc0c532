"""Embedding tables on disk and the search over them."""
