"""Entropy-adaptive decoding across engines: a proxy before two OpenAI-compatible servers of vLLM.

It imports neither engine nor model: the two servers are asked over HTTP, and what they answer goes through the gate of
`trimtab.decoding`. Nothing but the command `trimtab route` imports it.
"""
