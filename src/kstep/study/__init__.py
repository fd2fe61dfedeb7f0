"""What 07 and 08 are made of: runs set against each other, and what a molecule would cost."""
