"""What `din-kernels demo` measures and draws."""
