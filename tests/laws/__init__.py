"""The seven laws of docs/design.md."""
