"""Training: the loop, its optimiser, its checkpoints. Sees encoders, objectives and batches only through protocols."""
