"""Every setting at its default. The other configs import this one and change a few.

Not an experiment: `data.root` is empty. `condseg_jax/config.py` lists the settings with their units
and allowed values; to see what a run used, read WORKDIR/run.json.
"""

from condseg_jax.config import Config


def get_config():
  return Config().to_config_dict()
