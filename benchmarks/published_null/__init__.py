"""Published runs of real GPUs, repeated on the null GPU with the versions of each publication.

    python -m benchmarks.published_null ENVIRONMENT

makes the environment (3 to 5 GB, removed again), runs the committed rows in it, and writes
reports/nullgpu/published/ENVIRONMENT.md and .csv: what was published, what the null GPU says, the difference.
Nothing of the publications' code is here: their packages are installed, models are empty files of the right
shape, flash-attn is a stand-in that allocates what it does.
"""
