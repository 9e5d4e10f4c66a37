"""The adapter formats of other libraries than PEFT."""
