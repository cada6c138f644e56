"""Traces as training data: what ``visionrl filter`` does.

It lies with the library and not with the trainer because it needs nothing but the standard library and pydantic: data
can be prepared on a machine that trains nothing.
"""
