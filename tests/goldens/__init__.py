"""What PEFT computed once, committed, so that a machine without torch can check jaxmix."""
