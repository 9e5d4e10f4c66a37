"""The families: one table of rows, one contract that every row keeps."""
