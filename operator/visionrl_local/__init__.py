"""The local executor: carries out the decisions of ``visionrl_core`` as processes on this machine."""
