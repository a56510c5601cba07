"""Training: stages (who is trained, who is frozen), losses, the optimiser, the one loop, metrics."""
