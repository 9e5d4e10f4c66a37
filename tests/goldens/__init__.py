"""Outputs computed by PEFT and committed, to check jaxmix on a machine without torch."""
