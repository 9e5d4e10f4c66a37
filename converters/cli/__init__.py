"""The program ``jaxmix``, a file a command. What the commands do is done elsewhere."""

from jaxmix.converters.cli.program import app, main

__all__ = ["app", "main"]
