"""Encoders: the two towers, their front ends, and the dual encoder that joins them."""
