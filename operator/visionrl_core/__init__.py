"""What should exist for a job: pure decisions, no I/O, no clock, no Kubernetes client."""
