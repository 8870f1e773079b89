"""Find the attention heads that make a language model name somebody."""

__version__ = "0.1.0"

__all__ = ["explore", "load_model"]


def __getattr__(name):
    # Lazy, so that `import namemovers` does not pay for torch and TransformerLens.
    if name == "load_model":
        from .model import load_model

        return load_model
    if name == "explore":
        from .explorer import explore

        return explore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
