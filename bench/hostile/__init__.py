"""What hostile critiques do to a round of learning, with and without the robust mode."""
