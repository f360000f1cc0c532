"""Scores and truth in, numbers out: ranking, retrieval and zero-shot metrics and their error bars; numpy only."""
