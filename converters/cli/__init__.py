"""The command line ``jaxmix``: one file for each command, on top of the library's functions."""

from jaxmix.converters.cli.program import app, main

__all__ = ["app", "main"]
