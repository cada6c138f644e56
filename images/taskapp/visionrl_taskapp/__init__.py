"""The task app: an environment over HTTP, played by a policy, answered as trajectories."""
