"""Devices: the mesh, the rules that lay arrays on it, and starting and watching many processes."""
