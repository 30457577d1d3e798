"""Attacks: one file each, on any model with a rule for success.

An attack takes `images` (N,C,H,W) or (N,D), `labels` (N,), and as keywords `ball`, the threat model, and `ids` (N,) and
`seed`, which name its random numbers. It returns `AttackedImages`. Every field of `loop.Attack` may be a keyword, too:
`success`, the rule of the threat model that decides (by default `fooled`), `tag`, the attack's name, `batch_size`, ...
"""
