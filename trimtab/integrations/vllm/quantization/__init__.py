"""trimtab's low-bit linears in a vLLM engine, made from any float checkpoint while it loads."""
