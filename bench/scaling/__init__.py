"""What one unit of each kind of work costs: the figures that docs/scaling.md computes with."""
