"""Foreign formats: what reads and writes adapters and checkpoints of other libraries.

One file (or folder) a format. They use jaxmix; jaxmix does not know them, but for `load`.
"""
