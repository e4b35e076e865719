"""Media objects: stored once under their SHA-256, read and written as files that browsers play."""
