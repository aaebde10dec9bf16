"""The main job: train with and without dropout on real data and show what it did."""
