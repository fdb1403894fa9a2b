"""All settings at their defaults. The other configs import this one and change a few.

Not an experiment: `data.root` is empty. `condseg_jax/config.py` lists the settings with their units
and allowed values; WORKDIR/run.json records the settings of a run.
"""

from condseg_jax.config import Config


def get_config():
  return Config().to_config_dict()
