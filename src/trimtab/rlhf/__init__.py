"""Reinforcement learning from human feedback on a cluster: placement, memory, step time, commands."""
