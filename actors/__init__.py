"""The only folder that imports ray: one thin actor per file, transport, placement, and run.py, the driver.

Everything is wired here. Each actor is a shell over plain Python in `loops/` and the rooms below it.
"""
