"""How each kind of adapter is initialized."""
