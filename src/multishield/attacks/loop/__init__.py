"""The loop that all iterative attacks share."""
