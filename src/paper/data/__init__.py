"""Data sets: raw images in, prepared splits out."""
