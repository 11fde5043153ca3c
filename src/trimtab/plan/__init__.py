"""How much a cluster carries, how small it can be, and which is cheapest: capacity, sweeps, executors."""
