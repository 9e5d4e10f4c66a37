"""Mutated adapters and bases, judged by an oracle that shares no code with jaxmix.

`python -m tests.fuzz` makes small files of every format, changes them in one to three places, lets
jaxmix load and merge them, and compares the result with what NumPy computes in float64 from the raw
bytes. An input is a name, such as ``peft-lora:17``, and the same name always gives the same bytes.
"""
