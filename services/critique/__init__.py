"""Says in language what is wrong with a response."""
