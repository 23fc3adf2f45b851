"""The planner as a page on this machine: `qbench serve`."""
