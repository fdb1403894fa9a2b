"""Growth: a trained network learns a class or a site more, and what it knew is guarded."""
