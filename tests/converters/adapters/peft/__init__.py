"""The reader of PEFT's folders. What is called test_live_… has PEFT write them."""
