"""The three prompts of learning from language feedback, after arXiv 2412.15838, in one place.

Roles are special tokens (`user`, `assistant`, `end`), so only the words between them are written here.
"""

CRITIQUE_PROMPT = "Prompt: "
CRITIQUE_RESPONSE = " Response: "
CRITIQUE_ASK = " Critique:"
REFINE_BEFORE = "Critique: "
REFINE_AFTER = " Now refine."
