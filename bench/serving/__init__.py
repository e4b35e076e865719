"""`make bench-serving`: AnyLoop's engine beside `transformers serve` and two floors, in one run, in one table."""
