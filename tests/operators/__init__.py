"""The laws of operators against NumPy: alone, sliced, and every pair folded."""
