"""Several GPUs: the libraries' own wrappers around a step's model, in a real process group or a fake one."""
