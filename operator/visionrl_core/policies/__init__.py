"""Policies: small checks over typed values; the first that fails says why."""
