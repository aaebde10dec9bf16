"""Callbacks that pin or watch a model in the training loops of other libraries; each file needs its library."""
