"""Attacks: one file each, pure functions with the same first arguments, on any model with a rule for success."""
