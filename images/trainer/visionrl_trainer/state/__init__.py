"""The state of a run on disk: who may write it, what it resumes from, what it keeps."""
