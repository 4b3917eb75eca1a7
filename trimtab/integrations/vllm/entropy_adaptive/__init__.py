"""Entropy-adaptive decoding inside one vLLM engine, as speculative decoding with turns (decoding/entropy_window.py)."""
