"""From a cold start to a network: the loop that makes its own labels."""
