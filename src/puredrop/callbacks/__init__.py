"""Pinned models in other people's training loops; each file needs its library."""
