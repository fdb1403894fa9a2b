"""WIP"""
from configs import base

def get_config():
  config = base.get_config()
  config.data.subvolume = (40, 56, 40)
  config.data.spacing = (1.0, 1.0, 1.0)
  config.train.steps = 700
  return config
