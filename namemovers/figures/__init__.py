"""One look for every figure; a figure takes a result and nothing else."""

__all__: list[str] = []
