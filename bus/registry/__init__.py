"""The registry: which agents there are, how their instances stand, and what operators want of them."""
