"""The join of the log's responses and feedback, as the trainer uses it; export joins by the same rules."""

from anyloop.log.join import Joined, distinct, join, join_one, named_responses

__all__ = ["Joined", "distinct", "join", "join_one", "named_responses"]
