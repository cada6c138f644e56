"""Reconciles VisionRLJobs: what should exist, and making it so, in Kubernetes or on this machine."""
