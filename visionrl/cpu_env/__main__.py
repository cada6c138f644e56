"""``python -m visionrl.cpu_env``: repair this environment, in every interpreter that starts from now on."""

from . import install

print(f"wrote {install()}")
