"""Neural tangent kernels to work with."""
