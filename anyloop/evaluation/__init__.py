"""How good a version is, in the paper's terms: success with intervals, AMU and AMG, and one version against another.

Scores, intervals and rules are pure functions; only `critic` speaks to a service. Nothing here learns, and nothing that
learns may import it: it knows the reference world's answers.
"""
