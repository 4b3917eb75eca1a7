"""A family of real models with one tokenizer, small enough for tests: SmolLM2-135M, a small base, and experts of both.

`make.py` makes it, `members.py` loads it, `tasks.py` has what the experts were taught.
"""
