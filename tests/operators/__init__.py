"""The laws of operators: each alone, sliced, and every pair folded, against NumPy."""
