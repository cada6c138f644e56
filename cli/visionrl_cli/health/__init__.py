"""What ``visionrl doctor`` looks at."""
