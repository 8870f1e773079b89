"""Imported before nbformat, so that nbformat costs a tenth of a second and not three.

To validate a notebook, nbformat imports jsonschema, which imports checkers of formats (of international addresses,
among others) where they are installed. Jupyter installs one that parses its grammar anew at every import. No schema of
a notebook asks for it, and jsonschema does without what it cannot import.
"""

import sys

_SLOW = "rfc3987_syntax"

if _SLOW not in sys.modules and "jsonschema" not in sys.modules:
    sys.modules[_SLOW] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        pass
    finally:
        del sys.modules[_SLOW]
