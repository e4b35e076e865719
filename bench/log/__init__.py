"""How fast the event log takes events, and what its outbox costs an answer."""
