"""A trainer of nnU-Net whose schedule ends when its minutes do.

nnU-Net finds it through nnUNet_extTrainer. Of the minutes in CONDSEG_NNUNET_MINUTES a few steps are
timed, which are steps of the training; the rest is divided into `EPOCHS` epochs, a sixth of whose
iterations are of validation, as always. Nothing is mirrored.
"""

import os
import time

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation import nnUNetTrainerNoMirroring

EPOCHS = 20  # the rate falls after each of them
WARM_UP, TIMED = 2, 3  # steps
VALIDATION = 1 / 3  # of the time of a step, for an iteration of validation


class nnUNetTrainerMinutes(nnUNetTrainerNoMirroring.nnUNetTrainerNoMirroring):
  """The default trainer, but for the length of the run and mirroring."""

  # nnU-Net records the arguments by these names.
  def __init__(self, plans, configuration, fold, dataset_json, device):
    super().__init__(plans, configuration, fold, dataset_json, device)
    self.num_epochs = EPOCHS

  def on_train_start(self):
    start, budget = time.monotonic(), 60 * float(os.environ["CONDSEG_NNUNET_MINUTES"])
    super().on_train_start()
    self.network.train()
    for _ in range(WARM_UP):
      self.train_step(next(self.dataloader_train))
    timed, steps = time.monotonic(), 0
    while steps < TIMED or time.monotonic() - timed < 0.03 * budget:
      self.train_step(next(self.dataloader_train))
      steps += 1
    seconds = (time.monotonic() - timed) / steps
    fit = (budget - (time.monotonic() - start)) / seconds / EPOCHS
    self.num_iterations_per_epoch = max(1, int(min(fit / (1 + VALIDATION / 5), fit - VALIDATION)))
    self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)
    total = WARM_UP + steps + EPOCHS * self.num_iterations_per_epoch
    self.print_to_log_file(f"{total} steps of {seconds:.3f} s")

  def perform_actual_validation(self, save_probabilities: bool = False):
    """Leaves out the prediction of the training cases that follows a training on all of them."""
