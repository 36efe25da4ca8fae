"""What kernels of every layer share: launches, wide memory accesses, arithmetic, and their twins in the simulator."""
