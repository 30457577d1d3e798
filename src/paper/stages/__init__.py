"""What the stages compute: the baseline, the comparison, the studies."""
