"""The contracts that all components share: the job, its status, the rollout API, adapters, data formats."""
