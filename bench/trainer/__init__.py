"""Our training steps beside TRL's, and a round's time by phase."""
