"""`anyloop eval`: how good a version is, on prompts of the reference world or of one's own, and against another."""
