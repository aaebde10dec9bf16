"""Callbacks that pin a model in the training loops of other libraries; each file needs its library."""
