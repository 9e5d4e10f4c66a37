"""What other libraries wrote and computed, for `tests/converters/formats`."""
