"""The residual U-Net in three sizes, after nnU-Net's ResEnc presets (Isensee et al., MICCAI 2024).

  condseg-train --config=experiments/configs/sizes.py:M --config.data.root=DATA --workdir=RUN

S is for CPUs, with the subvolume of `base.py`. M and L are the network of the presets of the same
names, for 8 and 24 GB on an accelerator: 32 features at the finest level, doubled up to 320, and 1,
3, 4, 6, 6 and 6 residual units. Subvolume and strides are fitted to data and memory; with
`data.plan` = `config` they are those given here, for isotropic voxels. `docs/training.md` compares
parameters and work.

From nnU-Net: SGD with momentum 0.99, learning rate 1e-2 with polynomial decay, gradients clipped at
12, batches of 2, 250 000 steps, three auxiliary heads (its fourth has weight 0). Not from it: no
weight decay (3e-5 there), the condition, the augmentation, and levels recomputed in the backward
pass, without which the memory holds a half to two thirds of the subvolume. S keeps the optimizer of
`base.py`, Adam, with which small networks were trained here in few steps. Not run here.
"""

from condseg_jax.configs import base

MEMORY_GB = {"M": 8.0, "L": 24.0}
SUBVOLUME = {"M": (128, 128, 128), "L": (192, 192, 192)}


def get_config(size: str = "S"):
  config = base.get_config()
  config.model.update(network="res_unet", norm="instance", layers_per_level=(1, 1, 2, 2),
                      deep_supervision=2)
  if size == "S":
    return config
  if size not in MEMORY_GB:
    raise ValueError(f"size {size!r} is not one of S, {', '.join(MEMORY_GB)}")
  config.data.update(plan="auto", memory_gb=MEMORY_GB[size], subvolume=SUBVOLUME[size],
                     batch_size=2)
  config.model.update(strides=((2, 2, 2),) * 5, layers_per_level=(1, 3, 4, 6, 6, 6), channels=32,
                      deep_supervision=3, dtype="bfloat16", remat=True)
  config.optimizer.update(name="sgd", momentum=0.99, learning_rate=1e-2, schedule="polynomial",
                          warmup=0, clip_norm=12.0)
  config.train.update(steps=250_000, log_every=50, eval_every=2_500)
  return config
