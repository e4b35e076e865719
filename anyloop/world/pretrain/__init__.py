"""Base training of the reference model, `tiny-omni`: codecs, corpus, language model, and its measured skills.

`python -m anyloop.world.pretrain` reproduces the shipped weights.
"""
