"""The Triton kernels; imported at their first use only, since Triton is optional and slow to import.

Every module here is the back end of the operation of the same name in the package above, which checks its arguments,
registers it with torch and has the CPU path.
"""
