"""What kernels of every layer share: launches, wide memory accesses, and their twins in the simulator."""
