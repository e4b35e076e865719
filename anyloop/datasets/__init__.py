"""Data from elsewhere into the log, and the log's examples out of it: published preference sets, and training sets."""
