"""Plans: traces of a training step, what they mean for memory and time, and for which cards."""
