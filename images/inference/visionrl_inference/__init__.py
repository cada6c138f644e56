"""The inference server: vLLM started from the job, adapters fetched by name."""
