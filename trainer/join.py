"""The join of the log's responses and feedback, as the trainer uses it; export joins by the same rules."""

from anyloop.log.join import Joined, distinct, event_id, join, join_one, named_responses, supersedes

__all__ = ["Joined", "distinct", "event_id", "join", "join_one", "named_responses", "supersedes"]
