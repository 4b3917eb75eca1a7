"""CPU kernels in C, compiled on first use with the machine's own compiler; without one, torch's operators serve."""
