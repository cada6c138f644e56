"""Traces as training data: what ``visionrl filter`` does.

It is part of the library and not of the trainer because it needs only the standard library and pydantic: data can be
prepared on a machine without torch.
"""
