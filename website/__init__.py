"""Builds the site from the Markdown in ``docs``: ``python -m website [FOLDER]``, offline."""
