"""Adapter formats, one module or package each, and the table from which `load` chooses."""
