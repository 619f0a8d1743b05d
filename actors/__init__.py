"""The only folder that imports ray: one thin actor per file, transport, placement, and run.py, the driver.

Everything is wired here. Each actor is a shell over plain Python in `loops/` and the rooms below it.
"""

import os

# Ray reads these when it is imported or started, so they stand here, before any of our modules imports it.
# What is set already stays.
for _name, _value in {
    "RAY_AUTH_MODE": "token",  # never left to Ray's guess: with the wrong one a driver fails only after a minute
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else each worker resolves an environment of its own (ray #50961)
    "RAY_process_group_cleanup_enabled": "1",  # an engine's children die with it and give the GPU back
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
