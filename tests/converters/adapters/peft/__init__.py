"""The reader of PEFT's folders. In tests named test_live_… PEFT writes them."""
