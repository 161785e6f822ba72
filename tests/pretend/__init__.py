"""A GPU that is none: what a CUDA device would refuse, wait for or answer, on a CPU build of torch.

    with pretended_gpu() as waits:
        fit(config)                      # runs the branches for CUDA

Tensors are the CPU's; those that would lie on the GPU are marked by their storage (marks.py). Two
modes of torch see every operation (operations.py, functions.py): tensors of both devices in one
operation raise as on CUDA, and so does what needs the host's memory; where the host would wait for
the device is counted by the place in the code (waits.py). Kernels, streams, memory and precision
are not pretended.
"""
