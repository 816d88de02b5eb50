"""What a device runs beside its matrix products: Triton kernels, each with a slow twin in torch.

The twins are the oracle, and what runs on a CPU. Triton's interpreter runs the kernels there too, for the tests.
"""
