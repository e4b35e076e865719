"""The paper's experiment in the reference world: cells of work, resumable, and the tables that come of them."""
