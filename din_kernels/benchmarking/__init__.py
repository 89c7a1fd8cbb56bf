"""What tests, benchmarks and documentation measure with: the house shapes, interleaved timing, peers, peak memory."""
