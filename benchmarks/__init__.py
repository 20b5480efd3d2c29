"""One command per question; every figure beside the raw nats-py floor measured in the same run."""
