"""Measures a model's operators on the GPU of this machine, one tensor-parallel shard at a time."""
