"""A manifest and its audio to the containers that other tools read; the recipes of the same name read them back."""
