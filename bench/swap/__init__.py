"""`make bench-swap`: fifty swaps under running streams; what is dropped, what is garbled, how long steps pause."""
