"""Attacks: one file each, on any model with a rule for success.

An attack takes `images` (N,C,H,W) in [0,1], `labels` (N,) and a `ball`, the threat model. It needs the keywords `ids`
(N,) and `seed`, which name its random numbers, and passes on the other options of `loop.ascend`, such as `batch_size`.
It returns `AttackedImages`.
"""
