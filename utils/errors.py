"""Errors that are the user's to mend.

Each message names the file, key or shape, what was expected and what came.
"""


class InputError(ValueError):
    """What came from outside cannot be used: a file, an option, a shape."""


class NotWrittenError(OSError):
    """A disk or a folder does not take what a command wrote."""


class ConfigError(InputError):
    """A config that cannot be used."""
