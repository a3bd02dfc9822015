"""The simulator: the node's own kernel on a manual clock, over workloads that were recorded or made up."""
