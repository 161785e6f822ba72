"""Is it right and fast on a GPU? docs/gpu.md tells; `__main__.py` is the command."""
