"""Putting the product where people look for it, and taking it away: links, settings, units, manuals, completions."""
