"""The stages: a module for each, whose class `Stage` its notebook uses."""
