"""Attacks: one file each, functions with the same first arguments, on any model with a rule for success."""
