"""Scenarios, verdicts on stored images, per-image records, and the rules that say whether they can be believed."""
