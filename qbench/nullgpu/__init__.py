"""A CUDA device that holds nothing and computes nothing, under the real CUDA build of PyTorch.

The shim, a C library that is preloaded, answers what a training step calls of CUDA's runtime and driver, of
NVML, cuBLAS, cuDNN and NCCL. Device memory is reserved addresses that nobody touches, kernels are not run,
and cudaMalloc honours the card's size. So the caching allocator, its counters and retries, running out of
memory, the choice of kernels and the host's work are PyTorch's own.

It cannot tell values (what lies in memory, mostly 0, so what depends on data is not a real run's), times of
a GPU, power, clocks, whether a kernel exists for the card, workspaces of cuDNN, and the order in which the
driver hands out addresses, of which it offers two.
"""
