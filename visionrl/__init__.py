"""What every part of VisionRL shares: the job, its status, the rollout contract, the command line."""
