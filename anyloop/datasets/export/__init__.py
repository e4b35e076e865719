"""The log's joined examples as training sets: preferences, critiques, labels, in TRL's conversational form."""
