"""The task app: Crafter over HTTP, played by a policy, answered as trajectories."""
