"""Pallas TPU kernels, each beside its XLA reference of the same arguments; nothing here knows the rest of mmjax."""
