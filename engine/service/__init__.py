"""A run behind HTTP: what `serve.py` starts."""
