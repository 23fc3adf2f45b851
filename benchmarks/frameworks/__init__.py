"""Programs of training frameworks, run as dry runs and set beside qbench's own plans."""
