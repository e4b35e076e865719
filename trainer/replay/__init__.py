"""Learning again from a part of the log, in a home of its own: settings, rounds, results into the main registry."""
