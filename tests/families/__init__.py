"""The families: one table of rows, and one contract that every row satisfies."""
