"""The task app's HTTP server."""
