"""Analysis of class conditioning: features of every layer, gradients and class vectors."""
