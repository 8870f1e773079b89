"""How prompts are made: words, templates, drawing, the task, corruptions, tasks of one's own, and a survey."""

# They give `Task` its ways to be made of texts and tables of one's own, and to be kept in files.
from namemovers.prompts import own, own_template, tables  # noqa: F401

__all__: list[str] = []  # its names are those of its modules; what users need is in `namemovers.data`
