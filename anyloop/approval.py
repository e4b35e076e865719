"""Whether a critique approves of the answer that it is about: one rule for learning, filter and evaluation."""

import re

RIGHT_TEXT = "This is correct."
RIGHT_PATTERN = (
    r"^(good, |yes, )?(this|that|it|everything|all|all of it) (is|looks|seems|sounds) "
    r"(all )?(right|correct|good|fine|perfect)\W*$|^(right|correct|perfect|good)\W*$"
)


def approves(critique: str, right_text: str = RIGHT_TEXT, right_pattern: str = RIGHT_PATTERN) -> bool:
    """Its last sentence gives the verdict: it is `right_text`, or matches `right_pattern` (lower case) and is
    no question."""
    text = " ".join(critique.lower().split())
    verdict = re.split(r"(?<=[.!?;])\s", text)[-1]
    if verdict == right_text.lower():
        return True
    asks = re.search(r"\?\W*$", verdict) is not None
    return not asks and re.match(right_pattern, verdict) is not None
