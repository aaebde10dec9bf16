"""The compaction core: what groups of samples or members keep, and layers computed on that alone."""
