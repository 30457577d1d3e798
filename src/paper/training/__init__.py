"""Training of classifiers and of the demo's CLIP."""
