"""How alike the features of one layer are under two classes."""

import numpy as np

NOTHING = 1e-12  # of the mean square: less variance than that is rounding


def linear_cka(x_VC: np.ndarray, y_VE: np.ndarray) -> float | None:
  """Linear centred kernel alignment of two sets of features of the same voxels.

      CKA = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖),   Frobenius norms, columns centred

  Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019. 1 for the
  same features up to rotation, shift and one scale; 0 for uncorrelated ones.

  Returns:
    None where one of them does not vary.
  """
  x, y = _centred(x_VC), _centred(y_VE)
  if x is None or y is None:
    return None
  within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
  return float(np.linalg.norm(y.T @ x) ** 2 / within)


def class_share(features_KVC: np.ndarray) -> float | None:
  """The part of the features' variance that is due to the class asked for.

      E_v Var_k f(v, k) / Var_{v,k} f(v, k),   summed over channels

  0 where the class changes nothing, 1 where all voxels are alike under each class.

  Args:
    features_KVC: features of the same V voxels under K classes.

  Returns:
    None where nothing varies.
  """
  features = np.asarray(features_KVC, np.float64)
  total = features.var((0, 1)).sum()
  if total <= NOTHING * np.square(features).mean((0, 1)).sum():
    return None
  return float(features.var(0).mean(0).sum() / total)


def _centred(x: np.ndarray) -> np.ndarray | None:
  x = np.asarray(x, np.float64)
  centred = x - x.mean(0)
  if np.square(centred).sum() <= NOTHING * np.square(x).sum():
    return None
  return centred
