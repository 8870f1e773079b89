"""The engine: architectures as data, one forward for any decoder, and sweeps over pairs of runs."""

__all__: list[str] = []
