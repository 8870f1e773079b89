"""The press: runs the notebooks of a clone and makes pages of them.

Plain Python beside the library, for whoever works in a clone of the repository; it is no part of what `pip` installs.
`runner` executes the notebooks of the study, `rerun` compares what is committed with a run of today,
`website` builds the site, `page` writes one page as one file.
"""
