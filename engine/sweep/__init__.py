"""Sweeps: a config trained with other values of its keys, one run a trial."""
