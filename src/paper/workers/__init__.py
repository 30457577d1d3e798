"""Work on many units (images, batches) in this process, in several, or on a cluster: the same bytes each time."""
