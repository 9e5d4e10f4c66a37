"""Live comparisons of jaxmix with PEFT, for which torch and peft must be installed."""
