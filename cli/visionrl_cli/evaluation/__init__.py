"""What ``visionrl eval`` does: imported only when it runs, for it brings the operator's and the trainer's code."""
