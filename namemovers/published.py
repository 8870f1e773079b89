"""The former name of `namemovers.literature`, for those who import from it."""

from namemovers.literature import *  # noqa: F403
from namemovers.literature import __all__  # noqa: F401
