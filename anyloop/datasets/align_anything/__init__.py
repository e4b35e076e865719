"""The paper's data set, align-anything (arXiv 2412.15838): eight subtasks of answers in pairs, and what people said."""
