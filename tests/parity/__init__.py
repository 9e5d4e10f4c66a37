"""jaxmix beside PEFT: live, with torch and peft installed."""
