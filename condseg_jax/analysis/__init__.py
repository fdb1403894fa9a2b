"""What the condition does to a network: what its layers tell of the class, and their gradients."""
