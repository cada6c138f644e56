"""Where jobs run: a cluster, or the run folders of this machine. The verbs see both through one interface."""
